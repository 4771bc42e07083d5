"""Steps that remember: earlier predictions make a later step better at no further call of the network.

They see the last three steps, the newest first. A step that never was has sigma = inf, and every formula below drops
its term then: a run begins with lower orders without a branch. So does a step to sigma 0 fall back to first order.

With lambda = -log(sigma), h = lambda_next - lambda, r = sigma_next / sigma = exp(-h).
Shapes: x, x0, noise [B,H,W,C]; sigma, sigma_next, eta [].
Sources: DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095, alg. 2; section 3.4 and appendix for its SDE form); its third
order, and linear multistep in sigma: k-diffusion; PLMS (Liu et al. 2022, arXiv:2202.09778, eq. 12); UniPC (Zhao et al.
2023, arXiv:2302.04867, alg. 1 and 2, with B(h) = e^h - 1).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ldm.denoiser import Denoiser, eps_from_x0
from ldm.samplers.one_step import heun_step

KEPT = 3
GAUSS = (0.5 - 3**0.5 / 6, 0.5 + 3**0.5 / 6)  # two points of Gauss-Legendre on 0..1: exact for cubics
ADAMS_BASHFORTH = np.array(  # row k: k earlier slopes; the newest first
    [[1, 0, 0, 0], [3 / 2, -1 / 2, 0, 0], [23 / 12, -16 / 12, 5 / 12, 0], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
)


class History(NamedTuple):
    """The last KEPT steps, newest first: ``x``, ``x0`` [KEPT,B,H,W,C]; ``sigma`` [KEPT], inf where there was none."""

    x: Array
    x0: Array
    sigma: Array

    def slope(self, k: int) -> Array:
        """The ODE's slope k + 1 steps ago; 0 where there was none."""
        return jnp.where(jnp.isfinite(self.sigma[k]), eps_from_x0(self.x[k], self.x0[k], self.sigma[k]), 0.0)


def no_history(x: Array) -> History:
    """Of a run that begins at x."""
    nothing = jnp.zeros((KEPT, *x.shape), x.dtype)
    return History(nothing, nothing, jnp.full(KEPT, jnp.inf, x.dtype))


def remember(past: History, x: Array, x0: Array, sigma: Array) -> History:
    """The history one step later."""
    push = lambda new, old: jnp.concatenate([new[None].astype(old.dtype), old[:-1]])
    return History(push(x, past.x), push(x0, past.x0), push(sigma, past.sigma))


def length(sigma: Array, sigma_next: Array) -> Array:
    """h of a step; large but finite to sigma 0; inf from no step at all."""
    lowest = jnp.finfo(jnp.float32).tiny
    h = jnp.log(sigma / jnp.maximum(sigma_next, lowest))
    return jnp.where(jnp.isfinite(sigma), h, jnp.inf)


# ---------------------------------------------------------------------------------------------------------------------
# Polynomials through slopes


def lms_step(x: Array, x0: Array, sigma: Array, sigma_next: Array, past: History) -> Array:
    """The polynomial in sigma through the last four slopes, integrated over the step: Adams-Bashforth's idea."""
    nodes = jnp.concatenate([sigma[None], past.sigma])
    slopes = [eps_from_x0(x, x0, sigma), *(past.slope(k) for k in range(KEPT))]
    moved = x
    for j, slope in enumerate(slopes):
        weight = sum(_lagrange(nodes, j, sigma + place * (sigma_next - sigma)) for place in GAUSS) / 2
        moved = moved + (sigma_next - sigma) * weight * slope
    return moved


def _lagrange(nodes: Array, j: int, at: Array) -> Array:
    """The polynomial that is 1 at node j and 0 at the other finite ones; 0 if node j is infinite."""
    value = jnp.ones_like(at)
    for k in range(KEPT + 1):
        if k != j:
            factor = (at - nodes[k]) / (nodes[j] - nodes[k])
            value = value * jnp.where(jnp.isfinite(nodes[k]), factor, 1.0)
    return jnp.where(jnp.isfinite(nodes[j]), value, 0.0)


