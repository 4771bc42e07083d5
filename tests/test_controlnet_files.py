"""Public ControlNet files of every layout: read, written, and added to a model."""

import json
from dataclasses import replace

import checkpoint_files
import jax.numpy as jnp
import numpy as np
import pytest
from controlnet_files import (
    BASES,
    CONV,
    HEADS,
    KINDS,
    NETS,
    OURS,
    QUERY,
    RANK,
    control_lora,
    net_of,
    original,
    refused,
    same,
    with_change,
    write,
)
from lora_files import numbers
from random_parts import random_params
from safetensors.numpy import load_file

from ldm.adapters.controlnet import Net
from ldm.bundle import Bundle, Configs
from ldm.models.unet import UNet
from weights_convert import export_control, load_control
from weights_convert.inspection import inspect

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
    net, bundle = net_of(HEADS, (4, 8), 1), Bundle(Configs(HEADS), {"unet": random_params(UNet, HEADS, 1000)})
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
