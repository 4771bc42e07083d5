"""Text to picture: one jitted program from token ids to pixels.

Shapes: N pictures, H W picture size, h w latent size, S tokens, Z latent channels.

Source: "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv:2112.10752), figure 3:

    text -> context;  noise -> sampler(guided U-Net) -> latent -> decoder -> picture

Only shapes, the sampler's name and the model's configuration are compiled in. Prompts, seed, guidance, number of steps,
eta, spacing, CLIP skip and given latents are run-time values: changing them compiles nothing.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ldm import progress as progress_bar
from ldm.bundle import Bundle, Configs, module
from ldm.conditioning import Conditioning
from ldm.denoiser import from_network
from ldm.guidance import cfg, paired
from ldm.inputs import Inputs, arrays, check_parts, number, texts, token_ids, whole
from ldm.models.autoencoder import to_uint8
from ldm.models.taesd import TinyVAEConfig
from ldm.samplers import SAMPLERS, START, image_keys, make_plan, sample, unit_noise
from ldm.schedule import check_name

OUTPUTS = ("uint8", "latents")
NOT_FINITE = "are the weights whole, and does dtype float32 help?"


def encode_text(configs: Configs, params: Any, ids: Array, skip: Array) -> Conditioning:
    """Token ids [B, S] -> Conditioning whose context is the text tower's states, ``skip`` [] or [B] layers left out."""
    return Conditioning(module(configs, params, "text")(ids, skip).context)


def decode_latents(configs: Configs, params: Any, z: Array) -> Array:
    """Latents of the diffusion process [N, h, w, Z] -> pictures [N, H, W, 3] about [-1, 1], one after another."""
    vae = module(configs, params, "vae")
    scale = 1.0 if isinstance(configs.vae, TinyVAEConfig) else configs.vae.scale
    return lax.map(lambda one: vae.decode(one[None])[0].astype(jnp.float32), z / scale)


@functools.partial(jax.jit, static_argnames=("configs", "sampler", "output", "progress"))
def _generate(params: Any, inputs: Inputs, *, configs: Configs, sampler: str, output: str, progress: bool) -> tuple:
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
    result = x if output == "latents" else decode_latents(configs, params, x)
    finite = jnp.isfinite(result).all(axis=(1, 2, 3))
    return (result if output == "latents" else to_uint8(result)), finite


@functools.partial(jax.jit, static_argnames="configs")
def _decode(params: Any, z: Array, *, configs: Configs) -> Array:
    return to_uint8(decode_latents(configs, params, z))


def decode(bundle: Bundle, latents: Any) -> np.ndarray:
    """Latents [N, h, w, Z], as ``generate(output="latents")`` gives them -> pictures [N, H, W, 3] uint8."""
    bundle.require("vae")
    shape = np.shape(latents)
    if len(shape) != 4 or shape[3] != bundle.configs.vae.latent_channels:
        raise ValueError(f"latents have shape {shape}, but [N, h, w, {bundle.configs.vae.latent_channels}] is needed")
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
    check_name("output", output, OUTPUTS)
    bundle.require("unet", "text", *(["vae"] if output == "uint8" else []))
    check_parts(bundle)
    prompts, schedule = texts("prompts", prompts), bundle.configs.schedule
    latents, given, concat = arrays(bundle, len(prompts), size, latents, concat)
    steps = whole("steps", steps, 1, schedule.train_steps)
    inputs = Inputs(
        ids=token_ids(bundle, prompts, texts("negative", negative, len(prompts))),
        clip_skip=np.int32(whole("clip_skip", clip_skip, 0, bundle.configs.text.layers - 1)),
        guidance=np.float32(number("guidance", guidance)),
        seed=np.uint32(whole("seed", seed, 0, 2**32 - 1)),
        plan=make_plan(schedule, sampler, spacing, steps, eta and number("eta", eta), most=schedule.train_steps),
        latents=latents,
        given=np.bool_(given),
        concat=concat,
    )
    static = {"configs": bundle.configs, "sampler": sampler, "output": output, "progress": bool(progress)}
    with progress_bar.bar(progress, steps):
        result, finite = map(np.asarray, _generate(bundle.params, inputs, **static))
    if not finite.all():
        warnings.warn(f"{(~finite).sum()} of {len(finite)} pictures are not finite: {NOT_FINITE}", stacklevel=2)
    return result