def plms_step(denoise: Denoiser, x: Array, x0: Array, sigma: Array, sigma_next: Array, past: History) -> Array:
    """Pseudo linear multistep: Adams-Bashforth's weights as if steps were equal, PLMS eq. (12); Heun for the first."""
    known = jnp.isfinite(past.sigma).sum()
    weights = jnp.asarray(ADAMS_BASHFORTH, x.dtype)[known]
    slopes = [eps_from_x0(x, x0, sigma), *(past.slope(k) for k in range(KEPT))]
    mean = sum(weight * slope for weight, slope in zip(weights, slopes, strict=True))
    further = lambda: x + (sigma_next - sigma) * mean
    return jax.lax.cond(known > 0, further, lambda: heun_step(denoise, x, x0, sigma, sigma_next))


# ---------------------------------------------------------------------------------------------------------------------
# Polynomials through predictions, in log(sigma)


def dpmpp_2m_step(
    x: Array, x0: Array, sigma: Array, sigma_next: Array, past: History, noise: Array | float = 0.0, eta: Array = 0.0
) -> Array:
    """DPM-Solver++(2M): Euler with x0 extrapolated from the last two to the middle of the step: alg. 2.

    eta > 0: along an SDE, with fresh noise (SDE-DPM-Solver++ 2M for eta = 1). Second order in x0, one call a step.
    """
    h, h_last = length(sigma, sigma_next), length(past.sigma[0], sigma)
    weight = jnp.where(sigma_next > 0, h / (2 * h_last), 0.0)
    ahead = x0 + weight * (x0 - past.x0[0])
    kept, fresh = _shares(sigma, sigma_next, eta)
    return kept * x + (1 - kept) * ahead + fresh * noise


def _shares(sigma: Array, sigma_next: Array, eta: Array) -> tuple[Array, Array]:
    """What is left of x over a step, exp(-(1 + eta) h), and the spread of the noise that comes in."""
    r = sigma_next / sigma
    return r ** (1 + eta), sigma_next * jnp.sqrt(1 - r ** (2 * eta))


def dpmpp_3m_sde_step(
    x: Array, x0: Array, sigma: Array, sigma_next: Array, past: History, noise: Array, eta: Array
) -> Array:
    """The quadratic through the last three predictions, along the SDE: k-diffusion's DPM-Solver++(3M) SDE."""
    h = length(sigma, sigma_next)
    back0, back1 = length(past.sigma[0], sigma) / h, length(past.sigma[1], past.sigma[0]) / h
    change0, change1 = (x0 - past.x0[0]) / back0, (past.x0[0] - past.x0[1]) / back1
    bend = jnp.where(jnp.isfinite(back1), (change0 - change1) / (back0 + back1), 0.0)
    first, second = change0 + jnp.where(jnp.isfinite(back1), bend * back0, 0.0), bend
    full = (1 + eta) * h
    phi2 = jnp.expm1(-full) / full + 1
    phi3 = phi2 / full - 0.5
    kept, fresh = _shares(sigma, sigma_next, eta)
    curved = jnp.where(sigma_next > 0, phi2 * first - phi3 * second, 0.0)
    return kept * x + (1 - kept) * x0 + curved + fresh * noise


def unipc_correct(x: Array, x0: Array, sigma: Array, past: History) -> Array:
    """UniC-2 (UniPC alg. 1): the step that led to x, taken again now that x0 at its end is known; x if none did.

    The predictor of this order, UniP-2, is DPM-Solver++(2M).
    """
    start, x0_start = past.sigma[0], past.x0[0]
    h, r = length(start, sigma), sigma / start
    back = -length(past.sigma[1], start) / h
    change, change_end = (past.x0[1] - x0_start) / back, x0 - x0_start
    first = jnp.expm1(-h)
    phi2 = first / -h - 1
    phi3 = phi2 / -h - 0.5
    weight = (phi2 - 2 * phi3) / first / (1 - back)  # of the two equations, weight + end = phi2 / first, …
    second_order = jnp.isfinite(past.sigma[1])
    weight = jnp.where(second_order, weight, 0.0)
    end = jnp.where(second_order, phi2 / first - weight, 0.5)
    better = r * past.x[0] - first * (x0_start + weight * jnp.where(second_order, change, 0.0) + end * change_end)
    return jnp.where(jnp.isfinite(start), better, x)
