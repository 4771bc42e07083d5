"""The compiled programs between token ids and pixels.

Shapes: N pictures, H W picture size, h w latent size, Z latent channels; V texts that follow one another during a run,
K chunks of a text, L tokens of a chunk, S = K L tokens of a text, E width of the context.

Source: "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv:2112.10752), figure 3:

    text -> context;  noise, and a picture's latent -> sampler(guided U-Net) -> latent -> decoder -> picture

Only shapes, the sampler's name, the way to draw noise and the model's configuration are compiled in. All that
:class:`Inputs` holds are run-time values: changing them compiles nothing.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ldm import progress as progress_bar
from ldm.bundle import Configs, module
from ldm.conditioning import Conditioning
from ldm.denoiser import Denoiser, from_network
from ldm.guidance import Guidance, cfg, keep_known, paired
from ldm.models.autoencoder import to_uint8
from ldm.models.taesd import TinyVAEConfig
from ldm.prompts import joined, weigh
from ldm.samplers import (
    SAMPLERS,
    START,
    NoiseAt,
    Plan,
    brownian_noise,
    image_keys,
    noise_per_step,
    sample,
    unit_noise,
)

NOISES: dict[str, Callable[[Array, tuple[int, ...], Plan], NoiseAt]] = {
    "steps": lambda keys, shape, plan: noise_per_step(keys, shape),
    "brownian": lambda keys, shape, plan: brownian_noise(keys, shape, jnp.asarray(plan.levels)[plan.first]),
}
Wrap = Callable[[Denoiser, Any], Denoiser]  # (the guided denoiser, the caller's run-time values) -> another


class Texts(NamedTuple):
    """What is said. Of ``ids`` and ``context`` one is None."""

    ids: Array | None  # [V, 2N, K, L] int32: negative prompts, then prompts
    weights: Array | None  # [V, 2N, K, L] of the tokens; None: all 1
    context: Array | None  # [V, 2N, S, E] in place of what the text tower makes of ids
    below: Array  # [V, 2N] the noise level from which on downwards a text is in force; the first inf, never: -1
    clip_skip: Array  # []


class Start(NamedTuple):
    """What a run starts from, and what it keeps."""

    latents: Array  # [N, h, w, Z] unit noise, where `given`
    given: Array  # [] bool
    origin: Array  # [N, h, w, Z] the latent that the noise is added to: 0 for a picture from nothing
    known: Array  # [N, h, w, Z] the latent that is kept where the mask is 0
    mask: Array  # [N, h, w, 1] 1 to paint
    concat: Array | None  # [N, h, w, C'] stacked on the latent's channels, for models that want it


class Inputs(NamedTuple):
    """The run-time values of one call, a pytree."""

    texts: Texts
    start: Start
    guidance: Guidance
    seed: Array  # [] uint32
    indices: Array  # [N] int32: the pictures' numbers, which their noise follows from
    plan: Plan
    extra: Any = None  # a pytree of whatever a caller's own `wrap` needs


def encode_text(configs: Configs, params: Any, ids: Array, skip: Array) -> Array:
    """Token ids [B, L] -> the text tower's states [B, L, E], ``skip`` [] or [B] layers left out."""
    return module(configs, params, "text")(ids, skip).context


