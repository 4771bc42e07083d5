"""Text, and a picture if there is one, to pictures: the program's public face.

Shapes: N pictures, H W picture size, h w latent size, S tokens, E width of the context, Z latent channels.
"""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm import program
from ldm.acceleration.shortcuts import NO_SHORTCUTS, Shortcuts
from ldm.adapters.control import Control, check_net, hints_of, steering_of
from ldm.adapters.image_prompt import ImagePrompt, check_adapter, showing_of, tokens_of
from ldm.bundle import Bundle
from ldm.devices import check_count, on_each
from ldm.guidance import Guidance
from ldm.inputs import (
    check_parts,
    factor_of,
    guidance_of,
    latent_size,
    number,
    plain_texts,
    texts,
    texts_of,
    whole,
)
from ldm.models.autoencoder import from_uint8, to_uint8
from ldm.models.layers import dtype_of
from ldm.pictures import as_pictures, composite
from ldm.program import Wrap
from ldm.request import Inputs, dealt
from ldm.samplers import Plan, make_plan, named
from ldm.schedule import check_name
from ldm.starts import Picture, latents_of, picture_of, start_of
from ldm.tiles import decode_tiles

OUTPUTS = ("uint8", "latents")
NOT_FINITE = "are the weights whole, and does dtype float32 help?"
OVERFLOW = "the autoencoder passes the range of float16: decoded again in float32, slower and right"


def decode(bundle: Bundle, latents: Any, tile: int | None = None) -> np.ndarray:
    """Latents [N, h, w, Z], as ``generate(output="latents")`` gives them -> pictures [N, H, W, 3] uint8.

    tile: a side in latent pixels; larger latents are decoded in overlapping tiles of it, in the memory of one.
    Raises ValueError for latents of another shape, and tiles that are none.
    """
    bundle.require("vae")
    shape = np.shape(latents)
    if len(shape) != 4 or shape[3] != bundle.configs.vae.latent_channels:
        raise ValueError(f"latents have shape {shape}, but [N, h, w, {bundle.configs.vae.latent_channels}] is needed")
    one = functools.partial(program.decoded, {"vae": bundle.params["vae"]}, configs=bundle.configs)
    z = np.asarray(latents, np.float32)
    pictures = one(z) if tile is None else decode_tiles(one, z, factor_of(bundle), tile)
    with np.errstate(invalid="ignore"):  # what is not finite was warned of, and is black
        return to_uint8(np.asarray(pictures))


def encode(bundle: Bundle, pictures: Any) -> np.ndarray:
    """Pictures [N, H, W, 3] or [H, W, 3] uint8 -> latents [N, h, w, Z] float32, what :func:`decode` takes back.

    The mean of the autoencoder's posterior. Raises ValueError for what is no picture or has other sides than it can.
    """
    bundle.require("vae")
    pictures = as_pictures(pictures, len(pictures) if np.ndim(pictures) == 4 else 1)
    latent_size(bundle, pictures.shape[2:0:-1])
    return latents_of(bundle, from_uint8(pictures))


def encode_prompts(
    bundle: Bundle, prompts: str | Sequence[str], negative: str | Sequence[str] = "", clip_skip: int = 0
) -> np.ndarray:
    """The context [2N, S, E] float32 that ``generate`` makes of texts, negative prompts first.

    Mix several of them, and give the mixture to ``generate`` as its ``context``. Raises ValueError.
    """
    bundle.require("text")
    prompts = texts("prompts", prompts)
    said = plain_texts(bundle, [*texts("negative", negative, len(prompts)), *prompts], clip_skip)
    return np.asarray(program.contexts_alone(bundle.params, said, configs=bundle.configs)[0], np.float32)


