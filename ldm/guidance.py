"""Guidance: denoisers made out of denoisers, so that they compose.

Classifier-free guidance goes away from the negative prompt's prediction, towards the positive one's. Two conventions
are in use for its strength. It was published with w:  (1 + w) * c - w * u  (0 is plain conditional sampling, -1
unconditional); Imagen and every Stable Diffusion tool use the scale beta = 1 + w:  u + beta * (c - u)  (1 is plain
conditional sampling). This project uses the scale; `scale_from_w` and `w_from_scale` convert.

Guiding x0, the noise or v is the same thing: each is an affine function of the others with the same coefficients for
both predictions, and the two weights, scale and 1 - scale, add up to 1. Rescaling is not: it is of a network's output.

Shape letters: B batch, H W latent, C channels.
Sources: Ho & Salimans 2022, eq. (6); Saharia et al. 2022 (Imagen), eq. (7) and section 2.3; Dhariwal & Nichol 2021
(arXiv:2105.05233), section 4; Lin et al. 2023 (arXiv:2305.08891), eq. (14)-(16); Kynkäänniemi et al. 2024
(arXiv:2404.07724), eq. (5); Armandpour et al. 2023 (Perp-Neg, arXiv:2304.04968), eq. (7).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ldm.denoiser import Denoiser, output_from_x0, predict_x0

Pair = Callable[[Array, Array], tuple[Array, Array]]  # (x [B,H,W,C], sigma []) -> x0 negative, x0 positive [B,H,W,C]
Run = Callable[[Array, Any], tuple[Array, Any]]  # (x [B,H,W,C], memory: arrays [B,...]) -> the same for the next call
LogProb = Callable[[Array, Array], Array]  # (x [B,H,W,C], sigma []) -> log p(y | x at sigma) of each [B]


class Guidance(NamedTuple):
    """The run-time numbers of classifier-free guidance, a pytree.

    scale      beta: 1 plain conditional sampling, 0 unconditional
    rescale    phi of Lin et al., 0..1: how far the guided prediction gets back the conditional one's spread
    low, high  the noise levels between which guidance is on: low < sigma <= high; elsewhere the scale is 1
    """

    scale: Array | float = 7.5
    rescale: Array | float = 0.0
    low: Array | float = 0.0
    high: Array | float = float("inf")


def scale_from_w(w: float) -> float:
    """Guidance scale from the paper's w: 1 + w."""
    return 1 + w


def w_from_scale(scale: float) -> float:
    """The paper's w from the guidance scale: scale - 1."""
    return scale - 1


# ---------------------------------------------------------------------------------------------------------------------
# Without a classifier


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


def rescaled(guided: Array, positive: Array, share: Array) -> Array:
    """Lin et al. eq. (14)-(16): `share` of the way to the guided output with the spread of the conditional one.

    Both are network outputs (noise or v) [B,H,W,C]; the spread is each image's own. share [] 0..1.
    """
    spread = lambda y: y.std(axis=(1, 2, 3), keepdims=True)
    return share * guided * (spread(positive) / spread(guided)) + (1 - share) * guided


def cfg(pair: Pair, guidance: Guidance | Array | float, prediction: str = "epsilon") -> Denoiser:
    """The guided denoiser: `guide` applied to a pair of predictions; then, where asked, `rescaled`.

    guidance: its numbers, or the scale alone; all may be traced. prediction: what the network answers, for rescaling.
    """
    g = guidance if isinstance(guidance, Guidance) else Guidance(guidance)

    def denoise(x: Array, sigma: Array) -> Array:
        negative, positive = pair(x, sigma)
        guided = guide(negative, positive, jnp.where((sigma > g.low) & (sigma <= g.high), g.scale, 1.0))
        answers = (output_from_x0(prediction, x0, x, sigma) for x0 in (guided, positive))
        again = predict_x0(prediction, rescaled(*answers, g.rescale), x, sigma)
        return jnp.where(jnp.asarray(g.rescale) > 0, again, guided)

    return denoise


def needs_negative(guidance: Guidance, sigma: Array) -> Array:
    """Whether the negative prompt counts at this level, [] bool: guidance is on, and its scale is not 1."""
    return (sigma > guidance.low) & (sigma <= guidance.high) & (jnp.asarray(guidance.scale) != 1)


def positive_alone(run: Run, x: Array, memory: Any, needed: Array) -> tuple[Array, Any]:
    """``run`` of a batch of pairs [2B, ...]; where the negative half is not needed, of the positive half alone.

    That half's answer then stands in both places, of the output and of the memory: with a weight of 0 it does not
    matter what the negative one is. needed [] bool is a run-time value, and only one of the two is computed.
    """

    def alone(x: Array, memory: Any) -> tuple[Array, Any]:
        half = lambda array: array[len(array) // 2 :]
        return jax.tree.map(lambda array: jnp.concatenate([array, array]), run(half(x), jax.tree.map(half, memory)))

    return jax.lax.cond(needed, run, alone, x, memory)


def perpendicular_negative(null: Array, positive: Array, negative: Array, scale: Array, weight: Array) -> Array:
    """Perp-Neg eq. (7): of the negative prompt's direction only what is perpendicular to the positive one's counts.

    The three predictions [B,H,W,C] are of no prompt, the prompt and the negative one. weight >= 0 of the latter.
    """
    toward, away = positive - null, negative - null
    dot = lambda a, b: (a * b).sum(axis=(1, 2, 3), keepdims=True)
    along = dot(away, toward) / jnp.maximum(dot(toward, toward), jnp.finfo(jnp.float32).tiny)
    return null + scale * (toward - weight * (away - along * toward))


# ---------------------------------------------------------------------------------------------------------------------
# With something else


def classifier_guided(denoise: Denoiser, log_prob: LogProb, scale: Array) -> Denoiser:
    """Classifier guidance: the score of p(x) p(y | x)^scale, Dhariwal & Nichol section 4.2 (their eq. 14, in x0).

    The score is (x0 - x) / sigma^2, so x0 moves by scale * sigma^2 * d log p(y | x) / dx. scale 0 is `denoise`;
    with p(y | x) = p(x | y) p(y) / p(x), scale 1 is the conditional denoiser: classifier-free guidance at scale 1.
    """

    def guided(x: Array, sigma: Array) -> Array:
        slope = jax.grad(lambda x: log_prob(x, sigma).sum())(x)
        return denoise(x, sigma) + scale * sigma**2 * slope

    return guided


def dynamic_threshold(denoise: Denoiser, share: Array, limit: float = 1.0) -> Denoiser:
    """Imagen, section 2.3: if more than 1 - share of an image's x0 lies outside of limit, all of it is shrunk to fit.

    For models of pixels in [-1, 1]; latents have no such limit, so choose one that they rarely pass. share 0..1, near
    1; 1 keeps the largest value within.
    """

    def clipped(x: Array, sigma: Array) -> Array:
        x0 = denoise(x, sigma)
        edge = jnp.quantile(jnp.abs(x0), share, axis=(1, 2, 3), keepdims=True)
        edge = jnp.maximum(edge, limit)
        return jnp.clip(x0, -edge, edge) * (limit / edge)

    return clipped


def keep_known(denoise: Denoiser, known: Array, mask: Array) -> Denoiser:
    """Inpainting with any model: where mask is 0 the clean sample is known, so that is the prediction there.

    known [B,H,W,C], mask [B,H,W,1] in 0..1, 1 to paint. A run that starts as known + sigma * noise there stays so along
    the ODE, the same noise at every level: what the network sees around the hole is what it was trained on.
    """
    return lambda x, sigma: mask * denoise(x, sigma) + (1 - mask) * known
