"""Public IP-Adapters: read, written, their towers found, inspected; and what is said where one does not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ip_adapter_files import FACE, RANK, kernels, projection, public, write
from lora_files import relative

import ldm
import weights_convert
from ldm.adapters.image_prompt import Adapter
from ldm.adapters.ip_adapter import IPAdapter, IPAdapterConfig, sites
from ldm.adapters.ip_adapter_file import save_adapter
from ldm.adapters.lora import Change, LowRank, save_lora
from ldm.bundle import Bundle, Configs
from ldm.models.layers import shapes
from ldm.models.unet import UNetConfig
from weights_convert import export_ip_adapter, load_ip_adapter
from weights_convert.adapters.inspection import MODELS
from weights_convert.adapters.ip_adapter import load_alone
from weights_convert.engine import bare
from weights_convert.inspection import inspect
from weights_convert.tables import ip_adapter as table

KINDS = {"base": 48, "plus": 64, "full": 64, "face": FACE}  # and what each sees of conftest's tower
XL = MODELS["SDXL"].unet


@pytest.fixture(scope="module")
def unet(least) -> UNetConfig:
    """Three cross-attentions of 32, to a context of 64."""
    return least.configs.unet


@pytest.fixture(scope="module")
def files(unet, tmp_path_factory):
    """One of each kind, alone in its folder; FaceID with a LoRA."""
    made = {}
    for seed, (kind, seen) in enumerate(KINDS.items()):
        path = tmp_path_factory.mktemp(kind) / f"{kind}.safetensors"
        made[kind] = write(path, public(kind, unet, seen, seed, lora=kind == "face"))
    return made


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


def refused(source, *phrases, **options):
    """Asserts that the source is refused by one sentence with all phrases."""
    with pytest.raises(ValueError) as caught:
        load_ip_adapter(source, **options)
    message = str(caught.value)
    assert "\n" not in message and all(phrase in message for phrase in phrases), message


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


# ---- what does not fit ----


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
def test_files_that_do_not_fit_are_refused_in_one_sentence(unet, least_with_image, tmp_path, case):
    kind, change, phrases = CHANGES[case]
    tensors = public(kind, unet, KINDS[kind], lora=kind == "face")
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
