"""LoRA in files: every public layout against its own product, ours and exports and back, names at full size."""

import json
import math
import warnings

import jax
import numpy as np
import pytest
from lora_files import (
    ALPHA,
    ATTN,
    CONV,
    FF,
    OUT_NAMES,
    QUERY,
    RANK,
    W,
    added,
    kohya,
    locon,
    loha,
    lokr,
    lokr_window,
    numbers,
    ours,
    plain,
    relative,
    small_lora,
    write,
)
from safetensors.numpy import load_file

import weights_convert
from ldm.adapters import lora as loras
from ldm.bundle import Configs
from ldm.models.layers import shapes
from ldm.models.text import TextConfig
from ldm.models.unet import UNet, UNetConfig
from weights_convert.adapters.export import export_lora
from weights_convert.adapters.inspection import MODELS
from weights_convert.adapters.names import kernels, table
from weights_convert.tables import unet as unet_names

TEXT = "encoder.layers.1.self_attn.v_proj"


@pytest.fixture(scope="module")
def lora() -> dict:
    """A LoRA of both parts."""
    return small_lora()


D = {QUERY: (W, W), FF: (8 * W, W), CONV: (W, W)}
FILES = {
    "LoRA": (QUERY, plain(*D[QUERY], 1), ALPHA / RANK),
    "another shape": (FF, plain(*D[FF], 2, rank=5), ALPHA / 5),
    "convolution": (CONV, plain(*D[CONV], 3, window=(3, 3)), ALPHA / RANK),
    "a layer given as a 1x1 convolution": (QUERY, plain(*D[QUERY], 4, window=(1, 1)), ALPHA / RANK),
    "LoCon": (CONV, locon(*D[CONV], 5), ALPHA / RANK),
    "LoHa": (FF, loha(*D[FF], 6), ALPHA / RANK),
    "LoHa, convolution": (CONV, loha(*D[CONV], 7, (3, 3)), ALPHA / RANK),
    "LoHa, core": (CONV, loha(*D[CONV], 8, (3, 3), tucker=True), ALPHA / RANK),
    "LoKr": (FF, lokr(*D[FF], 9), ALPHA / RANK),
    "LoKr, both of low rank": (FF, lokr(*D[FF], 10, "both"), ALPHA / RANK),
    "LoKr, both whole": (FF, lokr(*D[FF], 11, "whole"), 1.0),
    "LoKr, convolution": (CONV, lokr_window(*D[CONV], 12, False), ALPHA / RANK),
    "LoKr, core": (CONV, lokr_window(*D[CONV], 13, True), ALPHA / RANK),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_adds_the_product_of_its_matrices(least, tmp_path, kind):
    layer, (matrices, delta), factor = FILES[kind]
    delta = delta[:, :, 0, 0] if delta.ndim == 4 and delta.shape[2:] == (1, 1) else delta
    path = write(tmp_path, kohya({layer: matrices}))
    assert relative(added(least, path, OUT_NAMES[layer], scale=0.5), 0.5 * factor * ours(delta)) < 3e-6


@pytest.mark.parametrize("alpha", [None, 0.0])
def test_no_alpha_and_alpha_zero_are_the_rank(least, tmp_path, alpha):
    matrices, delta = plain(W, W, 1)
    path = write(tmp_path, kohya({QUERY: matrices}, alpha))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert relative(added(least, path, OUT_NAMES[QUERY]), ours(delta)) < 3e-6
    assert [("alpha is 0" in str(w.message)) for w in caught] == ([] if alpha is None else [True])


SPELLINGS = {
    "kohya": (lambda layer, role: f"lora_unet_{layer.replace('.', '_')}.lora_{role}.weight", QUERY),
    "diffusers": (lambda layer, role: f"unet.{layer}.lora.{role}.weight", QUERY),
    "diffusers, old": (lambda layer, role: f"unet.{ATTN}.attn1.processor.to_q_lora.{role}.weight", QUERY),
    "processors without prefix": (lambda layer, role: f"{ATTN}.attn1.processor.to_q_lora.{role}.weight", QUERY),
    "PEFT": (lambda layer, role: f"base_model.model.{layer}.lora_{'AB'[role == 'up']}.weight", FF),
    "PEFT with its name": (lambda layer, role: f"unet.{layer}.lora_{'AB'[role == 'up']}.default_0.weight", FF),
    "single-file names": (
        lambda layer, role: f"lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_{role}.weight",
        QUERY,
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_found(least, tmp_path, spelling):
    name, layer = SPELLINGS[spelling]
    matrices, delta = plain(*D[layer], 1)
    path = write(tmp_path, {name(layer, role): array for role, array in matrices.items()})
    assert relative(added(least, path, OUT_NAMES[layer]), ours(delta)) < 3e-6


TEXT_SPELLINGS = (
    f"lora_te_text_model_{TEXT.replace('.', '_')}.lora_{{}}.weight",
    f"lora_te1_text_model_{TEXT.replace('.', '_')}.lora_{{}}.weight",
    f"text_encoder.text_model.{TEXT}.lora_linear_layer.{{}}.weight",
    "text_encoder.text_model.encoder.layers.1.self_attn.to_v_lora.{}.weight",
)


@pytest.mark.parametrize("spelling", TEXT_SPELLINGS)
def test_text_towers_are_found(least, tmp_path, spelling):
    matrices, delta = plain(64, 64, 1)
    path = write(tmp_path, {spelling.format(role): array for role, array in matrices.items()})
    assert relative(added(least, path, "layers.1.attn.v.kernel", "text"), ours(delta)) < 3e-6


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"r": RANK, "lora_alpha": 6}, 6 / RANK),
        ({"r": RANK, "lora_alpha": 6, "use_rslora": True}, 6 / math.sqrt(RANK)),
        ({"r": 8, "rank_pattern": {"attn1.to_q": RANK}, "lora_alpha": 6, "alpha_pattern": {"to_q": 5}}, 5 / RANK),
    ],
)
def test_what_pefts_configuration_says(least, tmp_path, settings, factor):
    """In a folder of PEFT, or in the metadata that diffusers writes."""
    matrices, delta = plain(W, W, 1)
    tensors = {f"base_model.model.{QUERY}.lora_{'AB'[r == 'up']}.weight": a for r, a in matrices.items()}
    write(tmp_path, tensors, "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert relative(added(least, tmp_path, OUT_NAMES[QUERY]), factor * ours(delta)) < 3e-6
    (tmp_path / "adapter_config.json").unlink()
    told = json.dumps({f"unet.{key}": value for key, value in settings.items()})
    path = write(tmp_path, tensors, "other.safetensors", lora_adapter_metadata=told)
    assert relative(added(least, path, OUT_NAMES[QUERY]), factor * ours(delta)) < 3e-6


@pytest.mark.parametrize("late", [0, 1], ids=["ff between", "ff last"])
def test_numbers_in_place_of_names(least, tmp_path, late):
    """cloneofsimo's layout: both orders in which the blocks were once defined."""
    block = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"]
    cross = [name.replace("attn1", "attn2") for name in block]
    order = [*block, *cross, "ff.net.0.proj"] if late else [*block, "ff.net.0.proj", *cross]
    places = [f"{at}.transformer_blocks.0.{name}" for at in spots() for name in order]
    sizes = {name: spec.shape for name, spec in shapes(UNet, least.configs.unet).items()}
    layout, tensors, wanted = unet_names.folder(least.configs.unet), {}, {}
    public = {layout.public(name).removesuffix(".weight"): name for name in sizes}
    for number, place in enumerate(places):
        i, o = sizes[public[place]]
        matrices, delta = plain(o, i, number)
        tensors |= {f"unet:{number}:{role}": array for role, array in matrices.items()}
        wanted[public[place]] = ours(delta)
    path = write(tmp_path, tensors, unet=json.dumps(["GEGLU", "CrossAttention", "Attention"]))
    found = weights_convert.load_lora(path, least)["unet"]
    assert found.keys() == wanted.keys()
    for name, change in found.items():
        assert relative(change.form.whole(), wanted[name]) < 1e-6 and change.factor == 1


def spots() -> list[str]:
    """The attentions of the small U-Net, in the order of definition: down, up."""
    return ["down_blocks.0.attentions.0", "up_blocks.0.attentions.0", "up_blocks.0.attentions.1"]


# ---- files of ours, and for others ----


def test_own_files_come_back_to_the_bit(least, lora, tmp_path):
    loras.save_lora(lora, tmp_path / "a.safetensors")
    back = weights_convert.load_lora(tmp_path / "a.safetensors", least)
    jax.tree.map(np.testing.assert_array_equal, back, {part: dict(own) for part, own in lora.items()})


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
def test_exports_come_back_to_the_bit(least, lora, tmp_path, layout):
    lora = {"unet": lora["unet"]} if layout == "peft" else lora
    export_lora(lora, least.configs, tmp_path / "out", layout)
    back = weights_convert.load_lora(tmp_path / "out", least)
    jax.tree.map(np.testing.assert_array_equal, back, {part: dict(own) for part, own in lora.items()})


def test_the_first_generation_has_convolutions_around_its_transformers(tmp_path):
    """1x1 convolutions in 1.x, linear layers in 2.x: other tools want the matrices in the layer's own shape."""
    change = loras.changes_of(
        {"encoder.down.0.attn.0.proj_in.kernel": loras.LowRank(numbers(0, 320, 2), numbers(1, 2, 320))}, 1.0
    )
    for family, shape in (("Stable Diffusion 1.x", (2, 320, 1, 1)), ("Stable Diffusion 2.x", (2, 320))):
        path = tmp_path / f"{len(shape)}.safetensors"
        export_lora({"unet": change}, MODELS[family], path, "kohya")
        assert load_file(path)["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"].shape == shape


def test_what_no_layout_holds_is_said(least, lora, tmp_path):
    with pytest.raises(ValueError, match="PEFT's folder holds one model's LoRA"):
        export_lora(lora, least.configs, tmp_path / "out", "peft")
    odd = {
        "unet": {
            OUT_NAMES[QUERY]: loras.Change(
                loras.Hadamard(*[loras.LowRank(numbers(0, W, 2), numbers(1, 2, W))] * 2), 1.0
            )
        }
    }
    with pytest.raises(ValueError, match="Hadamard has no down and up"):
        export_lora(odd, least.configs, tmp_path / "out", "kohya")
    with pytest.raises(ValueError, match="layout 'onnx' is none of"):
        export_lora(lora, least.configs, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


def test_small_numbers_are_not_lost(tmp_path):
    """The file is written in float32 and comes back so."""
    path = tmp_path / "a.safetensors"
    change = {"unet": loras.changes_of({"a.kernel": loras.LowRank(numbers(0, 4, 2) * 1e-8, numbers(1, 2, 4))}, 1.0)}
    loras.save_lora(change, path)
    assert {a.dtype for a in load_file(path).values()} == {np.dtype(np.float32)}
    assert relative(load_file(path)["ldm.unet.a.lora_down.weight"].T, numbers(0, 4, 2) * 1e-8) == 0


# ---- names at full size ----


@pytest.mark.parametrize("family", MODELS)
def test_underscored_names_are_unique_at_full_size(family):
    """So no two layers can be taken for one another; SDXL has 794 in its U-Net."""
    known = table(MODELS[family])
    own = [kernel for kernel in kernels(MODELS[family]) if kernel.part == "unet"]
    for config_layout in (unet_names.folder, unet_names.single_file):
        layout = config_layout(MODELS[family].unet)
        names = {f"lora_unet_{layout.public(k.name).removesuffix('.weight').replace('.', '_')}" for k in own}
        assert len(names) == len(own) and {known[name].name for name in names} == {k.name for k in own}
    if family == "SDXL":
        assert len(own) == 794


def test_kohyas_usual_layers_at_full_size():
    """192 of the U-Net's 16 transformers and 72 of the text tower's 12 layers."""
    configs = Configs(UNetConfig(), text=TextConfig())
    names = list(kernels(configs))
    inside = [
        k
        for k in names
        if k.part == "unet" and (".blocks." in k.name or k.name.endswith(("proj_in.kernel", "proj_out.kernel")))
    ]
    assert len(inside) == 16 * 12 and len([k for k in names if k.part == "text"]) == 12 * 6
