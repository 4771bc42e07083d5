"""Our T2I-Adapter against diffusers', small, random weights: its features, and the U-Net to which they are added.

Limit 1e-5: float32 rounding through some 20 (adapter) to 100 layers; measured below 2e-6.
"""

import re

import jax
import numpy as np
import pytest

from ldm.adapters.t2i_adapter import T2IAdapter, with_features
from ldm.conditioning import Conditioning
from ldm.models.layers import bind
from ldm.models.unet import UNet
from weights_convert.adapters.t2i_adapter import t2i_part
from weights_convert.engine import convert
from weights_convert.tables import t2i_adapter as table
from weights_convert.tables import unet as unet_table

from . import oracle, ours
from .oracle import agree, diffusers, gaussian, nchw, nhwc, torch

LIMIT = 1e-5
T = np.array([1.0, 981.0], np.float32)
CHANNELS = [64, 128, 192, 192]  # those of the tiny U-Nets
CASES = {
    "full": {"adapter_type": "full_adapter", "channels": CHANNELS},
    "full, grey": {"adapter_type": "full_adapter", "channels": CHANNELS, "in_channels": 1},
    "light": {"adapter_type": "light_adapter", "channels": CHANNELS[:3], "num_res_blocks": 4},
    "full_xl": {"adapter_type": "full_adapter_xl", "channels": CHANNELS, "downscale_factor": 16},
}


def made(case: str, seed: int = 1):
    """(diffusers' adapter, our configuration, our parameters)."""
    model = oracle.randomize(oracle.abstract(diffusers.T2IAdapter, **CASES[case]), seed)
    config = table.config_from_json(model.config, "the oracle")
    part = t2i_part("the oracle", ours.tensors(oracle.arrays(model)), config)
    assert t2i_part("the oracle", part.tensors).config == config  # the shapes alone say the same
    return model, config, convert(part, "float32")


def original_name(name: str, light: bool) -> str:
    """The original code's name of a tensor of the folder layout: both count two residual blocks to a level."""
    name = name.removeprefix("adapter.")
    if light:
        return name.replace("resnets", "body")
    name = re.sub(r"body\.(\d)\.resnets\.(\d)", lambda m: f"body.{2 * int(m[1]) + int(m[2])}", name)
    return re.sub(r"body\.(\d)\.in_conv", lambda m: f"body.{2 * int(m[1])}.in_conv", name)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [(128, 192), (80, 112)], ids=["even", "odd"])
def test_features(case: str, size: tuple[int, int]):
    model, config, params = made(case)
    hint = np.random.default_rng(2).random((2, *size, config.in_channels), np.float32)
    want = model(nchw(hint))
    got = ours.run(T2IAdapter, config)(params, hint)
    assert len(want) == len(config.sites)
    for site, theirs in zip(config.sites, want, strict=True):
        agree(f"T2I-Adapter, {case}, {site}", got[site], nhwc(theirs), LIMIT)


@pytest.mark.parametrize("case", CASES)
def test_the_original_layouts_give_the_same_parameters(case: str):
    model, config, params = made(case)
    light = config.light
    original = {original_name(name, light): array for name, array in oracle.arrays(model).items()}
    assert len(original) == (80 if light else 38)
    part = t2i_part("the oracle", ours.tensors(original))
    assert part.config == config
    assert part.layout().title == "original T2I-Adapter"
    assert ours.same(convert(part, "float32"), params)


@pytest.mark.parametrize(("case", "size"), [("full", (9, 11)), ("full_xl", (16, 8))])
def test_the_unet_with_features(case: str, size: tuple[int, int]):
    family = "sdxl" if case == "full_xl" else "sd1"
    adapter, config, params = made(case)
    model = oracle.randomize(oracle.unet(family), 3)
    numbers = unet_table.config_from_json(model.config, "the oracle")
    weights = ours.convert(UNet, numbers, ours.tensors(oracle.arrays(model)), [unet_table.folder(numbers)])
    x, context = gaussian(0, 2, *size, 4), gaussian(1, 2, 77, 128)
    hint = np.random.default_rng(2).random((2, 8 * size[0], 8 * size[1], 3), np.float32)
    cond, added = Conditioning(context), {}
    if family == "sdxl":
        text, ids = gaussian(4, 2, 64), torch.tensor([[512.0, 768.0, 0.0, 8.0, 512.0, 512.0]] * 2)
        pooled = np.concatenate([text, model.add_time_proj(ids.flatten()).reshape(2, -1).numpy()], axis=-1)
        cond, added = Conditioning(context, pooled=pooled), {"text_embeds": torch.from_numpy(text), "time_ids": ids}

    @jax.jit
    def run(weights, params, scale):
        hooks = with_features(bind(T2IAdapter, config, params)(hint), scale=scale)
        return bind(UNet, numbers, weights)(x, T, cond, hooks=hooks)

    scale = 0.8
    maps = [scale * features for features in adapter(nchw(hint))]
    want = model(
        nchw(x),
        torch.from_numpy(T),
        torch.from_numpy(context),
        added_cond_kwargs=added,
        down_intrablock_additional_residuals=maps,
    ).sample
    assert maps == []  # diffusers takes each out of the list when it has added it
    got, clean = run(weights, params, np.float32(scale)), run(weights, params, np.float32(0))
    assert oracle.rel(got, clean) > 0.1
    agree(f"U-Net with a T2I-Adapter, {case}", got, nhwc(want), LIMIT)


@pytest.mark.parametrize(
    ("numbers", "parameters"),
    [
        ({}, 77_369_280),
        ({"in_channels": 1}, 77_000_640),
        ({"adapter_type": "light_adapter", "channels": [320, 640, 1280], "num_res_blocks": 4}, 18_689_200),
        ({"adapter_type": "full_adapter_xl", "downscale_factor": 16}, 79_028_160),
    ],
)
def test_sizes_and_names_at_full_size(numbers: dict, parameters: int):
    """The literals of ``tests/test_t2i_adapter.py`` are diffusers' own counts."""
    model = oracle.abstract(diffusers.T2IAdapter, **numbers)
    assert sum(p.numel() for p in model.parameters()) == parameters
    config = table.config_from_json(model.config, "the oracle")
    tensors = ours.tensors(model.state_dict(), "adapter.")
    ours.bijection(T2IAdapter, config, tensors, [table.folder(config), table.single_file(config)])
