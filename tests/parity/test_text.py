"""Our text towers against transformers' ``CLIPTextModel``: every layer left out, tiny to 1e-5, ViT-L and ViT-H to 1e-4.

Limits: float32 rounding through up to 23 layers; measured below 1e-6.
"""

import importlib
import warnings
from typing import Any

import numpy as np
import pytest

from ldm.models.text import TextTower
from weights_convert import engine
from weights_convert.parts import text_part
from weights_convert.tables import text as table

from . import layouts, oracle, ours
from .oracle import agree, torch

TINY, FULL = 1e-5, 1e-4
START, END = 49406, 49407


def prompts() -> np.ndarray:
    """Token ids [3, 77]: padded with the end, padded with 0, and one that fills every place."""
    ids = np.random.default_rng(0).integers(1, START, (3, 77)).astype(np.int32)
    ids[:, 0], ids[:, -1] = START, END
    ids[0, 9:] = END
    ids[1, 20:], ids[1, 20] = 0, END
    return ids


def converted(model: Any) -> tuple[Any, dict]:
    """Our configuration and parameters of a transformers model, from its own configuration and names."""
    config = table.config_from_json(model.config.to_dict(), False, "the oracle")
    public = {f"text_model.{name}": value for name, value in oracle.arrays(model).items()}
    return config, ours.convert(TextTower, config, table.without_wrapper(ours.tensors(public)), table.layouts(config))


def compare(title: str, model: Any, ids: np.ndarray, limit: float) -> None:
    """The context at every number of layers left out, and the pooled state."""
    out = model(torch.from_numpy(ids).long(), output_hidden_states=True)
    states = [model.final_layer_norm(state).numpy() for state in reversed(out.hidden_states)]
    assert np.array_equal(states[0], out.last_hidden_state.numpy())
    config, params = converted(model)
    encode = ours.run(TextTower, config)
    got = [encode(params, ids, skip) for skip in range(len(states))]
    worst = max(range(len(states)), key=lambda skip: oracle.rel(got[skip].context, states[skip]))
    agree(f"{title}, {worst} layers left out (the worst)", got[worst].context, states[worst], limit)
    agree(f"{title}, pooled", got[0].pooled, out.pooler_output.numpy(), limit)
    assert encode._cache_size() == 1  # clip skip is a run-time value


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_tiny(family: str):
    compare(f"text tower, {family}", oracle.randomize(oracle.text(family, num_hidden_layers=4), 1), prompts(), TINY)


def test_each_text_may_leave_out_another_number_of_layers():
    model = oracle.randomize(oracle.text("sd1"), 5)
    config, params = converted(model)
    out = model(torch.from_numpy(prompts()).long(), output_hidden_states=True)
    want = np.stack([model.final_layer_norm(out.hidden_states[-1 - skip])[i] for i, skip in enumerate((0, 2, 1))])
    got = ours.run(TextTower, config)(params, prompts(), np.array([0, 2, 1])).context
    agree("text tower, 0, 2 and 1 layers left out", got, want, TINY)


def test_openclip_s_spelling_gives_the_same_model_without_its_last_layer():
    model = oracle.randomize(oracle.text("sd2"), 2)
    config, params = converted(model)
    single = ours.tensors({k: v.numpy() for k, v in layouts.open_clip_file(model).items()}, layouts.OPEN_CLIP)
    assert table.config_from_shapes(single, False, "gelu", drop_layers=1) == config
    assert ours.same(ours.convert(TextTower, config, single, table.layouts(config)), params)


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_projection_of_the_pooled_state(family: str):
    """``CLIPTextModelWithProjection``, as SDXL's second tower: 96 wide, so that a missed transpose cannot hide."""
    sizes = oracle.TINY_TEXTS[family] | {"num_hidden_layers": 2, "projection_dim": 96, "eos_token_id": END}
    config = oracle.transformers.CLIPTextConfig(intermediate_size=512, vocab_size=49408, **sizes)
    model = oracle.randomize(oracle.abstract(oracle.transformers.CLIPTextModelWithProjection, config), 3)
    numbers = table.config_from_json(model.config.to_dict(), True, "the oracle")
    weights = table.without_wrapper(ours.tensors(oracle.arrays(model)))
    params = ours.convert(TextTower, numbers, weights, table.layouts(numbers))
    want = model(torch.from_numpy(prompts()).long()).text_embeds.numpy()
    agree(f"text tower, {family}, projected", ours.run(TextTower, numbers)(params, prompts()).pooled, want, TINY)


@pytest.mark.parametrize("quick", [True, False], ids=["quick_gelu", "gelu"])
def test_a_whole_openclip_model(quick: bool):
    """Fused queries, keys and values, an input-first projection, and an image tower that is left aside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clip = importlib.import_module("open_clip.model")
    seen = clip.CLIPVisionCfg(layers=1, width=64, head_width=32, patch_size=16, image_size=32)
    read = clip.CLIPTextCfg(context_length=77, vocab_size=49408, width=128, heads=2, layers=3)
    model = oracle.randomize(clip.CLIP(96, seen, read, quick_gelu=quick), 6)
    part = text_part("the oracle", ours.tensors(oracle.arrays(model)), activation="quick_gelu" if quick else "gelu")
    ids = torch.from_numpy(prompts()).long()
    before_last = model.token_embedding(ids) + model.positional_embedding
    for block in model.transformer.resblocks[:-1]:
        before_last = block(before_last, attn_mask=model.attn_mask)
    encode, params = ours.run(TextTower, part.config), engine.convert(part, "float32")
    pooled, skipped = encode(params, prompts(), 0).pooled, encode(params, prompts(), 1).context
    agree(f"OpenCLIP text tower, projected, quick {quick}", pooled, model.encode_text(ids), TINY)
    agree(f"OpenCLIP text tower, penultimate, quick {quick}", skipped, model.ln_final(before_last), TINY)


@pytest.mark.full
@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_full_size(family: str):
    model = oracle.randomize(oracle.text(family, full=True), 4)
    compare(f"text tower, {family} at full size", model, prompts()[1:2], FULL)
