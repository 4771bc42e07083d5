"""Loading what is broken, or of another kind: one sentence that says what, where, and what was expected."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ldm
from tests.public_files import refused, single_file
from weights_convert.families import UNET

SHARED = Path(__file__).parents[2] / "shared" / "data"


def copy(folder, tmp_path):
    """A copy of the public folder to break."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_tensors_that_belong_nowhere_are_named(tiny, tmp_path):
    path = single_file(tiny, tmp_path / "m.safetensors", lambda t: t.update({"surprise.weight": np.ones(2)}))
    refused(path, "1 tensors belong to no part", "surprise.weight")


def test_missing_and_misshapen_tensors_are_named(tiny, tmp_path):
    def change(tensors):
        del tensors[f"{UNET}out.2.bias"]
        tensors[f"{UNET}time_embed.0.weight"] = np.ones((5, 5), np.float32)

    path = single_file(tiny, tmp_path / "m.safetensors", change)
    refused(path, "the U-Net", "missing: out.2.bias", "time_embed.0.weight is (5, 5) but should be (128, 32)")


def test_a_configuration_that_contradicts_the_weights_says_what_they_look_like(tiny_folder, tmp_path):
    folder = copy(tiny_folder, tmp_path)
    data = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps(data | {"cross_attention_dim": 1024}))
    refused(folder, "attn2.to_k.weight is (32, 64) but should be (32, 1024)", "It looks like", "context 64")


@pytest.mark.parametrize(
    ("key", "phrase"),
    [
        ("conditioner.embedders.0.transformer.x", "this is an SDXL checkpoint"),
        ("lora_unet_x.lora_up.weight", "this is a LoRA"),
        ("control_model.x.weight", "this is a ControlNet"),
        ("whatever", "nothing this program knows"),
    ],
)
def test_files_of_other_kinds_are_called_by_their_name(tmp_path, key, phrase):
    save_file({key: np.ones(2, np.float32)}, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", phrase, "Stable Diffusion 1.x or 2.x model")


BREAK = {
    "no unet folder": (lambda f: shutil.rmtree(f / "unet"), "unet missing"),
    "no weights": (lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(), "diffusion_pytorch_model"),
    "empty weights": (lambda f: (f / "vae/diffusion_pytorch_model.safetensors").write_bytes(b""), "empty"),
    "no scheduler file": (lambda f: (f / "scheduler/scheduler_config.json").unlink(), "scheduler_config.json: missing"),
    "broken json": (lambda f: (f / "unet/config.json").write_text("{"), "broken JSON"),
    "json of another kind": (lambda f: (f / "vae/config.json").write_text("[]"), "holds a list"),
    "no vocabulary": (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer missing"),
    "another pipeline": (
        lambda f: (f / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}'),
        "holds a StableDiffusionXLPipeline",
    ),
}


@pytest.mark.parametrize("name", BREAK)
def test_broken_folders_fail_in_one_sentence(tiny_folder, tmp_path, name):
    change, phrase = BREAK[name]
    folder = copy(tiny_folder, tmp_path)
    change(folder)
    refused(folder, phrase)


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    refused(tmp_path / "nothing.safetensors", "no such file or folder")
    refused("nothing-at-all", "no such file or folder")
    refused(tmp_path, "no checkpoint folder")
    refused(tmp_path, "dtype 'int8' is none of", dtype="int8")


def test_own_folder_that_is_broken(tiny, tmp_path):
    ldm.save(tiny, tmp_path / "own")
    path = tmp_path / "own/vae.safetensors"
    arrays = load_file(path)
    save_file({k: a for k, a in arrays.items() if k != "quant.bias"}, path)
    with pytest.raises(ValueError, match=r"do not fit its config\.json, such as quant\.bias"):
        ldm.load(tmp_path / "own")
    path.unlink()
    with pytest.raises(ValueError, match=r"vae\.safetensors: cannot be read"):
        ldm.load(tmp_path / "own")
    (tmp_path / "own/config.json").write_text('{"format": "ldm bundle", "version": 2}')
    with pytest.raises(ValueError, match="version 2, but this program reads version 1"):
        ldm.load(tmp_path / "own")
    with pytest.raises(ValueError, match="no folder of ours"):
        ldm.load(tmp_path)


@pytest.mark.parametrize("name", ["sd-v1-4", "sd-v2-1", "sd-v2-1/v2-1_768-ema-pruned.ckpt", "sd-v1-4/vae"])
def test_real_folders_of_lfs_pointers_say_what_they_are(name):
    if not SHARED.exists():
        pytest.skip("the real layouts (../shared/data) are not here")
    refused(SHARED / "layouts" / name, "git", "LFS")


@pytest.mark.parametrize(
    ("name", "phrase"),
    [("lora/pytorch_lora_weights.safetensors", "a LoRA"), ("textual_inversion/birb-style.bin", "a textual inversion")],
)
def test_real_files_of_other_kinds(name, phrase):
    if not SHARED.exists():
        pytest.skip("the real files (../shared/data) are not here")
    refused(SHARED / name, phrase)
