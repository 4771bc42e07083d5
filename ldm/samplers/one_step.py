"""Steps that look at nothing but where they are: from x at sigma to x at sigma_next (0 allowed).

x0 is denoise(x, sigma), made before the step. The slope of the ODE is (x - x0) / sigma; with x0 held still its solution
is a straight line in sigma,

    x(sigma_next) = r x + (1 - r) x0,    r = sigma_next / sigma                                                   (1)

so that Euler's step and the exponential integrator of DPM-Solver++ are one and the same. Better steps call the network
once more on the way. An ancestral step goes deterministically to less than sigma_next, then adds fresh noise up to it.

Shapes: x, x0, noise [B,H,W,C]; sigma, sigma_next, eta [].
Sources: DDPM (Ho et al. 2020, eq. 6, 7); DDIM (Song et al. 2021, eq. 12, 16); EDM (Karras et al. 2022, alg. 1; eq. 1);
DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927, alg. 1); DPM-Solver++ 2S (Lu et al. 2022, arXiv:2211.01095, alg. 1);
latent consistency models (Luo et al. 2023, arXiv:2310.04378, alg. 3); dpmpp_sde and what ends in _a: k-diffusion.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from ldm.denoiser import Denoiser, eps_from_x0

# ---------------------------------------------------------------------------------------------------------------------
# Deterministic


def euler_step(x: Array, x0: Array, sigma: Array, sigma_next: Array) -> Array:
    """One straight line along the ODE: EDM alg. 1, lines 4 and 5. First order."""
    slope = eps_from_x0(x, x0, sigma)
    return x + (sigma_next - sigma) * slope


def heun_step(denoise: Denoiser, x: Array, x0: Array, sigma: Array, sigma_next: Array) -> Array:
    """Euler, then again with the mean of the slopes at both ends: EDM alg. 1, lines 4-8. Second order.

    The step to sigma 0 stays an Euler step, and the network is not asked a second time.
    """
    slope = eps_from_x0(x, x0, sigma)
    guess = x + (sigma_next - sigma) * slope

    def corrected() -> Array:
        slope_next = eps_from_x0(guess, denoise(guess, sigma_next), sigma_next)
        return x + (sigma_next - sigma) * (slope + slope_next) / 2

    return jax.lax.cond(sigma_next > 0, corrected, lambda: guess)


def halfway(sigma: Array, sigma_next: Array) -> Array:
    """The middle of a step in log(sigma)."""
    return jnp.sqrt(sigma * sigma_next)


def dpm2_step(denoise: Denoiser, x: Array, x0: Array, sigma: Array, sigma_next: Array) -> Array:
    """The slope halfway, over the whole step: DPM-Solver-2, alg. 1. Second order; Euler to sigma 0."""

    def midpoint() -> Array:
        middle = halfway(sigma, sigma_next)
        guess = euler_step(x, x0, sigma, middle)
        return x + (sigma_next - sigma) * eps_from_x0(guess, denoise(guess, middle), middle)

    return jax.lax.cond(sigma_next > 0, midpoint, lambda: euler_step(x, x0, sigma, sigma_next))


def dpmpp_2s_step(denoise: Denoiser, x: Array, x0: Array, sigma: Array, sigma_next: Array) -> Array:
    """The x0 halfway, over the whole step: DPM-Solver++(2S), alg. 1 with r = 1/2. Second order; Euler to sigma 0."""

    def midpoint() -> Array:
        middle = halfway(sigma, sigma_next)
        return euler_step(x, denoise(euler_step(x, x0, sigma, middle), middle), sigma, sigma_next)

    return jax.lax.cond(sigma_next > 0, midpoint, lambda: euler_step(x, x0, sigma, sigma_next))


# ---------------------------------------------------------------------------------------------------------------------
# With fresh noise


def ancestral_sigmas(sigma: Array, sigma_next: Array, eta: Array) -> tuple[Array, Array]:
    """Splits a step to sigma_next: go down to `down` without noise, then add `up` of fresh noise. 0 <= eta <= 1.

    up^2 + down^2 = sigma_next^2, and with r = sigma_next / sigma,
        up = eta * sigma_next * sqrt(1 - r^2)                                                                     (2)
    This is DDIM's sigma_t(eta), eq. (16): eta^2 * (1-a')/(1-a) * (1 - a/a') is a variance of the VP form; divided by a'
    for sigma space, with a = 1/(1 + sigma^2) and a' = 1/(1 + sigma_next^2), it becomes (2). eta = 0: no noise;
    eta = 1: down = sigma_next^2 / sigma. Written so that neither loses digits: no difference of near squares.
    """
    r = sigma_next / sigma
    up = eta * sigma_next * jnp.sqrt((1 - r) * (1 + r))
    down = sigma_next * jnp.sqrt((1 - eta) * (1 + eta) + (eta * r) ** 2)
    return down, up


def ancestral_step(
    go: Callable[[Array], Array], sigma: Array, sigma_next: Array, noise: Callable[[], Array], eta: Array
) -> Array:
    """go(down), a deterministic step to there, then noise. Its result never converges as steps are added."""
    down, up = ancestral_sigmas(sigma, sigma_next, eta)
    return go(down) + up * noise()


def ddim_step(x: Array, x0: Array, sigma: Array, sigma_next: Array, noise: Array, eta: Array) -> Array:
    """ "predicted x0" + "direction pointing to x" + "random noise": DDIM eq. (12), divided by sqrt(alpha_bar)."""
    down, up = ancestral_sigmas(sigma, sigma_next, eta)
    return x0 + down * eps_from_x0(x, x0, sigma) + up * noise


def ddpm_step(x: Array, x0: Array, sigma: Array, sigma_next: Array, noise: Array) -> Array:
    """Draws from the posterior q(x_next | x, x0): DDPM eq. (6, 7) in sigma space, with the smaller variance.

    Two Gaussian observations of x_next, one from x0 (variance sigma_next^2), one from x (sigma^2 - sigma_next^2).
    """
    share = (sigma_next / sigma) ** 2
    mean = (1 - share) * x0 + share * x
    return mean + sigma_next * jnp.sqrt(1 - share) * noise


def dpmpp_sde_step(
    denoise: Denoiser,
    x: Array,
    x0: Array,
    sigma: Array,
    sigma_next: Array,
    noise: Callable[[int, Array, Array], Array],
    eta: Array,
) -> Array:
    """DPM-Solver++(2S) along the SDE: an ancestral step halfway, then one over the whole by the x0 found there.

    noise(part, start, stop): unit noise of the way from sigma = start to stop; both ways begin at sigma.
    """

    def midpoint() -> Array:
        middle = halfway(sigma, sigma_next)
        step = lambda part, x0, to: ancestral_step(
            lambda down: euler_step(x, x0, sigma, down), sigma, to, lambda: noise(part, sigma, to), eta
        )
        return step(1, denoise(step(0, x0, middle), middle), sigma_next)

    return jax.lax.cond(sigma_next > 0, midpoint, lambda: euler_step(x, x0, sigma, sigma_next))


def lcm_step(x0: Array, sigma_next: Array, noise: Array) -> Array:
    """The prediction, noised anew to sigma_next: alg. 3 of latent consistency models.

    The paper's boundary scalings (c_skip, c_out) differ from 0 and 1 by less than 1e-5 at every timestep that its
    schedule visits (t >= 19), and are left out.
    """
    return x0 + sigma_next * noise