def generate(
    bundle: Bundle,
    prompts: str | Sequence[str],
    negative: str | Sequence[str] = "",
    steps: int = 20,
    guidance: float | Guidance | None = None,
    sampler: str = "ddim",
    spacing: str = "leading",
    seed: int = 0,
    size: tuple[int, int] | None = None,
    clip_skip: int = 0,
    latents: Any = None,
    output: str = "uint8",
    *,
    image: Any = None,
    mask: Any = None,
    strength: float | None = None,
    eta: float | None = None,
    noise: str = "steps",
    syntax: bool = False,
    context: Any = None,
    concat: Any = None,
    wrap: Wrap | None = None,
    extra: Any = None,
    controls: Sequence[Control] = (),
    image_prompts: Sequence[ImagePrompt] = (),
    shortcuts: Shortcuts = NO_SHORTCUTS,
    index: int = 0,
    progress: bool = True,
    release: bool = False,
) -> np.ndarray:
    """Pictures from text.

    bundle     what ``ldm.load`` or ``weights_convert.load`` gave
    prompts    one text or several: N pictures; ``negative`` is one text for all, or one per prompt
    steps      1 .. the schedule's own number (1000)
    guidance   the scale beta of classifier-free guidance: 1 is plain conditional sampling, 0 unconditional; the
               published w is beta - 1 (``ldm.guidance.scale_from_w``). None: what suits the model, ``bundle.guidance``.
               A ``Guidance`` also has a rescale and an interval
    sampler    a name of ``ldm.samplers.SAMPLERS``, or what other tools call it (``ldm.samplers.names``)
    spacing    where the noise levels lie: ``ldm.spacing.levels``
    seed       picture i of a call depends on (seed, index + i) and on nothing else of the batch
    size       (width, height) in pixels, multiples of 8; None: what the model was trained at, or the image's
    clip_skip  layers of the text tower LEFT OUT for the prompts: 0 none, 1 the penultimate layer with the final norm.
               Negative prompts keep every layer, as in the public pipelines. (One popular tool counts from 1: its 1 is
               our 0, its 2 our 1.)
    latents    unit Gaussian noise [N, h, w, Z] to start from, in place of the seed's
    output     "uint8": [N, H, W, 3] pictures; "latents": [N, h, w, Z] float32, what :func:`decode` takes

    image      [H, W, 3] or [N, H, W, 3] uint8: start from it, with noise on it (SDEdit)
    mask       [H, W] or [N, H, W], bool or uint8, white to paint: the rest of the image stays, to the last bit
    strength   the share of the steps that is made on an image: 0 none, 1 all; None: 0.8, with a mask 1
    eta        share of fresh noise, for samplers that have it; None: the sampler's own
    noise      "steps": fresh noise of every step is independent; "brownian": of one path, whatever the steps
    syntax     read weights, BREAK, long texts and [a:b:0.5] in prompts: ``ldm.prompts``
    context    [2N, S, E] in place of the texts' own, see :func:`encode_prompts`; prompts then only count
    concat     [N, h, w, C'] for models with extra input channels; made of image and mask for inpainting models
    wrap       (denoiser, extra) -> denoiser: guidance of your own around all of this, compiled in (``ldm.guidance`` has
               some); ``extra``, a pytree of arrays, is what it is given at run time
    release    the arrays of the text tower, the U-Net, the controls' nets and the image prompts' adapters are deleted
               as soon as they have done their work: less memory, and a bundle that can from then on only decode
    controls   ControlNets and T2I-Adapters, each with its hint picture: :class:`ldm.Control`
    image_prompts  pictures to resemble, each with its IP-Adapter: :class:`ldm.ImagePrompt`
    shortcuts  what may be left out to be faster, compiled in: :class:`ldm.Shortcuts`

    Returns a NumPy array. Raises ValueError, in one sentence, for what cannot be; warns where a prompt is cut at the
    tower's 77 tokens.
    """
    sampler, spacing = named(sampler, spacing)
    prompts = checked(bundle, prompts, output, noise, image, context)
    count, said = len(prompts), [*texts("negative", negative, len(prompts)), *prompts]
    picture = picture_of(count, size, image, mask, strength)
    plan = plan_of(bundle, sampler, spacing, steps, eta, picture)
    spoken = texts_of(bundle, said, clip_skip, plan, syntax, context)
    start = start_of(bundle, count, size, picture, latents, concat)
    values = Inputs(spoken, start, guidance_of(bundle, guidance), *numbered(seed, index, count), plan, extra)
    bundle, values, nets = with_nets(bundle, controls, image_prompts, values)
    static = {"configs": bundle.configs, "sampler": sampler, "output": output, "noise": noise, "wrap": wrap}
    static |= {"shortcuts": shortcuts} | nets
    return run(bundle, values, static, picture, bool(progress), bool(release))


