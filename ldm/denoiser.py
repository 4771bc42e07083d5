"""From a trained network to a denoiser: one function (x, sigma) -> x0, whatever the network was trained to predict.

The network sees the variance-preserving form x / sqrt(1 + sigma^2) and a timestep t, and answers with the noise (eps),
the velocity (v) or the clean sample (x0). The denoiser sees x = x0 + sigma * noise and a level sigma, and answers with
x0: the expectation of the clean sample given the noisy one. Samplers and guidance know only denoisers.

Shape letters: B batch, H W latent, C channels.
Sources: EDM (Karras et al. 2022, table 1, columns "VP"/"iDDPM": c_skip, c_out, c_in, c_noise); DDPM (Ho et al. 2020,
eq. 15); progressive distillation (Salimans & Ho 2022, section 4 and appendix D: v).
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from ldm.schedule import NoiseSchedule, check_name, t_at

Denoiser = Callable[[Array, Array], Array]  # (x [B,H,W,C] = x0 + sigma*noise, sigma [] float32) -> x0 [B,H,W,C]
Network = Callable[[Array, Array], Array]  # (x / sqrt(1 + sigma^2) [B,H,W,C], t [] float32) -> eps, v or x0 [B,H,W,C]


def add_noise(x0: Array, noise: Array, sigma: Array) -> Array:
    """A clean sample at noise level sigma: x0 + sigma * noise. sigma: any shape that broadcasts against x0."""
    return x0 + sigma * noise


def to_variance_preserving(x: Array, sigma: Array) -> Array:
    """x of sigma space as DDPM writes it, sqrt(alpha_bar) * x0 + sqrt(1 - alpha_bar) * noise: x / sqrt(1 + sigma^2)."""
    return x / jnp.sqrt(1 + sigma**2)


def x0_from_eps(x: Array, eps: Array, sigma: Array) -> Array:
    """The clean sample, if the noise in x is eps. DDPM eq. (15) in sigma space."""
    return x - sigma * eps


def eps_from_x0(x: Array, x0: Array, sigma: Array) -> Array:
    """The noise in x, if the clean sample is x0 (sigma > 0). It is also dx/dsigma of the ODE: EDM eq. (1)."""
    return (x - x0) / sigma


def x0_from_v(x: Array, v: Array, sigma: Array) -> Array:
    """The clean sample from the velocity: sqrt(alpha_bar) * x_t - sqrt(1 - alpha_bar) * v, written in sigma space."""
    return x / (1 + sigma**2) - v * sigma / jnp.sqrt(1 + sigma**2)


def v_from_x0(x0: Array, noise: Array, sigma: Array) -> Array:
    """The velocity, sqrt(alpha_bar) * noise - sqrt(1 - alpha_bar) * x0: what a v-network is trained to answer."""
    return (noise - sigma * x0) / jnp.sqrt(1 + sigma**2)


def _x0_from_x0(x: Array, x0: Array, sigma: Array) -> Array:
    return x0


X0_FROM = {"epsilon": x0_from_eps, "v_prediction": x0_from_v, "sample": _x0_from_x0}


def predict_x0(prediction: str, output: Array, x: Array, sigma: Array) -> Array:
    """The clean sample from a network's output. prediction: "epsilon", "v_prediction" or "sample" (else ValueError)."""
    check_name("prediction type", prediction, X0_FROM)
    return X0_FROM[prediction](x, output, sigma)


OUTPUT_FROM = {
    "epsilon": lambda x0, x, sigma: eps_from_x0(x, x0, sigma),
    "v_prediction": lambda x0, x, sigma: (x / (1 + sigma**2) - x0) * jnp.sqrt(1 + sigma**2) / sigma,
    "sample": lambda x0, x, sigma: x0,
}


def output_from_x0(prediction: str, x0: Array, x: Array, sigma: Array) -> Array:
    """What the network would have answered for this clean sample: the inverse of `predict_x0` (sigma > 0)."""
    check_name("prediction type", prediction, OUTPUT_FROM)
    return OUTPUT_FROM[prediction](x0, x, sigma)


def from_network(network: Network, schedule: NoiseSchedule, dtype=jnp.float32) -> Denoiser:
    """Wraps a network as a denoiser.

    x and sigma stay float32, and so does x0; the network gets its x in `dtype` and may answer in any. t is always
    float32: bfloat16 cannot hold half of the whole numbers up to 999.
    """

    def denoise(x: Array, sigma: Array) -> Array:
        x, sigma = jnp.asarray(x, jnp.float32), jnp.asarray(sigma, jnp.float32)
        output = network(to_variance_preserving(x, sigma).astype(dtype), t_at(schedule, sigma))
        return predict_x0(schedule.prediction, output.astype(jnp.float32), x, sigma)

    return denoise
