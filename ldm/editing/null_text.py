"""Null-text inversion: an exact way back from a picture's noise, at the guidance that editing needs.

DDIM inversion at guidance 1 gives a path of latents from the picture up to noise. Going down it with strong guidance
leaves the path; but the empty prompt's context is free to be learned, one for each step, so that each step ends where
the path was. Only those contexts change, never the model.

Shapes: N pictures, h w latent size, Z latent channels, S tokens, E width of the context, n steps.
Source: "Null-text Inversion for Editing Real Images using Guided Diffusion Models" (arXiv:2211.09794), algorithm 1.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ldm.bundle import Bundle, Configs, module
from ldm.conditioning import Conditioning
from ldm.denoiser import Denoiser, from_network, to_variance_preserving
from ldm.generate import encode_prompts
from ldm.guidance import guide
from ldm.inputs import number, texts, whole
from ldm.inversion import latents_of_each, rising_plan
from ldm.samplers.one_step import euler_step

GOOD_ENOUGH = 1e-5  # mean square error at which the paper's algorithm stops early, plus GROWTH for each step made
GROWTH = 2e-5


class NullText(NamedTuple):
    """What ``generate`` needs to draw the pictures again: ``latents`` [N, h, w, Z] and ``context`` [n, 2N, S, E]."""

    latents: np.ndarray
    context: np.ndarray


def null_text(
    bundle: Bundle,
    image: Any,
    prompts: str | Sequence[str],
    steps: int = 50,
    guidance: float | None = None,
    iterations: int = 10,
    learning_rate: float = 1e-2,
) -> NullText:
    """Learns the empty contexts with which the pictures [N, H, W, 3] uint8 (or one) come back at this guidance.

    Draw them by ``generate(bundle, prompts, steps=steps, guidance=guidance, latents=..., context=...)`` with sampler
    "ddim" and spacing "leading"; edit by other prompts in the second half of the context's rows.
    Raises ValueError as ``generate`` does.
    """
    bundle.require("unet", "text", "vae")
    prompts = texts("prompts", prompts)
    steps = whole("steps", steps, 1, bundle.configs.schedule.train_steps)
    guidance = np.float32(number("guidance", bundle.guidance if guidance is None else guidance))
    z = latents_of_each(bundle, image, len(prompts))
    context = encode_prompts(bundle, prompts)
    plan = rising_plan(bundle.configs.schedule, "leading", steps)
    rising = np.asarray(plan.levels)[: steps + 1]
    rate = np.float32(number("learning_rate", learning_rate))
    params, rounds = {"unet": bundle.params["unet"]}, np.int32(whole("iterations", iterations, 0, 10_000))
    noise, nulls = _learn(params, z, context, rising, guidance, rate, rounds, configs=bundle.configs)
    spoken = np.broadcast_to(context[len(prompts) :], (steps, *context[len(prompts) :].shape))
    return NullText(np.asarray(noise), np.concatenate([np.asarray(nulls, np.float32), spoken], axis=1))


@functools.partial(jax.jit, static_argnames=("configs",))
def _learn(
    params: Any, z: Array, context: Array, rising: Array, scale: Array, rate: Array, rounds: Array, *, configs: Configs
) -> tuple[Array, Array]:
    """-> unit noise [N, h, w, Z], and the contexts of nothing [n, N, S, E], in the order of sampling."""
    unet = module(configs, params, "unet")
    dtype = unet.conv_out.kernel.dtype
    null, spoken = jnp.split(context, 2)

    def under(text: Array) -> Denoiser:
        cond = Conditioning(text.astype(dtype))
        return from_network(lambda x, t: unet(x, t, cond), configs.schedule, dtype)

    def up(x: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
        after = euler_step(x, under(spoken)(x, pair[0]), *pair)
        return after, x

    top, path = jax.lax.scan(up, z * jnp.sqrt(1 + rising[0] ** 2), (rising[:-1], rising[1:]))

    def down(carry: tuple, step: tuple) -> tuple:
        x, null = carry
        sigma, sigma_next, target, made = step
        positive = under(spoken)(x, sigma)
        ends = lambda null: euler_step(x, guide(under(null)(x, sigma), positive, scale), sigma, sigma_next)
        loss = lambda null: jnp.mean(to_variance_preserving(ends(null) - target, sigma_next) ** 2)
        null = _descend(loss, null, optax.adam(rate * (1 - made / 100)), rounds, GOOD_ENOUGH + GROWTH * made)
        return (ends(null), null), null

    falling = (rising[:0:-1], rising[-2::-1], path[::-1], jnp.arange(len(rising) - 1, dtype=jnp.float32))
    _, nulls = jax.lax.scan(down, (top, null), falling)
    return to_variance_preserving(top, rising[-1]), nulls


def _descend(loss: Any, null: Array, optimiser: Any, rounds: Array, enough: Array) -> Array:
    """``null`` after ``rounds`` steps, which stand still once the loss is below ``enough``."""

    def go(_: int, carry: tuple) -> tuple:
        null, state = carry
        value, slope = jax.value_and_grad(loss)(null)
        change, state = optimiser.update(slope, state)
        return null + jnp.where(value < enough, 0.0, change), state

    return jax.lax.fori_loop(0, rounds, go, (null, optimiser.init(null)))[0]