def with_nets(
    bundle: Bundle, controls: Sequence[Control], prompts: Sequence[ImagePrompt], values: Inputs
) -> tuple[Bundle, Inputs, dict[str, tuple]]:
    """The parameters with those of the nets beside the model, the run-time values with their own, and what of the nets
    is compiled in. Pictures of image prompts are looked at here. Raises ValueError."""
    unet, factor, (count, h, w, _) = bundle.configs.unet, factor_of(bundle), values.start.latents.shape
    for control in controls:
        check_net(control.net, unet, factor)
    for prompt in prompts:
        check_adapter(prompt.adapter, unet)
    values = values._replace(
        hints=tuple(hints_of(control, count, (w * factor, h * factor)) for control in controls),
        steering=tuple(steering_of(control, values.plan) for control in controls),
        tokens=tuple(tokens_of(prompt, count) for prompt in prompts),
        showing=tuple(showing_of(prompt, values.plan) for prompt in prompts),
    )
    each = {"nets": [control.net for control in controls], "adapters": [prompt.adapter for prompt in prompts]}
    params = {name: tuple(on_each(bundle.mesh, net.params) for net in nets) for name, nets in each.items() if nets}
    compiled_in = {name: tuple(net.config for net in nets) for name, nets in each.items()}
    return replace(bundle, params={**bundle.params, **params}), values, compiled_in


def numbered(seed: Any, index: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The seed, and the pictures' numbers [N]. Raises ValueError."""
    first = whole("index", index, 0, 2**31 - 1 - count)
    return np.uint32(whole("seed", seed, 0, 2**32 - 1)), np.arange(count, dtype=np.int32) + first


def run(
    bundle: Bundle, values: Inputs, static: dict[str, Any], picture: Picture | None, progress: bool, release: bool
) -> np.ndarray:
    """Runs the program; then what must be seen to on the host: overflows, and what a mask keeps."""
    output, mesh = static["output"], bundle.mesh
    values = values if mesh is None else values._replace(texts=dealt(values.texts, mesh.size))
    made = program.draw(bundle.params, values, **static, progress=progress, release=release, mesh=mesh)
    result = whole_pictures(bundle, output, *map(np.asarray, made))
    painted = picture is not None and picture.masks is not None and output == "uint8"
    return composite(result, picture.images, picture.masks) if painted else result


def checked(bundle: Bundle, prompts: Any, output: str, noise: str, image: Any, context: Any) -> list[str]:
    """The prompts as a list. Raises ValueError for names that are none, and a model that cannot draw this."""
    check_name("output", output, OUTPUTS)
    check_name("noise", noise, program.NOISES)
    needed = {"unet": True, "text": context is None, "vae": output == "uint8" or image is not None}
    bundle.require(*(part for part, need in needed.items() if need))
    check_parts(bundle)
    prompts = texts("prompts", prompts)
    check_count(bundle.mesh, len(prompts))
    return prompts


def plan_of(bundle: Bundle, sampler: str, spacing: str, steps: Any, eta: float | None, picture: Picture | None) -> Plan:
    """The plan of a call, with room for every number of steps. Raises ValueError."""
    schedule = bundle.configs.schedule
    steps = whole("steps", steps, 1, schedule.train_steps)
    strength = None if picture is None else number("strength", picture.strength)
    if strength == 1 and picture.from_noise:
        strength = None
    eta = None if eta is None else number("eta", eta)
    return make_plan(schedule, sampler, spacing, steps, eta, most=schedule.train_steps, strength=strength)


def whole_pictures(bundle: Bundle, output: str, result: np.ndarray, z: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """``result``; where an autoencoder in float16 passed its range, decoded again in float32. Warns of both."""
    half = "vae" in bundle.params and dtype_of(bundle.params["vae"]) == jnp.float16
    if output == "uint8" and half and not finite.all() and np.isfinite(z).all():
        warnings.warn(OVERFLOW, stacklevel=3)
        wide = jax.tree.map(lambda array: array.astype(jnp.float32), dict(bundle.params["vae"]))
        return decode(replace(bundle, params={**bundle.params, "vae": wide}), z)
    if not finite.all():
        warnings.warn(f"{(~finite).sum()} of {len(finite)} pictures are not finite: {NOT_FINITE}", stacklevel=3)
    return result
