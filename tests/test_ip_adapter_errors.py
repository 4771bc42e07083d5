"""What is said of IP-Adapter files that do not fit, and what is reported of those that do."""

import jax.numpy as jnp
import numpy as np
import pytest
from ip_adapter_files import FACE, KINDS, RANK, one_of_each, public, refused, write

import weights_convert
from ldm.adapters.ip_adapter import IPAdapterConfig
from ldm.adapters.lora import save_lora
from ldm.models.unet import UNetConfig
from weights_convert import load_ip_adapter
from weights_convert.adapters.ip_adapter import load_alone
from weights_convert.inspection import inspect


@pytest.fixture(scope="module")
def files(least, tmp_path_factory):
    """One of each kind."""
    return one_of_each(least.configs.unet, tmp_path_factory)


def without(name):
    """A change of a file's tensors: one is missing."""
    return lambda tensors: tensors.pop(name)


def renamed(old, new):
    """A change of a file's tensors: one is called otherwise."""
    return lambda tensors: tensors.update({new: tensors.pop(old)})


CHANGES = {
    "missing number": ("base", without("ip_adapter.3.to_v_ip.weight"), ("1 missing: ip_adapter.3.to_v_ip.weight",)),
    "even number": (
        "base",
        renamed("ip_adapter.3.to_k_ip.weight", "ip_adapter.2.to_k_ip.weight"),
        ("1 missing: ip_adapter.3.to_k_ip.weight", "1 unknown: ip_adapter.2.to_k_ip.weight", "odd numbers, 1, 3"),
    ),
    "too many": ("base", lambda t: t.update({"ip_adapter.7.to_k_ip.weight": np.ones((32, 64), "f")}), ("1 unknown",)),
    "no kernels": (
        "base",
        lambda t: [t.pop(name) for name in list(t) if name.startswith("ip_adapter")],
        ("not a whole IP-Adapter", "ip_adapter.1.to_k_ip.weight"),
    ),
    "no projection": ("base", without("image_proj.proj.weight"), ("nothing in it says how tokens are made",)),
    "half a projection": ("full", without("image_proj.proj.0.weight"), ("'image_proj.proj.0.weight' is missing",)),
    "a norm": ("plus", without("image_proj.layers.1.0.norm2.bias"), ("1 missing: image_proj.layers.1.0.norm2.bias",)),
    "a layer": ("plus", without("image_proj.layers.1.0.to_kv.weight"), ("1 missing: image_proj.layers.1.0.to_kv",)),
    "heads": (
        "plus",
        lambda t: t.update({"image_proj.proj_in.weight": np.ones((100, 64), "f")}),
        ("its resampler is 100 wide, where a multiple of 64",),
    ),
    "a shape": (
        "full",
        lambda t: t.update({"ip_adapter.1.to_k_ip.weight": np.ones((33, 64), "f")}),
        ("1 of another shape", "is (33, 64) but should be (32, 64)"),
    ),
    "FaceID-plus": (
        "face",
        renamed("image_proj.norm.bias", "image_proj.perceiver_resampler.proj_in.weight"),
        ("kind FaceID-plus", "not read"),
    ),
    "InstantID": (
        "plus",
        lambda t: t.update({"image_proj.proj_in.weight": np.ones((128, 512), "f")}),
        ("kind InstantID", "not read"),
    ),
    "half a LoRA": ("face", without("ip_adapter.4.to_q_lora.up.weight"), ("its LoRA", "ip_adapter.4.to_q_lora.up")),
    "a longer LoRA": (
        "face",
        lambda t: t.update({"ip_adapter.6.to_q_lora.up.weight": np.ones((32, RANK), "f")}),
        ("its LoRA", "1 tensors, such as ip_adapter.6.to_q_lora.up.weight"),
    ),
    "ranks": (
        "face",
        lambda t: t.update({"ip_adapter.4.to_q_lora.up.weight": np.ones((32, RANK + 1), "f")}),
        ("ip_adapter.4.to_q_lora: the ranks of its matrices differ",),
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_files_that_do_not_fit_are_refused_in_one_sentence(least_with_image, tmp_path, case):
    kind, change, phrases = CHANGES[case]
    tensors = public(kind, least_with_image.configs.unet, KINDS[kind], lora=kind == "face")
    change(tensors)
    path = write(tmp_path / "a.safetensors", tensors)
    refused(path, str(path), *phrases, bundle=least_with_image)


def test_another_family_s_is_refused_by_name(least, tmp_path):
    xl = UNetConfig(channels=(32,), blocks=1, depth=(1,), middle_depth=0, heads=(2,), context_dim=2048)
    path = write(tmp_path / "xl.safetensors", public("base", xl, 48))
    refused(path, "is an IP-Adapter for SDXL, and the model is Stable Diffusion-like", bundle=least)
    assert "base, for SDXL" in inspect(path) and "134 missing" in inspect(path)
    own = write(tmp_path / "own.safetensors", public("base", least.configs.unet, 48))
    refused(own, "its tokens are 64 wide, as in no family that is known here: give its model")
    assert "for no family that is known here, its tokens are 64 wide" in inspect(own)


def test_other_files_are_refused(least, least_with_image, tmp_path, files):
    save_lora({"unet": dict(load_ip_adapter(files["face"], least).lora["unet"])}, tmp_path / "lora.safetensors")
    refused(tmp_path / "lora.safetensors", "this is a LoRA, where an IP-Adapter is expected", bundle=least)
    with pytest.raises(ValueError, match="this is an IP-Adapter"):
        weights_convert.load(files["face"])
    (tmp_path / "half.safetensors").write_bytes(files["base"].read_bytes()[:-40])
    refused(tmp_path / "half.safetensors", "half.safetensors", bundle=least)
    refused(tmp_path / "nowhere.bin", "no such file or folder", bundle=least)
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds 0 files of weights", bundle=least)
    refused(files["plus"], "there is no folder image_encoder beside it: give the image tower", bundle=least)
    refused(files["plus"], "no such file or folder", bundle=least, tower=tmp_path / "nowhere")
    refused(files["plus"], "dtype 'int8'", bundle=least_with_image, dtype="int8")
    weights_convert.save(least, tmp_path / "least")
    refused(files["plus"], "least: holds no image tower", bundle=least, tower=tmp_path / "least")


# ---- inspection ----


def test_inspection(tmp_path):
    """Small files of Stable Diffusion 1.x's context: what is there, and that the rest is missing."""
    unet = UNetConfig(channels=(32,), blocks=1, depth=(1,), middle_depth=0, heads=(2,))
    said = {
        "base": ("4 tokens of an image tower's vector of 1024 numbers, ViT-H/14's", 1024),
        "plus": ("4 tokens of an image tower's states, 1280 wide, ViT-H/14's", 1280),
        "full": ("a token for each of an image tower's states, 1280 wide", 1280),
        "face": ("4 tokens of a face recogniser's vector of 24 numbers", 24),
    }
    for kind, (words, seen) in said.items():
        report = inspect(write(tmp_path / f"{kind}.bin", public(kind, unet, seen, lora=kind == "face")))
        name = "FaceID" if kind == "face" else kind
        assert f"an IP-Adapter, {name}, for Stable Diffusion 1.x" in report and words in report, report
        assert "stored as float32" in report and "26 missing: ip_adapter.11.to_k_ip.weight" in report, report
        assert (f"a LoRA of rank {RANK} in 48 tensors" in report) == (kind == "face")
    tensors = public("face", unet, FACE) | {"image_proj.perceiver_resampler.proj_in.weight": np.ones((2, 2), "f")}
    assert "FaceID-plus, for Stable Diffusion 1.x; this program does not apply it" in inspect(
        write(tmp_path / "plus_face.bin", tensors)
    )


@pytest.mark.optimised
def test_a_whole_file_of_stable_diffusion_1_is_whole(tmp_path):
    """Shapes of the real size: 45 MB, in float16."""
    tensors = {n: a.astype(np.float16) for n, a in public("base", UNetConfig(), 1024).items()}
    path = write(tmp_path / "ip-adapter_sd15.safetensors", tensors)
    report = inspect(path)
    assert "22,319,616 parameters in 36 arrays, stored as float16" in report
    assert "every tensor used, every parameter filled" in report
    _, adapter = load_alone(path)
    assert adapter.config == IPAdapterConfig() and jnp.float32 == adapter.params["k.15.kernel"].dtype