def contexts(configs: Configs, params: Any, texts: Texts) -> Array:
    """[V, 2N, S, E], all texts of a run. Negative prompts keep every layer of the text tower."""
    if texts.context is not None:
        return texts.context
    V, rows, K, L = texts.ids.shape
    skip = jnp.where(jnp.arange(rows) < rows // 2, 0, texts.clip_skip)
    skips = jnp.broadcast_to(skip[None, :, None], (V, rows, K)).reshape(-1)
    states = joined(encode_text(configs, params, texts.ids.reshape(-1, L), skips), K)
    if texts.weights is not None:
        states = weigh(states, texts.weights.reshape(V * rows, K * L))
    return states.reshape(V, rows, *states.shape[1:])


@functools.partial(jax.jit, static_argnames="configs")
def contexts_alone(params: Any, texts: Texts, *, configs: Configs) -> Array:
    """:func:`contexts`, compiled."""
    return contexts(configs, params, texts)


def in_force(contexts: Array, below: Array, sigma: Array) -> Array:
    """The context of each row at a noise level: contexts [V, B, S, E], below [V, B], sigma [] -> [B, S, E]."""
    if len(contexts) == 1:
        return contexts[0]
    turn = (sigma <= below).sum(axis=0) - 1
    return contexts[turn, jnp.arange(contexts.shape[1])]


def denoiser_of(configs: Configs, params: Any, inputs: Inputs, wrap: Wrap | None = None) -> Denoiser:
    """The guided denoiser of one call, wrapped by the caller, and told what is known."""
    unet = module(configs, params, "unet")
    said, start = contexts(configs, params, inputs.texts), inputs.start
    concat = None if start.concat is None else jnp.concatenate([start.concat, start.concat])
    dtype = unet.conv_out.kernel.dtype

    def denoise(x: Array, sigma: Array) -> Array:
        cond = Conditioning(in_force(said, inputs.texts.below, sigma), concat=concat)
        return from_network(lambda x, t: unet(x, t, cond), configs.schedule, dtype)(x, sigma)

    guided = cfg(paired(denoise), inputs.guidance, configs.schedule.prediction)
    wrapped = guided if wrap is None else wrap(guided, inputs.extra)
    return keep_known(wrapped, start.known, start.mask)


@functools.partial(jax.jit, static_argnames=("configs", "sampler", "output", "noise", "wrap", "progress"))
def draw(
    params: Any,
    inputs: Inputs,
    *,
    configs: Configs,
    sampler: str,
    output: str,
    noise: str,
    wrap: Wrap | None = None,
    progress: bool = False,
) -> tuple[Array, Array, Array]:
    """A whole run -> (pictures [N, H, W, 3] uint8 or latents [N, h, w, Z], latents, whether each is finite [N])."""
    start, shape = inputs.start, inputs.start.latents.shape[1:]
    keys = image_keys(inputs.seed, inputs.indices)
    first = jnp.where(start.given, start.latents, unit_noise(keys, START, shape))
    x = sample(
        SAMPLERS[sampler],
        denoiser_of(configs, params, inputs, wrap),
        start.origin + inputs.plan.scale * first,
        inputs.plan,
        noise_at=NOISES[noise](keys, shape, inputs.plan),
        on_step=progress_bar.tick if progress else None,
    )
    x = start.mask * x + (1 - start.mask) * start.known  # a run may end a little above sigma 0
    result = x if output == "latents" else decode_latents(configs, params, x)
    finite = jnp.isfinite(result).all(axis=(1, 2, 3))
    return (result if output == "latents" else to_uint8(result)), x, finite


def decode_latents(configs: Configs, params: Any, z: Array) -> Array:
    """Latents of the diffusion process [N, h, w, Z] -> pictures [N, H, W, 3] about [-1, 1], one after another."""
    vae = module(configs, params, "vae")
    scale = 1.0 if isinstance(configs.vae, TinyVAEConfig) else configs.vae.scale
    return lax.map(lambda one: vae.decode(one[None])[0].astype(jnp.float32), z / scale)


@functools.partial(jax.jit, static_argnames="configs")
def decoded(params: Any, z: Array, *, configs: Configs) -> Array:
    """:func:`decode_latents`, compiled."""
    return decode_latents(configs, params, z)


@functools.partial(jax.jit, static_argnames="configs")
def encoded(params: Any, pictures: Array, *, configs: Configs) -> Array:
    """Pictures [N, H, W, 3] in [-1, 1] -> latents of the diffusion process [N, h, w, Z], one after another.

    The mean of the autoencoder's posterior: no noise, and the same latent every time.
    """
    vae = module(configs, params, "vae")
    tiny = isinstance(configs.vae, TinyVAEConfig)
    dtype = jax.tree.leaves(params["vae"])[0].dtype

    def one(picture: Array) -> Array:
        found = vae.encode(picture[None].astype(dtype))
        return (found if tiny else found[0] * configs.vae.scale)[0].astype(jnp.float32)

    return lax.map(one, pictures)
