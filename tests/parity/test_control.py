"""Controlled runs against diffusers: the U-Net under one and two ControlNets, and whole pipelines under every control.

One tiny random pipeline of two levels and its nets serve all cases. Limits, relative errors:

    U-Net     1e-5, float32 through some 120 layers; 1e-4 at full size
    latents   1e-4: five guided steps, each of which amplifies the rounding of the one before (measured 1e-6 to 1e-5)
    pictures  one level of uint8
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import ldm
import weights_convert
from ldm.adapters.control import RULES, Steering, levels_of, steered
from ldm.adapters.controlnet import Net
from ldm.conditioning import Conditioning
from ldm.hooks import Hooks
from ldm.models.layers import bind
from ldm.models.unet import UNet
from weights_convert import load_control
from weights_convert.tables import unet as unet_table

from . import layouts, oracle, ours
from .oracle import agree, diffusers, gaussian, nchw, nhwc, torch
from .test_controlnet_files import model_of
from .test_pipeline import GUIDANCE, NEGATIVES, NOISE, PROMPTS, STEPS, equal_pictures
from .test_starts import hole, photographs

TINY, FULL, LATENTS = 1e-5, 1e-4, 1e-4
HINTS = np.random.default_rng(6).integers(0, 256, (4, 64, 96, 3), np.uint8)  # a pair for each of two controls
DOWN, UP = (oracle.CROSS_DOWN, oracle.DOWN), (oracle.UP, oracle.CROSS_UP)
SIZES = {"block_out_channels": (64, 128), "down_block_types": DOWN, "cross_attention_dim": 128, "attention_head_dim": 8}
ENCODERS = SIZES | {"conditioning_embedding_out_channels": (8, 12, 16, 24)}
Made = dict[str, tuple[Any, Net]]  # (diffusers' net, ours) by name


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this module's files lie."""
    return tmp_path_factory.mktemp("control")


@pytest.fixture(scope="module")
def pipe(home: Path) -> Any:
    """diffusers' pipeline without a control."""
    return layouts.pipeline("sd1", home / "tokenizer", unet=SIZES | {"up_block_types": UP})


@pytest.fixture(scope="module")
def bundle(pipe: Any, home: Path) -> ldm.Bundle:
    """Ours, from its folder."""
    return weights_convert.load(layouts.save_folder(pipe, home / "model"))


@pytest.fixture(scope="module")
def nets(home: Path) -> Made:
    """Two ControlNets, a pooled one, and a T2I-Adapter; ours are read from the folders that diffusers writes."""
    made = {name: oracle.abstract(diffusers.ControlNetModel, **ENCODERS) for name in ("first", "second", "pooled")}
    made["pooled"].register_to_config(global_pool_conditions=True)
    made["adapter"] = oracle.abstract(diffusers.T2IAdapter, channels=(64, 128))
    for seed, (name, model) in enumerate(made.items(), 20):
        oracle.randomize(model, seed).save_pretrained(home / name)
    return {name: (model, load_control(home / name)) for name, model in made.items()}


# ---- the U-Net ----


def evaluations(title: str, unet: Any, pairs: list[tuple], size: tuple, context_dim: int, limit: float, guess: bool):
    """13 residuals, added up, and the U-Net's output; each net has a hint and a scale of its own."""
    (h, w), count = size, len(pairs)
    x, context = gaussian(1, 2, h, w, 4), gaussian(2, 2, 7, context_dim)
    hints = [np.random.default_rng(i).random((2, 8 * h, 8 * w, 3), np.float32) for i in range(count)]
    scales, t = [0.7, 0.4][:count], np.array([981.0, 1.0], np.float32)
    inputs = nchw(x), torch.from_numpy(t), torch.from_numpy(context)
    both = diffusers.models.MultiControlNetModel([model for model, _ in pairs])
    skips, middle = both(*inputs, [nchw(hint) for hint in hints], scales, guess_mode=guess, return_dict=False)
    added = {"down_block_additional_residuals": skips, "mid_block_additional_residual": middle}
    want, clean = (nhwc(unet(*inputs, **more).sample) for more in (added, {}))
    config = unet_table.config_from_json(unet.config, "the oracle")
    params = ours.convert(UNet, config, ours.tensors(oracle.arrays(unet)), [unet_table.folder(config)])
    weights = RULES["log" if guess else "uniform"](levels_of(config))
    steering = [Steering(np.float32(s) * weights, *np.float32([1, np.inf, -1])) for s in scales]
    configs = tuple(net.config for _, net in pairs)

    @jax.jit
    def run(params: Any, nets: Any, hints: Any, steering: Any) -> tuple:
        steer = steered(configs, nets, hints, steering)
        control, hooks = steer(x, t, np.float32(1), context, Hooks())
        return control, bind(UNet, config, params)(x, t, Conditioning(context), control=control, hooks=hooks)

    control, got = run(params, [net.params for _, net in pairs], hints, steering)
    residuals = list(zip((*control.skips, control.middle), map(nhwc, (*skips, middle)), strict=True))
    assert len(residuals) == 13 and oracle.rel(want, clean) > 0.1
    agree(f"{title}, the worst of 13 residuals", *max(residuals, key=lambda pair: oracle.rel(*pair)), limit)
    agree(f"{title}, the U-Net's output", got, want, limit)


