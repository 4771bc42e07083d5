"""Text to picture: one jitted program from token ids to pixels.

Shapes: N pictures, H W picture size, h w latent size, S tokens, Z latent channels.

Source: "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv:2112.10752), figure 3:

    text -> context;  noise -> sampler(guided U-Net) -> latent -> decoder -> picture

Only shapes, the sampler's name and the model's configuration are compiled in. Prompts, seed, guidance, number of steps,
eta, spacing, CLIP skip and given latents are run-time values: changing them compiles nothing.
"""

import functools
import operator
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ldm import progress as progress_bar
from ldm.bundle import Bundle, Configs, module
from ldm.conditioning import Conditioning
from ldm.denoiser import from_network
from ldm.guidance import cfg, paired
from ldm.models.taesd import TinyVAEConfig
from ldm.samplers import SAMPLERS, START, Plan, image_keys, make_plan, sample, unit_noise
from ldm.schedule import check_name

OUTPUTS = ("uint8", "latents")


class Inputs(NamedTuple):
    """The run-time values of one call, a pytree."""

    ids: Array  # [2N, S] int32: negative prompts, then prompts
    clip_skip: Array  # []
    guidance: Array  # []
    seed: Array  # [] uint32
    plan: Plan
    latents: Array  # [N, h, w, Z] unit noise, where `given`
    given: Array  # [] bool
    concat: Array | None  # [N, h, w, C'] stacked on the latent's channels, for models that want it


def encode_text(configs: Configs, params: Any, ids: Array, skip: Array) -> Conditioning:
    """Token ids [B, S] -> Conditioning whose context is the text tower's states, ``skip`` [] or [B] layers left out."""
    return Conditioning(module(configs, params, "text")(ids, skip).context)


def decode_latents(configs: Configs, params: Any, z: Array) -> Array:
    """Latents of the diffusion process [N, h, w, Z] -> pictures [N, H, W, 3] about [-1, 1], one after another."""
    vae = module(configs, params, "vae")
    scale = 1.0 if isinstance(configs.vae, TinyVAEConfig) else configs.vae.scale
    return lax.map(lambda one: vae.decode(one[None])[0].astype(jnp.float32), z / scale)


def to_uint8(pictures: Array) -> Array:
    """[-1, 1] float -> 0..255 uint8, rounded to nearest, clipped."""
    return jnp.round(jnp.clip(pictures / 2 + 0.5, 0.0, 1.0) * 255).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnames=("configs", "sampler", "output", "progress"))
def _generate(params: Any, inputs: Inputs, *, configs: Configs, sampler: str, output: str, progress: bool) -> Array:
    unet = module(configs, params, "unet")
    count, *shape = inputs.latents.shape
    skip = jnp.where(jnp.arange(2 * count) < count, 0, inputs.clip_skip)  # negative prompts keep every layer
    cond = encode_text(configs, params, inputs.ids, skip)
    if inputs.concat is not None:
        cond = cond._replace(concat=jnp.concatenate([inputs.concat, inputs.concat]))
    dtype = unet.conv_out.kernel.dtype
    denoise = from_network(lambda x, t: unet(x, t, cond), configs.schedule, dtype)

    keys = image_keys(inputs.seed, jnp.arange(count))
    noise = jnp.where(inputs.given, inputs.latents, unit_noise(keys, START, tuple(shape)))
    x = sample(
        SAMPLERS[sampler],
        cfg(paired(denoise), inputs.guidance),
        inputs.plan.scale * noise,
        inputs.plan,
        noise_at=lambda step: unit_noise(keys, step, tuple(shape)),
        on_step=progress_bar.tick if progress else None,
    )
    return x if output == "latents" else to_uint8(decode_latents(configs, params, x))


@functools.partial(jax.jit, static_argnames="configs")
def _decode(params: Any, z: Array, *, configs: Configs) -> Array:
    return to_uint8(decode_latents(configs, params, z))


def decode(bundle: Bundle, latents: Any) -> np.ndarray:
    """Latents [N, h, w, Z], as ``generate(output="latents")`` gives them -> pictures [N, H, W, 3] uint8."""
    bundle.require("vae")
    return np.asarray(_decode({"vae": bundle.params["vae"]}, np.asarray(latents, np.float32), configs=bundle.configs))


