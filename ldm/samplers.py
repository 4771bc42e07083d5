"""Samplers: from noise to a sample by calling a denoiser at falling noise levels.

All work in sigma space, x = x0 + sigma * noise, where the probability-flow ODE is as simple as it gets,
    dx/dsigma = (x - x0(x, sigma)) / sigma                                                                        (1)
and begin each step with the prediction x0 = denoise(x, sigma). A step is a pure function of it that reads like its
paper; one loop drives them all. What falls out of this form, and the tests prove:

    ddim (eta = 0)  is  euler                             dpmpp_2m  is  euler with x0 extrapolated from the last two
    ddim (eta)      is  euler_a (eta)                     ddpm      is  ddim (eta = 1)

What then differs between those names in public tools is only where the levels lie: see `ldm.schedule.levels`.

Shape letters: B batch, H W latent, C channels, M most steps that the compiled program can take.
Sources: DDPM (Ho et al. 2020, eq. 6, 7); DDIM (Song et al. 2021, eq. 12, 16); EDM (Karras et al. 2022, alg. 1; eq. 1);
DPM-Solver++ (Lu et al. 2022, alg. 2); euler_a: k-diffusion's sample_euler_ancestral.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ldm.denoiser import Denoiser, eps_from_x0, to_variance_preserving
from ldm.schedule import NoiseSchedule, check_name, initial_scale, levels

NoiseAt = Callable[[Array], Array]  # (step []) -> unit noise [B,H,W,C]
START = 0xFFFFFFFF  # the step number whose noise is the starting one: no step of a run has it


# ---------------------------------------------------------------------------------------------------------------------
# The steps: x [B,H,W,C] at sigma [] -> x at sigma_next [] (0 allowed). x0 is denoise(x, sigma).


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


def euler_a_step(x: Array, x0: Array, sigma: Array, sigma_next: Array, noise: Array, eta: Array) -> Array:
    """Euler down to below sigma_next, then fresh noise up to it. Its result never converges as steps are added."""
    down, up = ancestral_sigmas(sigma, sigma_next, eta)
    return euler_step(x, x0, sigma, down) + up * noise


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


def dpmpp_2m_step(x: Array, x0: Array, x0_last: Array, sigma: Array, sigma_next: Array, sigma_last: Array) -> Array:
    """DPM-Solver++(2M): DPM-Solver++ alg. 2, with lambda = -log(sigma). Second order, one network call a step.

    x0_last was predicted one step earlier, at sigma_last. sigma_last = inf (no earlier step) and sigma_next = 0 both
    give a first-order step. Tools that lower the order at the end of short runs do the same: their end is sigma 0.
    """
    lowest = jnp.finfo(jnp.float32).tiny
    h = jnp.log(sigma / jnp.maximum(sigma_next, lowest))
    h_last = jnp.log(sigma_last / sigma)
    weight = jnp.where(sigma_next > 0, h / (2 * h_last), 0.0)
    ahead = x0 + weight * (x0 - x0_last)
    r = sigma_next / sigma  # exp(-h)
    return r * x + (1 - r) * ahead


# ---------------------------------------------------------------------------------------------------------------------
# The loop


class Step(NamedTuple):
    """All that a sampler may look at in one step."""

    denoise: Denoiser
    x: Array
    x0: Array
    sigma: Array
    sigma_next: Array
    x0_last: Array
    sigma_last: Array
    noise: Array
    eta: Array


class Sampler(NamedTuple):
    """A sampler: its step; its eta where it has one (None: no such knob); network calls a step."""

    advance: Callable[[Step], Array]
    eta: float | None = None
    calls: int = 1


SAMPLERS = {
    "ddim": Sampler(lambda s: ddim_step(s.x, s.x0, s.sigma, s.sigma_next, s.noise, s.eta), eta=0.0),
    "ddpm": Sampler(lambda s: ddpm_step(s.x, s.x0, s.sigma, s.sigma_next, s.noise)),
    "euler": Sampler(lambda s: euler_step(s.x, s.x0, s.sigma, s.sigma_next)),
    "euler_a": Sampler(lambda s: euler_a_step(s.x, s.x0, s.sigma, s.sigma_next, s.noise, s.eta), eta=1.0),
    "heun": Sampler(lambda s: heun_step(s.denoise, s.x, s.x0, s.sigma, s.sigma_next), calls=2),
    "dpmpp_2m": Sampler(lambda s: dpmpp_2m_step(s.x, s.x0, s.x0_last, s.sigma, s.sigma_next, s.sigma_last)),
}


class Plan(NamedTuple):
    """The run-time numbers of one sampling run, a pytree: none of them is compiled in."""

    levels: Array  # [M+1] float32, falling; those after `steps` are not visited
    steps: Array  # [] int32, 1..M
    eta: Array  # [] float32, 0..1
    scale: Array  # [] float32: x starts as scale * unit noise


class Path(NamedTuple):
    """Every state of a run, in sigma space; entries past its number of steps are 0."""

    x: Array  # [M+1,B,H,W,C], x[k] at levels[k]
    x0: Array  # [M,B,H,W,C], the prediction made at levels[k]


def make_plan(
    schedule: NoiseSchedule, sampler: str, spacing: str, steps: int, eta: float | None = None, most: int | None = None
) -> Plan:
    """The plan of a run of `steps` steps, room for `most` (default: steps). Host side. eta None: the sampler's own.

    Raises ValueError: names unknown, steps not in 1..min(T, most), eta outside 0..1 or given to a sampler without one.
    """
    own_eta = SAMPLERS[check_name("sampler", sampler, SAMPLERS)].eta
    if eta is not None and (own_eta is None or not 0 <= eta <= 1):
        reason = f"sampler {sampler!r} has no eta" if own_eta is None else "eta must be between 0 and 1"
        raise ValueError(f"{reason}, got {eta}")
    visited = levels(schedule, sampler, spacing, steps)
    room = steps if most is None else most
    if steps > room:
        raise ValueError(f"steps must be at most {room}, got {steps}")
    return Plan(
        levels=np.pad(visited, (0, room - steps)),
        steps=np.int32(steps),
        eta=np.float32(own_eta or 0.0 if eta is None else eta),
        scale=np.float32(initial_scale(sampler, spacing, float(visited[0]))),
    )


def _advance(sampler: Sampler, denoise: Denoiser, plan: Plan, noise_at: NoiseAt, on_step: Callable | None) -> Callable:
    """(i, (x, last x0, last sigma)) -> the same one step later: the body of the loops below."""
    visited = jnp.asarray(plan.levels)

    def advance(i: Array, carry: tuple) -> tuple:
        x, x0_last, sigma_last = carry
        sigma, sigma_next = visited[i], visited[i + 1]
        x0 = denoise(x, sigma)
        x = sampler.advance(Step(denoise, x, x0, sigma, sigma_next, x0_last, sigma_last, noise_at(i), plan.eta))
        if on_step is not None:
            jax.debug.callback(on_step, i + 1, plan.steps)
        return x, x0, sigma

    return advance


def _start(x: Array) -> tuple:
    x = jnp.asarray(x, jnp.float32)
    return x, jnp.zeros_like(x), jnp.float32(jnp.inf)  # no earlier prediction: as if made at infinite noise


def sample(
    sampler: Sampler, denoise: Denoiser, x: Array, plan: Plan, noise_at: NoiseAt, on_step: Callable | None = None
) -> Array:
    """Runs a sampler. Call it inside jit; a change of plan (at equal M), seed or conditions recompiles nothing.

    x [B,H,W,C] float32: plan.scale * unit noise. noise_at(i): fresh unit noise [B,H,W,C] for step i = 0..steps-1.
    on_step(done, steps): called on the host as steps are made (a progress bar).
    Returns [B,H,W,C] float32 in the VP form, x / sqrt(1 + sigma_end^2): x itself when the last level is 0.
    """
    body = _advance(sampler, denoise, plan, noise_at, on_step)
    x, _, _ = jax.lax.fori_loop(0, plan.steps, body, _start(x))
    return to_variance_preserving(x, jnp.asarray(plan.levels)[plan.steps])


def sample_path(
    sampler: Sampler, denoise: Denoiser, x: Array, plan: Plan, noise_at: NoiseAt, on_step: Callable | None = None
) -> tuple[Array, Path]:
    """As `sample`, and also returns every state and prediction on the way."""
    body = _advance(sampler, denoise, plan, noise_at, on_step)

    def record(i: Array, carry: tuple) -> tuple:
        state, path = carry
        state = body(i, state)
        return state, Path(path.x.at[i + 1].set(state[0]), path.x0.at[i].set(state[1]))

    state, most = _start(x), len(plan.levels) - 1
    empty = jnp.zeros((most + 1, *x.shape), jnp.float32)
    start = state, Path(empty.at[0].set(state[0]), empty[:most])
    (x, _, _), path = jax.lax.fori_loop(0, plan.steps, record, start)
    return to_variance_preserving(x, jnp.asarray(plan.levels)[plan.steps]), path


# ---------------------------------------------------------------------------------------------------------------------
# Noise per image


def image_keys(seed: Array, indices: Array) -> Array:
    """One random key per image: fold_in(key(seed), index). seed [] uint32 or int32, indices [B] integer -> keys [B]."""
    return jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), index))(indices)


def unit_noise(keys: Array, step: Array, shape: tuple[int, ...]) -> Array:
    """Unit Gaussian noise of each image at a step: fold_in(key, step). keys [B], shape [H,W,C] -> float32 [B,H,W,C].

    It depends on seed, image index and step only: an image is the same alone, in any batch, on any device.
    The start is unit_noise(keys, START, shape).
    """
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape, jnp.float32))(keys)