def made_by(folder: Path, full: bool, *seeds: int) -> tuple[Any, list[tuple[Any, Net]]]:
    """(diffusers' U-Net, ControlNets of theirs and ours) of four levels."""
    pairs = []
    for seed in seeds:
        model = oracle.randomize(model_of("sd1", full), seed)
        model.save_pretrained(folder / str(seed))
        pairs.append((model, load_control(folder / str(seed))))
    return oracle.randomize(oracle.unet("sd1", full), 5), pairs


@pytest.mark.parametrize(("title", "seeds"), [("one net", [1]), ("two nets, guess mode", [2, 3])])
def test_the_unet(title: str, seeds: list[int], tmp_path: Path):
    evaluations(title, *made_by(tmp_path, False, *seeds), (8, 16), 128, TINY, len(seeds) > 1)


@pytest.mark.full
def test_the_unet_at_full_size(tmp_path: Path):
    evaluations("full size, 256x256", *made_by(tmp_path, True, 4), (32, 32), 768, FULL, False)


# ---- whole pipelines ----


def theirs(pipe: Any, kind: str, given: dict[str, Any], **options: Any) -> np.ndarray:
    """The final latents [N, h, w, 4] of a pipeline with the parts of ``pipe`` and those that are given."""
    made = getattr(diffusers, f"StableDiffusion{kind}Pipeline")
    parts = {name: part for name, part in pipe.components.items() if name not in ("image_encoder", "scheduler")}
    other = made(**parts | given, scheduler=layouts.scheduler(pipe, "DDIMScheduler"), requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    numbers = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "negative_prompt": NEGATIVES}
    return nhwc(other(PROMPTS, output_type="latent", **numbers | options).images)


def equal(title: str, pipe: Any, bundle: ldm.Bundle, wanted: np.ndarray, controls: list, **options: Any) -> None:
    """Our latents and pictures are theirs, and not those without the controls."""
    given = {"steps": STEPS, "guidance": GUIDANCE, "negative": NEGATIVES, "latents": NOISE, "progress": False}
    given |= {"output": "latents"} | options
    drawn = ldm.generate(bundle, PROMPTS, controls=controls, **given)
    without = ldm.generate(bundle, PROMPTS, controls=[replace(control, scale=0) for control in controls], **given)
    assert oracle.rel(drawn, without) > 0.05
    agree(f"{title}, latents", drawn, wanted, LATENTS)
    decoded = pipe.vae.decode(nchw(wanted) / pipe.vae.config.scaling_factor).sample
    pictures = np.stack([np.asarray(image) for image in pipe.image_processor.postprocess(decoded)])
    equal_pictures(title, ldm.decode(bundle, drawn), pictures)


def pair(i: int) -> list[Image.Image]:
    """The hints of control i, one for each picture, as diffusers takes them."""
    return [Image.fromarray(hint) for hint in HINTS[2 * i : 2 * i + 2]]


ONE = {  # settings of ours and theirs
    "one": ({"scale": 0.8}, {"controlnet_conditioning_scale": 0.8}),
    "guess mode": ({"rule": "log", "prompts_only": True}, {"guess_mode": True}),
    "an interval": ({"start": 0.2, "end": 0.8}, {"control_guidance_start": 0.2, "control_guidance_end": 0.8}),
}


