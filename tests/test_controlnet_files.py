"""Public ControlNet files of every layout: read, written, added to a model, and what is said where one does not fit."""

import json
from dataclasses import replace

import checkpoint_files
import jax.numpy as jnp
import numpy as np
import pytest
from lora_files import numbers
from safetensors.numpy import load_file, save_file

import weights_convert
from ldm.adapters.controlnet import ControlNet, ControlNetConfig, Net
from ldm.bundle import Bundle, Configs
from ldm.models.layers import shapes
from ldm.models.unet import UNet, UNetConfig
from weights_convert import export_control, load_control
from weights_convert.inspection import inspect

KINDS = {  # small ones, with the context and the heads by which a family is told
    "1.x": UNetConfig(channels=(32, 64), blocks=1, depth=(1, 0), heads=(8, 8), context_dim=768),
    "2.x": UNetConfig(channels=(64, 128), blocks=1, depth=(1, 0), heads=(1, 2), context_dim=1024),
}
RANK = 3
HEADS = UNetConfig(channels=(32, 64), blocks=2, depth=(1, 0), heads=(2, 4), context_dim=24, groups=8)
CONV, QUERY = "input_blocks.1.0.in_layers.2", "middle_block.1.transformer_blocks.0.attn1.to_q"
OURS = {CONV: "encoder.down.0.res.0.conv1.kernel", QUERY: "encoder.middle.attn.blocks.0.self_attn.q.kernel"}


def random(model, config, seed):
    """Parameters, none of them zero."""
    return {k: jnp.asarray(numbers(seed + i, *s.shape)) for i, (k, s) in enumerate(shapes(model, config).items())}


def net_of(unet: UNetConfig, widths=(4, 8, 12, 16), channels=3) -> Net:
    """A small ControlNet."""
    config = ControlNetConfig(unet, channels, widths)
    return Net(config, random(ControlNet, config, 0))


NETS = {kind: net_of(unet) for kind, unet in KINDS.items()}
BASES = {kind: Bundle(Configs(unet), {"unet": random(UNet, unet, 1000)}) for kind, unet in KINDS.items()}


def same(a: Net, b: Net) -> bool:
    """Whether two are equal bit for bit, in their dtypes too."""
    equal = lambda x, y: x.dtype == y.dtype and np.array_equal(x, y)
    return a.config == b.config and a.params.keys() == b.params.keys() and all(map(equal, *map(values, (a, b))))


def values(net: Net) -> list:
    """The arrays in one order."""
    return [net.params[name] for name in sorted(net.params)]


def original(kind: str, folder) -> dict[str, np.ndarray]:
    """The tensors of an original file, without prefix."""
    export_control(NETS[kind], folder / "made.safetensors", "original")
    return {k.removeprefix("control_model."): a for k, a in load_file(folder / "made.safetensors").items()}


