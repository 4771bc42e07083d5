"""DDIM inversion: the noise that a picture would have come from.

The ODE that sampling follows down can be followed up. A step upwards uses the slope where it begins, a step downwards
that where it ends, so the way there and back misses by an error that falls as 1 / steps; guidance makes it worse
(see ``ldm.editing.null_text`` for what mends that).

Shapes: N pictures, H W picture size, h w latent size, Z latent channels.
Sources: DDIM (Song et al. 2021, eq. 14); "Diffusion Models Beat GANs" (Dhariwal & Nichol 2021, appendix F).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm import program
from ldm.bundle import Bundle
from ldm.generate import encode
from ldm.inputs import check_parts, guidance_of, plain_texts, texts, whole
from ldm.request import Inputs
from ldm.samplers import Plan
from ldm.schedule import NoiseSchedule, sigmas
from ldm.spacing import levels
from ldm.starts import start_of


def rising_plan(schedule: NoiseSchedule, spacing: str, steps: int) -> Plan:
    """The levels of a DDIM run, from below. One that ends at 0 begins at the lowest level that the network knows."""
    visited = levels(schedule, "ddim", spacing, steps)[::-1]
    if visited[0] == 0:
        lowest = sigmas(schedule)[0]
        visited = np.append(lowest, visited[1:]) if visited[1] > lowest else visited[1:]
    made, room = len(visited) - 1, schedule.train_steps
    return Plan(np.pad(visited, (0, room - made)), np.int32(made), np.float32(0), np.float32(0))


def latents_of_each(bundle: Bundle, image: Any, count: int) -> np.ndarray:
    """The latents [N, h, w, Z] of N pictures [N, H, W, 3] uint8, or of one [H, W, 3] that all N prompts share."""
    return np.repeat(encode(bundle, image), 1 if np.ndim(image) == 4 else count, axis=0)


def invert(
    bundle: Bundle,
    image: Any,
    prompts: str | Sequence[str],
    negative: str | Sequence[str] = "",
    steps: int = 50,
    guidance: float = 1.0,
    spacing: str = "leading",
    clip_skip: int = 0,
    *,
    progress: bool = True,
) -> np.ndarray:
    """Pictures [N, H, W, 3] uint8 (or one) -> the noise [N, h, w, Z] that ``generate`` takes as ``latents``.

    With that noise, sampler "ddim" and the same prompts, steps, spacing and guidance, ``generate`` draws the pictures
    again. prompts: what is in them. guidance: more than 1 is hardly ever what you want here.
    Raises ValueError as ``generate`` does.
    """
    bundle.require("unet", "text", "vae")
    check_parts(bundle)
    prompts = texts("prompts", prompts)
    said = [*texts("negative", negative, len(prompts)), *prompts]
    plan = rising_plan(bundle.configs.schedule, spacing, whole("steps", steps, 1, bundle.configs.schedule.train_steps))
    z = latents_of_each(bundle, image, len(prompts))
    size = tuple(np.array(z.shape[2:0:-1]) * bundle.configs.vae.factor)
    begin = start_of(bundle, len(prompts), tuple(map(int, size)), None, np.zeros_like(z), None)
    begin = begin._replace(origin=z * np.sqrt(1 + plan.levels[0] ** 2))
    numbers = guidance_of(bundle, guidance), np.uint32(0), np.arange(len(prompts), dtype=np.int32)
    values = Inputs(plain_texts(bundle, said, clip_skip), begin, *numbers, plan)
    static = {"configs": bundle.configs, "sampler": "euler", "output": "latents", "noise": "steps"}
    return np.asarray(program.draw(bundle.params, values, **static, progress=bool(progress))[0])
