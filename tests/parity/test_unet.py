"""Our U-Net against diffusers': tiny ones of every family to 1e-5, Stable Diffusion 1.5's and 2.1's to 1e-4.

Limits: float32 rounding of about 6e-8 a step, through some 100 (tiny) to 200 layers whose sums run over up to 11,520
numbers in another order; measured about 1e-6.
"""

from typing import Any

import numpy as np
import pytest

from ldm.conditioning import Conditioning
from ldm.models.unet import Features, UNet
from weights_convert.tables import unet as table

from . import layouts, oracle, ours
from .oracle import agree, diffusers, gaussian, nchw, nhwc, torch

TINY, FULL = 1e-5, 1e-4
T = np.array([1.0, 981.0], np.float32)
CASES = {
    "sd1": ("sd1", {}, (16, 24)),
    "sd1, odd size": ("sd1", {}, (9, 11)),
    "sd2": ("sd2", {}, (16, 24)),
    "sd2, upcast attention": ("sd2", {"upcast_attention": True}, (8, 16)),
    "inpainting, 9 channels": ("sd1", {"in_channels": 9}, (8, 16)),
    "sd2 inpainting, 9 channels": ("sd2", {"in_channels": 9}, (8, 16)),
    "8 channels": ("sd1", {"in_channels": 8}, (8, 16)),
    "3 levels, 1 block": (
        "sd1",
        {
            "block_out_channels": (64, 128, 192),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "norm_num_groups": 16,
        },
        (8, 16),
    ),
}


def spellings(config: Any) -> list:
    """The two public layouts of a U-Net."""
    return [table.folder(config), table.single_file(config)]


def converted(model: Any) -> tuple[Any, dict]:
    """Our configuration and parameters of a diffusers model, from its own configuration and names."""
    config = table.config_from_json(model.config, "the oracle")
    return config, ours.convert(UNet, config, ours.tensors(oracle.arrays(model)), spellings(config))


def theirs(model: Any, x: np.ndarray, t: np.ndarray, context: np.ndarray, **named: Any) -> np.ndarray:
    """The oracle's prediction, NHWC in and out."""
    return nhwc(model(nchw(x), torch.from_numpy(t), torch.from_numpy(context), **named).sample)


def condition(context: np.ndarray, x: np.ndarray, **named: Any) -> tuple[np.ndarray, Conditioning]:
    """Noisy latent (4 channels) and condition: the channels beyond 4 go in as ``concat``."""
    return x[..., :4], Conditioning(context, concat=x[..., 4:] if x.shape[-1] > 4 else None, **named)


@pytest.mark.parametrize("case", CASES)
def test_tiny(case: str):
    family, numbers, size = CASES[case]
    model = oracle.randomize(oracle.unet(family, **numbers), 1)
    config, params = converted(model)
    x, context = gaussian(0, 2, *size, model.config.in_channels), gaussian(1, 2, 77, 128)
    noisy, cond = condition(context, x)
    agree(f"U-Net, {case}", ours.run(UNet, config)(params, noisy, T, cond), theirs(model, x, T, context), TINY)


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_both_spellings_and_the_shapes_alone_give_the_same_model(family: str):
    model = oracle.randomize(oracle.unet(family), 2)
    config, params = converted(model)
    single = ours.tensors({k: v.numpy() for k, v in layouts.unet_file(model).items()}, layouts.UNET)
    assert table.config_from_shapes(single) == config
    assert ours.same(ours.convert(UNet, config, single, spellings(config)), params)


def test_control_is_added_where_diffusers_adds_a_controlnet():
    model = oracle.randomize(oracle.unet("sd1"), 3)
    config, params = converted(model)
    x, context = gaussian(0, 2, 8, 16, 4), gaussian(1, 2, 77, 128)
    clean = ours.run(UNet, config)(params, x, T, Conditioning(context))
    levels = [(64, 1)] * 3 + [(64, 2)] + [(128, 2)] * 2 + [(128, 4)] + [(192, 4)] * 2 + [(192, 8)] * 3
    skips = [gaussian(i, 2, 8 // scale, 16 // scale, c) for i, (c, scale) in enumerate(levels)]
    middle = gaussian(99, 2, 1, 2, 192)
    added = {
        "down_block_additional_residuals": [nchw(s) for s in skips],
        "mid_block_additional_residual": nchw(middle),
    }
    got = ours.run(UNet, config)(params, x, T, Conditioning(context), control=Features(tuple(skips), middle))
    assert oracle.rel(got, clean) > 0.1
    agree("U-Net, control", got, theirs(model, x, T, context, **added), TINY)


def test_pooled_condition_as_sdxl_has_it():
    model = oracle.randomize(oracle.unet("sdxl"), 4)
    config, params = converted(model)
    x, context, text = gaussian(0, 2, 8, 16, 4), gaussian(1, 2, 77, 128), gaussian(2, 2, 64)
    ids = torch.tensor([[512.0, 768.0, 0.0, 8.0, 512.0, 512.0], [1024.0, 1024.0, 16.0, 0.0, 640.0, 512.0]])
    pooled = np.concatenate([text, model.add_time_proj(ids.flatten()).reshape(2, -1).numpy()], axis=-1)
    added = {"text_embeds": torch.from_numpy(text), "time_ids": ids}
    got = ours.run(UNet, config)(params, x, T, Conditioning(context, pooled=pooled))
    agree("U-Net, sdxl", got, theirs(model, x, T, context, added_cond_kwargs=added), TINY)


def test_guidance_condition_as_latent_consistency_models_have_it():
    pipeline = diffusers.LatentConsistencyModelPipeline
    model = oracle.randomize(oracle.unet("sd1", time_cond_proj_dim=256), 5)
    config, params = converted(model)
    assert config.guidance_dim == 256
    x, context, scales = gaussian(0, 2, 8, 16, 4), gaussian(1, 2, 77, 128), np.float32([1.0, 8.5])
    w = pipeline.get_guidance_scale_embedding(None, torch.from_numpy(scales) - 1, embedding_dim=256)
    got, plain = (ours.run(UNet, config)(params, x, T, Conditioning(context, guidance=g)) for g in (scales, scales[0]))
    limit = 10 * TINY  # sines of numbers up to 7,500, which float32 has to 2e-4
    agree("U-Net, guidance", got, theirs(model, x, T, context, timestep_cond=w), limit)
    agree("U-Net, guidance, one for all", got[:1], plain[:1], TINY)
    assert oracle.rel(got[1], plain[1]) > 0.01


@pytest.mark.full
@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_full_size(family: str):
    model = oracle.randomize(oracle.unet(family, full=True), 5)
    x, context = gaussian(0, 1, 64, 64, 4), gaussian(1, 1, 77, model.config.cross_attention_dim)
    want = theirs(model, x, T[1:], context)
    config, params = converted(model)
    del model
    agree(f"U-Net, {family} at full size", ours.run(UNet, config)(params, x, T[1:], Conditioning(context)), want, FULL)