def write(path, tensors, prefix="control_model."):
    """A .safetensors file."""
    save_file({prefix + name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)
    return path


def refused(phrase, source, bundle=None):
    """Asserts that the source is refused by one sentence that names it and has the phrase."""
    with pytest.raises(ValueError) as caught:
        load_control(source, bundle)
    message = str(caught.value)
    assert phrase in message and str(source) in message and "\n" not in message, message


# ---- layouts ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_what_is_written_is_read_again(tmp_path, kind, layout):
    export_control(NETS[kind], tmp_path / "net", layout)
    assert same(load_control(tmp_path / "net"), NETS[kind])
    assert same(load_control(tmp_path / "net", BASES[kind]), NETS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_one_by_one_convolutions_are_the_family_s(tmp_path, kind):
    export_control(NETS[kind], tmp_path / "net", "diffusers")
    names = {"original": original(kind, tmp_path)}
    names["diffusers"] = load_file(tmp_path / "net/diffusion_pytorch_model.safetensors")
    axes = {name: array.ndim for own in names.values() for name, array in own.items()}
    for name in ("zero_convs.0.0", "middle_block_out.0", "controlnet_down_blocks.3", "controlnet_mid_block"):
        assert axes[f"{name}.weight"] == 4 and axes[f"{name}.bias"] == 1
    assert axes["input_blocks.3.0.skip_connection.weight"] == axes["down_blocks.1.resnets.0.conv_shortcut.weight"] == 4
    for name in ("middle_block.1.proj_in", "mid_block.attentions.0.proj_out"):
        assert axes[f"{name}.weight"] == (4 if kind == "1.x" else 2)
    assert axes["middle_block.1.transformer_blocks.0.ff.net.0.proj.weight"] == 2
    config = json.loads((tmp_path / "net/config.json").read_text())
    assert config["use_linear_projection"] == (kind == "2.x") and "out_channels" not in config


def test_dtypes(tmp_path):
    net = NETS["1.x"]
    for layout in ("original", "diffusers"):
        export_control(net, tmp_path / layout, layout)
        half = load_control(tmp_path / layout, dtype="bfloat16")
        assert same(half, Net(net.config, {k: a.astype(jnp.bfloat16) for k, a in net.params.items()}))
        export_control(half, tmp_path / f"half {layout}", layout)
        assert same(load_control(tmp_path / f"half {layout}", dtype="bfloat16"), half)


def test_a_prefix_a_wrapper_and_a_whole_model_beside_change_nothing(tmp_path):
    tensors, net = original("1.x", tmp_path), NETS["1.x"]
    assert same(load_control(write(tmp_path / "bare.safetensors", tensors, "")), net)
    assert same(load_control(write(tmp_path / "wrapped.safetensors", tensors, "module.control_model.")), net)
    prefixed = {f"control_model.{name}": array for name, array in tensors.items()}
    model = {"model.diffusion_model.out.2.bias": numbers(1, 4), "betas": numbers(2, 3)}
    model |= {"first_stage_model.decoder.conv_out.bias": numbers(3, 3), "cond_stage_model.transformer.x": numbers(4, 2)}
    (tmp_path / "whole.pth").write_bytes(checkpoint_files.torch_zip_bytes(prefixed | model))
    assert same(load_control(tmp_path / "whole.pth"), net)
    odd = write(tmp_path / "odd.safetensors", prefixed | {"surplus.weight": numbers(5, 2)}, "")
    refused("1 tensors belong to no part of Stable Diffusion, such as surplus.weight", odd)


def test_a_folder_says_that_a_net_is_pooled(tmp_path):
    net = Net(replace(NETS["1.x"].config, pooled=True), NETS["1.x"].params)
    for layout in ("original", "diffusers"):
        export_control(net, tmp_path / layout, layout)
    assert json.loads((tmp_path / "diffusers/config.json").read_text())["global_pool_conditions"] is True
    assert same(load_control(tmp_path / "diffusers"), net)
    assert "pooled: averaged over all pixels" in inspect(tmp_path / "diffusers")
    read = load_control(tmp_path / "original")
    assert same(read, NETS["1.x"]) and same(replace(read, config=replace(read.config, pooled=True)), net)


def test_folder_names_in_one_file_need_no_configuration(tmp_path):
    for kind, net in NETS.items():
        export_control(net, tmp_path / kind, "diffusers")
        file = tmp_path / kind / "diffusion_pytorch_model.safetensors"
        assert same(load_control(file), net)
        (tmp_path / kind / "config.json").unlink()
        assert same(load_control(file), net) and same(load_control(tmp_path / kind), net)


def test_heads_are_the_configuration_s_or_the_model_s(tmp_path):
    """Single files do not say them; without a model those of the family are taken."""
    net, bundle = net_of(HEADS, (4, 8), 1), Bundle(Configs(HEADS), {"unet": random(UNet, HEADS, 1000)})
    export_control(net, tmp_path / "folder", "diffusers")
    export_control(net, tmp_path / "file", "original")
    assert same(load_control(tmp_path / "folder"), net)
    assert same(load_control(tmp_path / "folder/diffusion_pytorch_model.safetensors"), net)
    assert same(load_control(tmp_path / "file", bundle), net)
    guessed = load_control(tmp_path / "file").config
    assert guessed.unet.heads == (1, 1) and guessed.unet.groups == 32 and guessed.hint_channels == 1


def test_a_layout_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="layout 'kohya' is none of original, diffusers"):
        export_control(NETS["1.x"], tmp_path / "net", "kohya")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(ValueError, match="already exists"):
        export_control(NETS["1.x"], tmp_path / "full", "diffusers")


# ---- changes of a model ----


@pytest.mark.parametrize("prefix", ["control_model.", ""])
@pytest.mark.parametrize("kind", KINDS)
def test_differences_are_added_to_what_the_model_has(tmp_path, kind, prefix):
    tensors = {prefix + k: a for k, a in original(kind, tmp_path).items()} | {"difference": np.ones(1, np.float32)}
    path = write(tmp_path / "net.safetensors", tensors, "")
    base, read = BASES[kind].params["unet"], load_control(path, BASES[kind])
    assert read.config == NETS[kind].config
    for name, own in NETS[kind].params.items():
        shared = name.startswith(("encoder.", "time_mlp."))
        assert (name in base) == shared
        assert np.array_equal(read.params[name], own + base[name] if shared else own), name
    refused("is a ControlNet of differences, to be added to a model's U-Net: give the model", path)
    with pytest.raises(ValueError, match="this checkpoint holds nothing, but unet is needed too"):
        load_control(path, Bundle(Configs(), {}))


def control_lora(tensors: dict, whole=(), left_out=()) -> tuple[dict, dict]:
    """(the file of a control-LoRA, {layer: up down}): products in place of a network's matrices but for ``whole``."""
    file, deltas = {"lora_controlnet": np.zeros(0, np.float32)}, {}
    for seed, (name, array) in enumerate(tensors.items()):
        layer = name.removesuffix(".weight")
        if array.ndim < 2 or layer in whole or layer.startswith(("input_hint_block", "zero_convs", "middle_block_out")):
            file |= {} if name in left_out else {name: array}
        else:
            up, down = numbers(seed, array.shape[0], RANK), numbers(seed + 500, RANK, *array.shape[1:])
            deltas[layer] = np.einsum("or,r...->o...", up, down)
            file |= {f"{layer}.up": up.reshape(*up.shape, *[1] * (array.ndim - 2)), f"{layer}.down": down}
    return file, deltas


@pytest.mark.parametrize("kind", KINDS)
def test_a_control_lora_is_products_added_and_the_rest_whole(tmp_path, kind):
    tensors, base = original(kind, tmp_path), BASES[kind].params["unet"]
    norm = ("middle_block.0.in_layers.0", "encoder.middle.res1.norm1")
    file, deltas = control_lora(tensors, ["time_embed.0"], [f"{norm[0]}.weight", f"{norm[0]}.bias"])
    path = write(tmp_path / "net.safetensors", file, "")
    read = load_control(path, BASES[kind])
    assert read.config == NETS[kind].config
    in_ours = {CONV: deltas[CONV].transpose(2, 3, 1, 0), QUERY: deltas[QUERY].T}
    for layer, name in OURS.items():
        np.testing.assert_allclose(read.params[name], np.asarray(base[name]) + in_ours[layer], rtol=1e-5, atol=1e-5)
    for leaf in ("scale", "bias"):  # left out of the file: the model's own
        assert np.array_equal(read.params[f"{norm[1]}.{leaf}"], base[f"{norm[1]}.{leaf}"])
    added = {name for name, array in read.params.items() if not np.array_equal(array, NETS[kind].params[name])}
    assert len(added) == len(deltas) + 2, "what the file has whole is taken as it is"
    refused("is a control-LoRA, to be added to a model's U-Net: give the model too (bundle=)", path)


def with_change(tensors: dict, name: str, array: np.ndarray | None) -> dict:
    """The tensors with one replaced, added or (None) left out."""
    return {key: value for key, value in (tensors | {name: array}).items() if value is not None}


def test_factors_that_are_wrong(tmp_path):
    file, _ = control_lora(original("1.x", tmp_path))

    def changed(phrase, name, array):
        refused(phrase, write(tmp_path / "bad.safetensors", with_change(file, name, array), ""), BASES["1.x"])

    changed(f"{QUERY}: the ranks of its matrices differ: up has 3, down has 2", f"{QUERY}.down", numbers(0, 2, 64))
    changed(f"{QUERY} has no down", f"{QUERY}.down", None)
    changed(f"{QUERY} has a weight beside its up and down", f"{QUERY}.weight", numbers(0, 64, 64))
    changed(f"{QUERY}: up is (64,) and down (3, 64), where two matrices", f"{QUERY}.up", numbers(0, 64))
    changed(f"{QUERY}.weight is (64, 8) but should be (64, 64)", f"{QUERY}.down", numbers(0, RANK, 8))
    changed("1 missing: zero_convs.1.0.bias", "zero_convs.1.0.bias", None)


# ---- files that do not fit ----


def test_another_family_s(tmp_path):
    for kind, other in (("1.x", "2.x"), ("2.x", "1.x")):
        width = {"1.x": 768, "2.x": 1024}
        export_control(NETS[kind], tmp_path / kind, "diffusers")
        told = f"is a ControlNet for Stable Diffusion {kind} (context {width[kind]}), and the model is "
        refused(told + f"Stable Diffusion {other} (context {width[other]})", tmp_path / kind, BASES[other])
    wide = UNetConfig(channels=(64, 64), blocks=1, depth=(1, 0), context_dim=768)
    bundle = Bundle(Configs(wide), {"unet": {}})
    refused("(channels (32, 64)), and the model is Stable Diffusion 1.x (channels (64, 64))", tmp_path / "1.x", bundle)
    inpainting = UNetConfig(9, channels=(32, 64), blocks=1, depth=(1, 0), context_dim=768)
    bundle = Bundle(Configs(inpainting), {"unet": random(UNet, inpainting, 0)})
    assert same(load_control(tmp_path / "1.x", bundle), NETS["1.x"]), "it sees the latent alone"
    changes = original("1.x", tmp_path) | {"difference": np.ones(1, np.float32)}
    path = write(tmp_path / "changes.safetensors", changes, "")
    refused("encoder.conv_in.kernel of shape (3, 3, 4, 32), which in the model is (3, 3, 9, 32)", path, bundle)


def test_tensors_that_are_missing_or_of_another_shape(tmp_path):
    tensors, path = original("1.x", tmp_path), tmp_path / "bad.safetensors"

    def changed(phrase, name, array=None):
        refused(phrase, write(path, with_change(tensors, name, array)))

    changed("1 missing: zero_convs.2.0.weight", "zero_convs.2.0.weight")
    changed("1 unknown: zero_convs.9.0.weight", "zero_convs.9.0.weight", numbers(0, 64, 64, 1, 1))
    changed("zero_convs.0.0.bias is (31,) but should be (32,)", "zero_convs.0.0.bias", numbers(0, 31))
    changed("input_hint_block.6.weight is (8, 7, 3, 3)", "input_hint_block.6.weight", numbers(0, 8, 7, 3, 3))
    changed("the hint's network has 7 convolutions, where an even number", "input_hint_block.6.weight")
    probe = "input_blocks.1.0.out_layers.3.weight"
    changed(f"not a whole encoder: tensor '{probe}' is missing", probe)
    changed("4 axes, none empty, are expected", "input_blocks.0.0.weight", numbers(0, 32, 4))


def test_what_is_no_controlnet_that_is_read(tmp_path):
    tensors, path = original("1.x", tmp_path), tmp_path / "other.safetensors"
    xl = "is a ControlNet for SDXL, which is not read; those for Stable Diffusion 1.x and 2.x are"
    refused(xl, write(path, tensors | {"label_emb.0.0.weight": numbers(0, 8, 8)}))
    refused(xl, write(path, {n: numbers(0, 64, 2048) if "attn2.to_k" in n else a for n, a in tensors.items()}))
    refused("a union ControlNet", write(path, tensors | {"task_embedding": numbers(0, 6, 32)}, ""))
    refused("this is a LoRA, where a ControlNet is expected", write(path, {"x.lora_up.weight": numbers(0, 2, 2)}, ""))
    refused("this is nothing this program knows", write(path, {"x": numbers(0, 2)}, ""))
    refused("no such file or folder", tmp_path / "nothing.safetensors")


def test_folders_that_are_none(tmp_path, tiny_folder):
    refused("holds no config.json and 0 files of weights; name the file itself", tiny_folder)
    refused("this is U-Net of", tiny_folder / "unet")
    export_control(NETS["1.x"], tmp_path / "net", "diffusers")
    path = tmp_path / "net/config.json"
    config = json.loads(path.read_text())

    def changed(phrase, **others):
        path.write_text(json.dumps(config | others))
        refused(phrase, tmp_path / "net")

    changed("holds AutoencoderKL, where a ControlNetModel is expected", _class_name="AutoencoderKL")
    changed("global_pool_conditions is 1, but true or false is expected", global_pool_conditions=1)
    changed("conditioning_embedding_out_channels is 'x'", conditioning_embedding_out_channels="x")
    changed("attention_head_dim (the number of heads) is 7", attention_head_dim=7)
    changed("controlnet_cond_embedding.conv_in.weight is (4, 3, 3, 3) but should be", conditioning_channels=4)


# ---- the report ----


@pytest.mark.parametrize("kind", KINDS)
def test_inspect(tmp_path, kind):
    for layout, title in (("original", "single-file"), ("diffusers", "folder")):
        export_control(NETS[kind], tmp_path / layout, layout)
        report = inspect(tmp_path / layout)
        assert f"{tmp_path / layout}: a ControlNet for Stable Diffusion {kind}\n" in report
        assert f"{title} ControlNet names; every tensor used, every parameter filled" in report
        assert "stored as float32" in report and f"3 hint channels, context {KINDS[kind].context_dim}" in report
    tensors = original(kind, tmp_path)
    file, _ = control_lora(tensors, left_out=["middle_block.0.in_layers.0.bias"])
    lines = inspect(write(tmp_path / "lora.safetensors", file, "")).splitlines()
    assert f"a control-LoRA for Stable Diffusion {kind}" in lines[0]
    assert "every parameter filled" in lines[2] and "products of rank 3, to be added" in lines[3]
    marked = {"difference": np.ones(1, np.float32), **tensors}
    marked.pop("zero_convs.0.0.bias")
    report = inspect(write(tmp_path / "differences.safetensors", marked, ""))
    assert "a ControlNet of differences" in report and "1 missing: zero_convs.0.0.bias" in report


def test_the_loader_of_models_says_what_it_is(tmp_path):
    path = write(tmp_path / "net.safetensors", original("1.x", tmp_path))
    with pytest.raises(ValueError, match=r"this is a ControlNet, where a Stable Diffusion"):
        weights_convert.load(path)
