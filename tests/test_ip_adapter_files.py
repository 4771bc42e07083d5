"""Public IP-Adapters: read, written, and their towers found."""

import dataclasses

import jax
import numpy as np
import pytest
from ip_adapter_files import FACE, KINDS, kernels, one_of_each, projection, public, refused, write
from lora_files import relative

import ldm
import weights_convert
from ldm.adapters.image_prompt import Adapter
from ldm.adapters.ip_adapter import IPAdapter, sites
from ldm.adapters.ip_adapter_file import save_adapter
from ldm.adapters.lora import Change, LowRank
from ldm.bundle import Bundle, Configs
from ldm.models.layers import shapes
from ldm.models.unet import UNetConfig
from weights_convert import export_ip_adapter, load_ip_adapter
from weights_convert.adapters.inspection import MODELS
from weights_convert.adapters.ip_adapter import load_alone
from weights_convert.engine import bare
from weights_convert.inspection import inspect
from weights_convert.tables import ip_adapter as table

XL = MODELS["SDXL"].unet


@pytest.fixture(scope="module")
def unet(least) -> UNetConfig:
    """Three cross-attentions of 32, to a context of 64."""
    return least.configs.unet


@pytest.fixture(scope="module")
def files(least, tmp_path_factory):
    """One of each kind."""
    return one_of_each(least.configs.unet, tmp_path_factory)


@pytest.fixture(scope="module")
def towers(least_with_image):
    """The image tower in a bundle of its own."""
    image = {"image": least_with_image.params["image"]}
    return Bundle(Configs(image=least_with_image.configs.image), image)


def same(a: Adapter, b: Adapter) -> bool:
    """Whether two are equal bit for bit, in their dtypes too; towers are not looked at."""
    equal = lambda x, y: x.dtype == y.dtype and np.array_equal(x, y)
    trees = [jax.tree.leaves((dict(sorted(one.params.items())), one.lora)) for one in (a, b)]
    return a.config == b.config and a.params.keys() == b.params.keys() and all(map(equal, *trees))


# ---- what is read ----


@pytest.mark.parametrize("kind", KINDS)
def test_flat_and_nested_files_are_the_same_adapter(files, least_with_image, unet, tmp_path, kind):
    flat = load_ip_adapter(files[kind], least_with_image)
    tensors = public(kind, unet, KINDS[kind], list(KINDS).index(kind), lora=kind == "face")
    assert same(load_ip_adapter(write(tmp_path / "a.bin", tensors), least_with_image), flat)
    wrapped = {f"module.{name}": array for name, array in tensors.items()}
    assert same(load_ip_adapter(write(tmp_path / "b.safetensors", wrapped), least_with_image), flat)
    assert flat.config.kind == kind and flat.config.image_dim == KINDS[kind] and flat.config.unet == unet
    for i in range(3):
        for role in "kv":
            stored = tensors[f"ip_adapter.{2 * i + 1}.to_{role}_ip.weight"]
            assert np.array_equal(flat.params[f"{role}.{i}.kernel"], stored.T)
    half = load_ip_adapter(files[kind], least_with_image, dtype="bfloat16")
    assert {str(array.dtype) for array in half.params.values()} == {"bfloat16"}


def test_keys_and_values_that_are_fused_come_apart(files, least_with_image, unet):
    tensors, found = public("plus", unet, 64, 1), load_ip_adapter(files["plus"], least_with_image).params
    fused = tensors["image_proj.layers.2.0.to_kv.weight"]
    assert np.array_equal(found["projection.layers.2.k.kernel"], fused[:128].T)
    assert np.array_equal(found["projection.layers.2.v.kernel"], fused[128:].T)
    assert np.array_equal(found["projection.latents"], tensors["image_proj.latents"][0])


