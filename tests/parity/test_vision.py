"""Our vision tower against transformers' ``CLIPVisionModelWithProjection``: tiny to 1e-5, ViT-L/14 to 1e-4.

Limits: float32 rounding through up to 24 layers.
"""

from typing import Any

import numpy as np
import pytest

from ldm.models.vision import VisionConfig, VisionTower, preprocess
from weights_convert.engine import Layout

from . import oracle, ours
from .oracle import agree

TINY, FULL = 1e-5, 1e-4
SMALL = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 4, "num_attention_heads": 4}
SMALL |= {"image_size": 64, "patch_size": 8, "projection_dim": 96}  # 96 wide: a missed transpose cannot hide
VIT_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
VIT_L |= {"image_size": 224, "patch_size": 14, "projection_dim": 768}
NAMES = (
    (r"^class_embedding$", "embeddings.class_embedding"),
    (r"^position_embedding$", "embeddings.position_embedding.weight"),
    (r"^first_norm\.", "pre_layrnorm."),
    (r"^final_norm\.", "post_layernorm."),
    (r"^projection\.", "visual_projection."),
    (r"^layers\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^layers\.(\d+)\.attn\.(q|k|v|out)\.", r"encoder.layers.\1.self_attn.\2_proj."),
    (r"^layers\.(\d+)\.fc", r"encoder.layers.\1.mlp.fc"),
    (r"^patch_embedding\.", "patches."),
)


def public(sizes: dict, act: str, seed: int) -> Any:
    """The oracle with random weights."""
    config = oracle.transformers.CLIPVisionConfig(**sizes, hidden_act=act)
    return oracle.randomize(oracle.abstract(oracle.transformers.CLIPVisionModelWithProjection, config), seed)


def converted(model: Any) -> tuple[VisionConfig, dict]:
    """Our configuration and parameters of it. Its patches' kernel is no table of vectors, whatever its name says."""
    c = model.config
    sizes = c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads
    config = VisionConfig(c.image_size, c.patch_size, *sizes, c.hidden_act, c.projection_dim)
    weights = {name.removeprefix("vision_model."): value for name, value in oracle.arrays(model).items()}
    weights["patches.weight"] = weights.pop("embeddings.patch_embedding.weight")
    layouts = [Layout("folder vision tower", NAMES)]
    ours.bijection(VisionTower, config, ours.tensors(weights), layouts)
    return config, ours.convert(VisionTower, config, ours.tensors(weights), layouts)


def compare(title: str, model: Any, pictures: np.ndarray, limit: float) -> None:
    """The tokens at every number of layers left out, and the pooled state."""
    seen = oracle.nchw(preprocess(pictures))
    out = model(seen, output_hidden_states=True)
    states = [state.numpy() for state in reversed(out.hidden_states)]
    config, params = converted(model)
    encode = ours.run(VisionTower, config)
    got = [encode(params, pictures, skip) for skip in range(len(states))]
    assert len(states) == config.layers + 1
    worst = max(range(len(states)), key=lambda skip: oracle.rel(got[skip].tokens, states[skip]))
    agree(f"{title}, {worst} layers left out (the worst)", got[worst].tokens, states[worst], limit)
    agree(f"{title}, pooled", got[0].pooled, out.image_embeds.numpy(), limit)
    assert encode._cache_size() == 1  # the layers left out are a run-time value


def pictures(side: int, count: int = 2) -> np.ndarray:
    """Noise in [-1, 1]."""
    return np.random.default_rng(0).uniform(-1, 1, (count, side, side, 3)).astype(np.float32)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_tiny(act: str):
    compare(f"vision tower, {act}", public(SMALL, act, 1), pictures(64), TINY)


def test_each_picture_may_leave_out_another_number_of_layers():
    model = public(SMALL, "gelu", 2)
    config, params = converted(model)
    states = model(oracle.nchw(preprocess(pictures(64, 3))), output_hidden_states=True).hidden_states
    want = np.stack([states[-1 - skip][i] for i, skip in enumerate((1, 0, 2))])
    got = ours.run(VisionTower, config)(params, pictures(64, 3), np.array([1, 0, 2])).tokens
    agree("vision tower, 1, 0 and 2 layers left out", got, want, TINY)


def test_pictures_are_prepared_as_the_public_processor_does():
    bytes_ = np.random.default_rng(3).integers(0, 256, (2, 64, 64, 3), np.uint8)
    processor = oracle.transformers.CLIPImageProcessor(do_resize=False, do_center_crop=False)
    want = processor(list(bytes_), return_tensors="pt")["pixel_values"]
    agree("pictures for CLIP", preprocess(np.float32(bytes_ / 127.5 - 1)), oracle.nhwc(want), 1e-6)


@pytest.mark.full
def test_full_size():
    model = public(VIT_L, "quick_gelu", 4)
    assert converted(model)[0] == VisionConfig()
    compare("vision tower, ViT-L/14 at full size", model, pictures(224, 1), FULL)
