"""Classifier-free guidance: away from the negative prompt's prediction, towards the positive one's.

Two conventions are in use for its strength. Classifier-free guidance was published with w:  (1 + w) * c - w * u  (0 is
plain conditional sampling); Imagen and every Stable Diffusion tool use the scale = 1 + w:  u + scale * (c - u)  (1 is
plain conditional sampling). This project uses the scale; `scale_from_w` and `w_from_scale` convert.

Guiding x0, the noise or v is the same thing: each is an affine function of the others with the same coefficients for
both predictions, and the two weights, scale and 1 - scale, add up to 1.

Shape letters: B batch, H W latent, C channels.
Sources: Ho & Salimans 2022, eq. (6); Saharia et al. 2022 (Imagen), eq. (7).
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from ldm.denoiser import Denoiser

Pair = Callable[[Array, Array], tuple[Array, Array]]  # (x [B,H,W,C], sigma []) -> x0 negative, x0 positive [B,H,W,C]


def scale_from_w(w: float) -> float:
    """Guidance scale from the paper's w: 1 + w."""
    return 1 + w


def w_from_scale(scale: float) -> float:
    """The paper's w from the guidance scale: scale - 1."""
    return scale - 1


def paired(denoise: Denoiser) -> Pair:
    """Both predictions from ONE call at twice the batch. `denoise` holds 2B conditions: B negative, then B positive."""

    def pair(x: Array, sigma: Array) -> tuple[Array, Array]:
        negative, positive = jnp.split(denoise(jnp.concatenate([x, x]), sigma), 2)
        return negative, positive

    return pair


def guide(negative: Array, positive: Array, scale: Array) -> Array:
    """scale * positive + (1 - scale) * negative: Ho & Salimans eq. (6) with scale = 1 + w.

    Written so, scale 0 gives the negative and scale 1 the positive exactly, to the last bit: one term is multiplied by
    1 and the other by 0. (negative + scale * (positive - negative) rounds at scale 1.)
    scale: [] or [B,1,1,1], a strength per image.
    """
    return scale * positive + (1 - scale) * negative


def cfg(pair: Pair, scale: Array) -> Denoiser:
    """The guided denoiser: `guide` applied to a pair of predictions. scale may be traced."""

    def denoise(x: Array, sigma: Array) -> Array:
        negative, positive = pair(x, sigma)
        return guide(negative, positive, scale)

    return denoise
