"""What is said of ControlNet files that do not fit, and what is reported of those that do."""

import json

import numpy as np
import pytest
from controlnet_files import (
    BASES,
    KINDS,
    NETS,
    control_lora,
    original,
    refused,
    same,
    with_change,
    write,
)
from lora_files import numbers
from random_parts import random_params

import weights_convert
from ldm.bundle import Bundle, Configs
from ldm.models.unet import UNet, UNetConfig
from weights_convert import export_control, load_control
from weights_convert.inspection import inspect

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
    bundle = Bundle(Configs(inpainting), {"unet": random_params(UNet, inpainting, 0)})
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
