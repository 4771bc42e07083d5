"""Pictures to pictures against diffusers' pipelines: img2img, inpainting of both kinds, and what guidance adds.

The same tiny checkpoints, pictures, prompts and noise; limit: one level of 255. Theirs draw a picture's latent from the
autoencoder's posterior; ours take its mean, and so they are made to.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ldm
import weights_convert
from ldm.guidance import Guidance

from . import layouts, oracle
from .test_pipeline import GUIDANCE, NEGATIVES, NOISE, PROMPTS, SCHEDULERS, bundles, equal_pictures, home, pipes

__all__ = ["bundles", "home", "pipes"]  # fixtures
STEPS = 10
MODULE = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_"


def photographs() -> np.ndarray:
    """Two pictures [2, 64, 96, 3] uint8 of smooth colours and edges."""
    y, x = np.mgrid[:64, :96] / 64.0
    waves = [np.sin(3 * x + k) * np.cos(4 * y - k) for k in range(3)]
    first = np.stack(waves, -1) * 100 + 128
    second = np.where((x + y > 1.2)[..., None], 255 - first, first[::-1])
    return np.stack([first, second]).round().clip(0, 255).astype(np.uint8)


def hole() -> np.ndarray:
    """A mask [64, 96] uint8 that begins and ends inside of latent pixels."""
    mask = np.zeros((64, 96), np.uint8)
    mask[13:50, 20:71] = 255
    return mask


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' noise becomes ours, its posterior's sample the mean."""
    for name in ("img2img", "inpaint"):
        given = lambda shape, **_: oracle.nchw(NOISE)
        module = __import__(f"{MODULE}{name}", fromlist=["randn_tensor"])
        monkeypatch.setattr(module, "randn_tensor", given)
    posterior = oracle.diffusers.models.autoencoders.vae.DiagonalGaussianDistribution
    monkeypatch.setattr(posterior, "sample", lambda self, generator=None: self.mean)


def theirs(pipe: Any, kind: str, sampler: str, **options: Any) -> np.ndarray:
    """The picture of a pipeline of another kind with the parts of ``pipe``."""
    parts = pipe.components | {"scheduler": layouts.scheduler(pipe, SCHEDULERS[sampler])}
    other = getattr(oracle.diffusers, f"StableDiffusion{kind}Pipeline")(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    images = [Image.fromarray(picture) for picture in photographs()]
    numbers = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "negative_prompt": NEGATIVES}
    drawn = other(PROMPTS, image=images, output_type="pil", **numbers, **options)
    return np.stack([np.asarray(image) for image in drawn.images])


def mine(bundle: ldm.Bundle, sampler: str = "ddim", **options: Any) -> np.ndarray:
    """Ours, uncut: where a mask is given, not put together with the picture."""
    numbers = {"steps": STEPS, "guidance": GUIDANCE, "negative": NEGATIVES, "latents": NOISE, "progress": False}
    z = ldm.generate(bundle, PROMPTS, sampler=sampler, image=photographs(), output="latents", **numbers, **options)
    return ldm.decode(bundle, z)


@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_image_to_image(sampler: str, strength: float, pipes: dict, bundles: dict, same_noise: None):
    wanted = theirs(pipes["sd1"], "Img2Img", sampler, strength=strength)
    equal_pictures(f"img2img {sampler} {strength}", mine(bundles["sd1"], sampler, strength=strength), wanted)


def test_image_to_image_with_velocity(pipes: dict, bundles: dict, same_noise: None):
    wanted = theirs(pipes["sd2"], "Img2Img", "ddim", strength=0.6)
    equal_pictures("img2img sd2", mine(bundles["sd2"], strength=0.6), wanted)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m"])
def test_inpainting_with_any_model(sampler: str, pipes: dict, bundles: dict, same_noise: None):
    """Theirs puts noise on what is known after every step; ours says what is known. Along the ODE it is the same."""
    mask = np.zeros((64, 96), np.uint8)
    mask[16:48, 24:72] = 255  # whole latent pixels: theirs rounds a mask in a way of its own
    options = {"mask_image": Image.fromarray(mask), "strength": 0.6, "height": 64, "width": 96}
    wanted = theirs(pipes["sd1"], "Inpaint", sampler, **options)
    equal_pictures(f"inpainting, {sampler}", mine(bundles["sd1"], sampler, mask=mask, strength=0.6), wanted)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting_models_from_an_image_and_a_mask(strength: float, tmp_path: Path, same_noise: None):
    pipe = layouts.pipeline("sd1", tmp_path / "tokenizer", unet={"in_channels": 9})
    bundle = weights_convert.load(layouts.save_folder(pipe, tmp_path / "folder"))
    options = {"mask_image": Image.fromarray(hole()), "strength": strength, "height": 64, "width": 96}
    wanted = theirs(pipe, "Inpaint", "ddim", **options)
    equal_pictures(f"9 channels, {strength}", mine(bundle, mask=hole(), strength=strength), wanted)


@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_guidance_rescale(family: str, share: float, pipes: dict, bundles: dict):
    numbers = {"steps": STEPS, "negative": NEGATIVES, "latents": NOISE, "progress": False}
    drawn = ldm.generate(bundles[family], PROMPTS, guidance=Guidance(GUIDANCE, rescale=share), **numbers)
    pipe = pipes[family]
    pipe.scheduler = layouts.scheduler(pipe, "DDIMScheduler")
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "negative_prompt": NEGATIVES}
    wanted = layouts.pictures(pipe, PROMPTS, NOISE, guidance_rescale=share, **options)
    equal_pictures(f"{family}, rescale {share}", drawn, wanted)


KARRAS = {"euler": "EulerDiscreteScheduler", "lms": "LMSDiscreteScheduler", "heun": "HeunDiscreteScheduler"}


@pytest.mark.parametrize("sampler", KARRAS)
@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_karras_levels(family: str, sampler: str, pipes: dict, bundles: dict):
    numbers = {"steps": STEPS, "guidance": GUIDANCE, "negative": NEGATIVES, "latents": NOISE, "progress": False}
    drawn = ldm.generate(bundles[family], PROMPTS, sampler=sampler, spacing="karras", **numbers)
    pipe = pipes[family]
    pipe.scheduler = layouts.scheduler(pipe, KARRAS[sampler], "linspace", use_karras_sigmas=True)
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "negative_prompt": NEGATIVES}
    equal_pictures(f"{family}, {sampler} karras", drawn, layouts.pictures(pipe, PROMPTS, NOISE, **options))


MORE = {
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


@pytest.mark.parametrize("sampler", MORE)
def test_more_samplers(sampler: str, pipes: dict, bundles: dict):
    numbers = {"steps": STEPS, "guidance": GUIDANCE, "negative": NEGATIVES, "latents": NOISE, "progress": False}
    drawn = ldm.generate(bundles["sd1"], PROMPTS, sampler=sampler, **numbers)
    pipe, (kind, settings) = pipes["sd1"], MORE[sampler]
    pipe.scheduler = layouts.scheduler(pipe, kind, **settings)
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "negative_prompt": NEGATIVES}
    equal_pictures(f"sd1, {sampler}", drawn, layouts.pictures(pipe, PROMPTS, NOISE, **options))