PUBLISHED = {  # file: kind, U-Net, what it sees, more sizes, millions of numbers
    "ip-adapter_sd15": ("base", UNetConfig(), 1024, {}, 22.3),
    "ip-adapter_sd15_vit-G": ("base", UNetConfig(), 1280, {}, 23.1),
    "ip-adapter-plus_sd15": ("plus", UNetConfig(), 1280, {"tokens": 16, "width": 768, "depth": 4}, 49.1),
    "ip-adapter-full-face_sd15": ("full", UNetConfig(), 1280, {}, 21.8),
    "ip-adapter-faceid_sd15": ("face", UNetConfig(), 512, {}, 22.8),
    "ip-adapter_sdxl": ("base", XL, 1280, {}, 351.3),
    "ip-adapter-plus_sdxl_vit-h": ("plus", XL, 1280, {"tokens": 16, "width": 1280, "depth": 4}, 423.7),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_at_the_published_sizes(name):
    """By shapes alone: a bijection, the numbers of 1.5 and SDXL, and how large the published files are."""
    kind, unet, seen, sizes, millions = PUBLISHED[name]
    more = {"tokens": 4, "width": 0, "depth": 0} | sizes
    wanted = {f"image_proj.{n}": s for n, s in projection(kind, seen, unet.context_dim, **more).items()}
    wanted |= {f"ip_adapter.{n}": s for n, s in kernels(unet).items()}
    held = {n: jax.ShapeDtypeStruct(s, np.float16) for n, s in wanted.items()}
    config = table.config_from_shapes(held, unet)
    layout, own = table.public(config), shapes(IPAdapter, config)
    assert {bare(layout.public(ours)) for ours in own} == set(wanted)
    count = sum(int(np.prod(spec.shape)) for spec in own.values())
    assert count == sum(int(np.prod(shape)) for shape in wanted.values()) and round(count / 1e6, 1) == millions
    numbers = sorted({int(n.split(".")[1]) for n in wanted if n.startswith("ip_adapter")})
    assert numbers == list(range(1, 2 * len(sites(unet)), 2)) and len(numbers) == (70 if unet is XL else 16)


def test_which_attention_each_number_is():
    places = table.attentions(UNetConfig())
    at = {1: "encoder.down.0.attn.0", 11: "encoder.down.2.attn.1", 13: "decoder.up.1.attn.0", 29: "decoder.up.3.attn.2"}
    at |= {31: "encoder.middle.attn"}
    assert all(places[n] == f"{site}.blocks.0.cross_attn" for n, site in at.items()) and len(places) == 32
    assert places[0] == "encoder.down.0.attn.0.blocks.0.self_attn"
    places = table.attentions(XL)
    ends = {47: "encoder.down.2.attn.1.blocks.9", 49: "decoder.up.0.attn.0.blocks.0"}
    ends |= {119: "decoder.up.1.attn.2.blocks.1"}
    ends |= {121: "encoder.middle.attn.blocks.0", 139: "encoder.middle.attn.blocks.9"}
    assert all(places[n] == f"{site}.cross_attn" for n, site in ends.items()) and len(places) == 140


def test_the_lora_of_face_id(files, least, unet):
    adapter = load_ip_adapter(files["face"], least)
    tensors = public("face", unet, FACE, 3, lora=True)
    changes = adapter.lora["unet"]
    assert len(changes) == 6 * 4 and adapter.vision is None
    for number, site in enumerate(table.attentions(unet)):
        for role in ("q", "k", "v", "out"):
            layer = f"ip_adapter.{number}.to_{role}_lora"
            product = tensors[f"{layer}.up.weight"] @ tensors[f"{layer}.down.weight"]
            kernel = f"{site}.{role}.kernel"
            assert relative(changes[kernel].step(least.params["unet"][kernel]), product.T) < 1e-6


# ---- what is written ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_is_what_was_read(files, least, tmp_path, kind, dtype):
    _, adapter = load_alone(files[kind], least, dtype)
    export_ip_adapter(adapter, tmp_path / "again.safetensors")
    assert same(load_alone(tmp_path / "again.safetensors", least, dtype)[1], adapter)
    if dtype == "float32":
        assert read_all(tmp_path / "again.safetensors") == read_all(files[kind])


def read_all(path) -> dict:
    """Name -> (shape, bytes)."""
    tensors = weights_convert.reading.read_file(path).tensors
    return {name: (tensor.shape, tensor.read().tobytes()) for name, tensor in tensors.items()}


def test_a_file_of_ours_is_read_and_written_for_others(files, least, least_with_image, tmp_path):
    _, adapter = load_alone(files["plus"], least)
    save_adapter(adapter, tmp_path / "ours.safetensors")
    again = load_ip_adapter(tmp_path / "ours.safetensors", least_with_image)
    assert same(again, adapter) and again.vision == least_with_image.configs.image
    assert "an IP-Adapter in a file of this project's own, plus" in inspect(tmp_path / "ours.safetensors")
    with pytest.raises(ValueError, match="has a LoRA, which this file would lose"):
        save_adapter(load_ip_adapter(files["face"], least), tmp_path / "face.safetensors")


def test_factors_are_multiplied_in_and_what_is_no_attention_is_refused(files, least, tmp_path):
    adapter = load_ip_adapter(files["face"], least)
    doubled = {name: change._replace(factor=np.float32(2)) for name, change in adapter.lora["unet"].items()}
    export_ip_adapter(dataclasses.replace(adapter, lora={"unet": doubled}), tmp_path / "a.safetensors")
    found = load_ip_adapter(tmp_path / "a.safetensors", least).lora["unet"]
    assert all(np.array_equal(found[name].form.up, 2 * change.form.up) for name, change in doubled.items())
    change = Change(LowRank(np.ones((32, 2), np.float32), np.ones((2, 32), np.float32)), np.float32(1))
    for lora in ({"unet": {"encoder.conv_in.kernel": change}}, {"text": doubled}):
        with pytest.raises(ValueError, match="plain LoRAs of attentions, and no change of"):
            export_ip_adapter(dataclasses.replace(adapter, lora=lora), tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


# ---- its image tower ----


@pytest.mark.parametrize("place", ["image_encoder", "../image_encoder", "../models/image_encoder"])
def test_the_tower_beside_or_above_is_found(unet, least, towers, tmp_path, place):
    folder = tmp_path / "sdxl_models"
    folder.mkdir()
    path = write(folder / "plus.safetensors", public("plus", unet, 64))
    weights_convert.save(towers, folder / place)
    found = load_ip_adapter(path, least)
    assert found.vision == towers.configs.image and found.tower.keys() == towers.params["image"].keys()
    given = load_ip_adapter(path, least, tower=folder / place, dtype="float16")
    assert {str(array.dtype) for array in given.tower.values()} == {"float16"}


def test_a_tower_beside_that_does_not_fit_is_passed_over(unet, least, least_with_image, towers, tmp_path):
    (tmp_path / "sdxl_models").mkdir()
    path = write(tmp_path / "sdxl_models/a.safetensors", public("base", unet, 48))
    other = dataclasses.replace(towers.configs.image, projection=0)
    less = {name: array for name, array in towers.params["image"].items() if name != "projection.kernel"}
    weights_convert.save(Bundle(Configs(image=other), {"image": less}), tmp_path / "sdxl_models/image_encoder")
    refused(path, "/image_encoder", "expects 48 numbers", "this one says 64", "--image-encoder", bundle=least)
    refused(path, "expects 48 numbers", bundle=least, tower=tmp_path / "sdxl_models/image_encoder")
    assert load_ip_adapter(path, least_with_image).tower is least_with_image.params["image"]
    weights_convert.save(towers, tmp_path / "models/image_encoder")
    assert load_ip_adapter(path, least).vision == towers.configs.image
    (tmp_path / "sdxl_models/image_encoder/image.safetensors").write_bytes(b"cut short")
    refused(path, "image.safetensors", bundle=least)


@pytest.mark.long
def test_it_draws_what_the_file_says(files, least_with_image):
    settings = {"steps": 2, "output": "latents", "progress": False}
    picture = np.random.default_rng(1).integers(0, 255, (40, 50, 3), np.uint8)
    plain = ldm.generate(least_with_image, "a toy", **settings)
    for kind in ("base", "plus", "full"):
        shown = ldm.ImagePrompt(load_ip_adapter(files[kind], least_with_image), picture)
        assert relative(ldm.generate(least_with_image, "a toy", image_prompts=[shown], **settings), plain) > 1e-2
    face = load_ip_adapter(files["face"], least_with_image)
    changed = ldm.generate(ldm.with_lora(least_with_image, face.lora), "a toy", **settings)
    assert relative(changed, plain) > 1e-3