@pytest.mark.parametrize("case", ONE)
def test_one_controlnet(case: str, pipe: Any, bundle: ldm.Bundle, nets: Made):
    (model, net), (settings, options) = nets["first"], ONE[case]
    wanted = theirs(pipe, "ControlNet", {"controlnet": model}, image=pair(0), latents=nchw(NOISE), **options)
    equal(f"ControlNet, {case}", pipe, bundle, wanted, [ldm.Control(net, HINTS[:2], **settings)])


def test_a_pooled_controlnet(pipe: Any, bundle: ldm.Bundle, nets: Made):
    """Theirs leaves the negative prompts alone, and weighs all residuals alike, without being told to."""
    model, net = nets["pooled"]
    wanted = theirs(pipe, "ControlNet", {"controlnet": model}, image=pair(0), latents=nchw(NOISE))
    equal("a pooled ControlNet", pipe, bundle, wanted, [ldm.Control(net, HINTS[:2], prompts_only=True)])


def test_two_controlnets(pipe: Any, bundle: ldm.Bundle, nets: Made):
    """Each with one hint for both pictures, a scale and an interval."""
    models, own = zip(nets["first"], nets["second"], strict=True)
    numbers = [(0.7, 0.0, 0.6), (0.5, 0.4, 1.0)]
    names = ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")
    options = {name: list(values) for name, values in zip(names, zip(*numbers, strict=True), strict=True)}
    options |= {"image": [pair(i)[0] for i in (0, 1)], "latents": nchw(NOISE)}
    wanted = theirs(pipe, "ControlNet", {"controlnet": list(models)}, **options)
    controls = [ldm.Control(net, HINTS[2 * i], *numbers[i]) for i, net in enumerate(own)]
    equal("two ControlNets", pipe, bundle, wanted, controls)


def test_an_adapter(pipe: Any, bundle: ldm.Bundle, nets: Made):
    model, net = nets["adapter"]
    options = {"image": pair(0), "latents": nchw(NOISE), "adapter_conditioning_scale": 0.7}
    options |= {"height": 64, "width": 96}
    wanted = theirs(pipe, "Adapter", {"adapter": model}, **options)
    equal("a T2I-Adapter", pipe, bundle, wanted, [ldm.Control(net, HINTS[:2], scale=0.7)])


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' noise becomes ours, its posterior's sample the mean."""
    for name in ("img2img", "inpaint"):
        module = getattr(diffusers.pipelines.controlnet, f"pipeline_controlnet_{name}")
        monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: nchw(NOISE))
    posterior = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution
    monkeypatch.setattr(posterior, "sample", lambda self, generator=None: self.mean)


def test_a_picture_under_a_control(pipe: Any, bundle: ldm.Bundle, nets: Made, same_noise: None):
    """The interval is of the steps that are made."""
    model, net = nets["first"]
    images = [Image.fromarray(picture) for picture in photographs()]
    options = {"image": images, "control_image": pair(0), "strength": 0.6, "control_guidance_end": 0.5}
    options |= {"num_inference_steps": 10, "controlnet_conditioning_scale": 0.9}
    wanted = theirs(pipe, "ControlNetImg2Img", {"controlnet": model}, **options)
    controls = [ldm.Control(net, HINTS[:2], scale=0.9, end=0.5)]
    equal("img2img", pipe, bundle, wanted, controls, image=photographs(), strength=0.6, steps=10)


def test_an_inpainting_model_under_a_control(nets: Made, tmp_path: Path, same_noise: None):
    """It has 9 input channels, and the ControlNet sees 4 of them."""
    model, net = nets["first"]
    pipe = layouts.pipeline("sd1", tmp_path / "tokenizer", unet=SIZES | {"up_block_types": UP, "in_channels": 9})
    bundle = weights_convert.load(layouts.save_folder(pipe, tmp_path / "folder"))
    images = [Image.fromarray(picture) for picture in photographs()]
    options = {"image": images, "control_image": pair(0), "mask_image": Image.fromarray(hole()), "strength": 1.0}
    options |= {"controlnet_conditioning_scale": 1.0, "height": 64, "width": 96}
    wanted = theirs(pipe, "ControlNetInpaint", {"controlnet": model}, **options)
    controls = [ldm.Control(net, HINTS[:2])]
    equal("inpainting", pipe, bundle, wanted, controls, image=photographs(), mask=hole(), strength=1.0)