def generate(
    bundle: Bundle,
    prompts: str | Sequence[str],
    negative: str | Sequence[str] = "",
    steps: int = 20,
    guidance: float = 7.5,
    sampler: str = "ddim",
    spacing: str = "leading",
    seed: int = 0,
    size: tuple[int, int] | None = None,
    clip_skip: int = 0,
    latents: Any = None,
    output: str = "uint8",
    *,
    eta: float | None = None,
    concat: Any = None,
    progress: bool = True,
) -> np.ndarray:
    """Pictures from text.

    bundle     what ``ldm.load`` or ``weights_convert.load`` gave
    prompts    one text or several: N pictures; ``negative`` is one text for all, or one per prompt
    steps      1 .. the schedule's own number (1000)
    guidance   the scale beta of classifier-free guidance: 1 is plain conditional sampling, 0 unconditional; the
               published w is beta - 1 (``ldm.guidance.scale_from_w``)
    sampler    ddim, ddpm, euler, euler_a, heun, dpmpp_2m;  ``spacing``: leading, trailing, uniform, linspace, karras
    seed       picture i of a call depends on (seed, i) and on nothing else of the batch
    size       (width, height) in pixels, multiples of 8; None: what the model was trained at
    clip_skip  layers of the text tower LEFT OUT for the prompts: 0 none, 1 the penultimate layer with the final norm.
               Negative prompts keep every layer, as in the public pipelines. (One popular tool counts from 1: its 1 is
               our 0, its 2 our 1.)
    latents    unit Gaussian noise [N, H/8, W/8, 4] to start from, in place of the seed's
    output     "uint8": [N, H, W, 3] pictures; "latents": [N, H/8, W/8, 4] float32, what :func:`decode` takes
    eta        share of fresh noise, for ddim (default 0) and euler_a (default 1); None: the default
    concat     [N, H/8, W/8, C'] for models with extra input channels (inpainting: mask 1, masked latent 4)
    progress   a bar on the terminal while sampling

    Returns a NumPy array. Raises ValueError, in one sentence, for what cannot be; warns where a prompt is cut at the
    tower's 77 tokens.
    """
    bundle.require("unet", "text", *(["vae"] if output == "uint8" else []))
    check_name("output", output, OUTPUTS)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise ValueError("no prompt: give one text or a list of them")
    latents, given, concat = _arrays(bundle, len(prompts), size, latents, concat)
    inputs = Inputs(
        ids=_token_ids(bundle, prompts, negative),
        clip_skip=np.int32(_within("clip_skip", clip_skip, bundle.configs.text.layers - 1)),
        guidance=np.float32(guidance),
        seed=np.uint32(_within("seed", seed, 2**32 - 1)),
        plan=make_plan(bundle.configs.schedule, sampler, spacing, steps, eta, most=bundle.configs.schedule.train_steps),
        latents=latents,
        given=np.bool_(given),
        concat=concat,
    )
    with progress_bar.bar(progress, steps):
        run = _generate(
            bundle.params, inputs, configs=bundle.configs, sampler=sampler, output=output, progress=progress
        )
        result = np.asarray(run)
    if result.dtype == np.float32 and not np.isfinite(result).all():
        warnings.warn("the latents are not finite: try dtype float32 or bfloat16", stacklevel=2)
    return result


def _within(name: str, value: int, most: int) -> int:
    value = operator.index(value)
    if not 0 <= value <= most:
        raise ValueError(f"{name} must be between 0 and {most}, got {value}")
    return value


def _token_ids(bundle: Bundle, prompts: list[str], negative: str | Sequence[str]) -> np.ndarray:
    negatives = [negative] * len(prompts) if isinstance(negative, str) else list(negative)
    if len(negatives) != len(prompts):
        raise ValueError(f"{len(negatives)} negative prompts for {len(prompts)} prompts: give one, or one for each")
    if bundle.tokenizer is None:
        raise ValueError("this checkpoint has no tokenizer")
    ids = bundle.tokenizer([*negatives, *prompts], bundle.configs.text.length)
    if ids.max() >= bundle.configs.text.vocabulary:
        raise ValueError(
            f"the tokenizer gave token {ids.max()}, but the text tower knows {bundle.configs.text.vocabulary}: "
            "they do not belong together"
        )
    return ids


def latent_shape(bundle: Bundle, size: tuple[int, int] | None) -> tuple[int, int, int]:
    """(h, w, Z) of the latents of a picture of ``size`` (width, height); ValueError if it is no multiple of 8."""
    vae, (width, height) = bundle.configs.vae, bundle.size if size is None else size
    factor = 8 if vae is None else vae.factor
    if width < factor or height < factor or width % factor or height % factor:
        near = [max(factor, round(n / factor) * factor) for n in (width, height)]
        raise ValueError(f"size {width}x{height} is not a multiple of {factor} both ways; try {near[0]}x{near[1]}")
    return height // factor, width // factor, bundle.configs.unet.out_channels


def _arrays(bundle: Bundle, count: int, size: Any, latents: Any, concat: Any) -> tuple[np.ndarray, bool, Any]:
    """Latents (zeros where none are given), whether they were given, and concat; all checked."""
    if size is None and latents is not None and np.ndim(latents) == 4:
        factor = 8 if bundle.configs.vae is None else bundle.configs.vae.factor
        size = (np.shape(latents)[2] * factor, np.shape(latents)[1] * factor)
    h, w, z = latent_shape(bundle, size)
    extra = bundle.configs.unet.in_channels - z
    for name, array, channels in (("latents", latents, z), ("concat", concat, extra)):
        if array is not None and np.shape(array) != (count, h, w, channels):
            raise ValueError(f"{name} has shape {np.shape(array)}, but {(count, h, w, channels)} is needed here")
    if extra and concat is None:
        raise ValueError(
            f"this model takes {extra} channels beside the latent (inpainting and its like): give them as concat"
        )
    given = latents is not None
    latents = np.asarray(latents if given else np.zeros((count, h, w, z)), np.float32)
    return latents, given, None if concat is None else np.asarray(concat, np.float32)
