"""IP-Adapters against diffusers: what makes tokens, the U-Net with them, whole pipelines, and files both ways.

Files are made with random numbers under the public names, and read by both. Limits, relative errors:

    tokens, U-Net    1e-5, float32 through some 120 layers; 1e-4 at full size
    pictures         one level of uint8
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from ip_adapter_files import nested, public, write
from PIL import Image

import ldm
import weights_convert
from ldm.adapters.image_prompt import tokens_of
from ldm.adapters.ip_adapter import IPAdapter, sites, with_pairs
from ldm.bundle import Bundle, Configs
from ldm.conditioning import Conditioning
from ldm.hooks import Hooks
from ldm.models.layers import Params, bind
from ldm.models.unet import UNet
from weights_convert import export_ip_adapter, load_ip_adapter
from weights_convert.adapters.ip_adapter import load_alone
from weights_convert.tables import unet as unet_table

from . import layouts, oracle, ours
from .oracle import agree, diffusers, gaussian, nchw, nhwc, torch, transformers
from .test_control import SIZES, UP
from .test_pipeline import GUIDANCE, NEGATIVES, NOISE, PROMPTS, STEPS, equal_pictures
from .test_vision import converted as converted_tower

TINY, FULL = 1e-5, 1e-4
SIDE, STATES = 64, 65  # pixels and tokens of the small image tower
VISION = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION |= {"image_size": SIDE, "patch_size": 8, "projection_dim": 96, "hidden_act": "gelu"}
SEEN = {"base": 96, "plus": 128, "full": 128, "face": 24}
PICTURES = np.random.default_rng(7).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)


class Seen(NamedTuple):
    """An adapter of a kind in the U-Net, and how much it sees: pictures of one prompt, numbers, tokens of a tower."""

    kind: str
    scale: float = 0.8
    pictures: int = 1
    wide: int = 96
    states: int = STATES
    more: dict[str, int] = {}  # noqa: RUF012

    def embeds(self, seed: int) -> np.ndarray:
        """What a tower would say in two rows: [2, P, V] or [2, P, L, V]."""
        length = (self.states,) if self.kind in ("plus", "full") else ()
        return gaussian(seed, 2, self.pictures, *length, self.wide)


def torch_state(tensors: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """As ``torch.load`` gives a .bin file."""
    return {part: {n: torch.from_numpy(a) for n, a in own.items()} for part, own in nested(tensors).items()}


def converted(model: Any) -> Bundle:
    """Ours of a diffusers U-Net without adapters."""
    config = unet_table.config_from_json(model.config, "the oracle")
    params = ours.convert(UNet, config, ours.tensors(oracle.arrays(model)), [unet_table.folder(config)])
    return Bundle(Configs(config), {"unet": params})


# ---- what makes tokens, and the U-Net ----


@pytest.mark.parametrize("kind", SEEN)
def test_the_projections(kind: str, tmp_path: Path):
    model = oracle.randomize(oracle.unet("sd1"), 1)
    bundle, case = converted(model), Seen(kind, wide=SEEN[kind])
    tensors = public(kind, bundle.configs.unet, case.wide, 3)
    made = model._convert_ip_adapter_image_proj_to_diffusers(torch_state(tensors)["image_proj"])
    embeds = case.embeds(4)[:, 0]
    _, adapter = load_alone(write(tmp_path / "a.bin", tensors), bundle)
    got = ours.run(IPAdapter, adapter.config, "see")(adapter.params, embeds)
    agree(f"tokens of {kind}", got, made(torch.from_numpy(embeds)).numpy(), TINY)


def evaluations(title: str, model: Any, bundle: Bundle, cases: Sequence[Seen], folder: Path, side: int, limit: float):
    """The U-Net's output with adapters, each with what it sees and its scale; ``model`` is left with them in it."""
    unet, E = bundle.configs.unet, bundle.configs.unet.context_dim
    x, context, t = gaussian(1, 2, side, side, 4), gaussian(2, 2, 7, E), np.array([981.0, 1.0], np.float32)
    files = [public(case.kind, unet, case.wide, 10 + i, **case.more) for i, case in enumerate(cases)]
    embeds = [case.embeds(20 + i) for i, case in enumerate(cases)]
    inputs = nchw(x), torch.from_numpy(t), torch.from_numpy(context)
    clean = nhwc(model(*inputs).sample)
    model._load_ip_adapter_weights([torch_state(tensors) for tensors in files])
    for processor in model.attn_processors.values():
        if hasattr(processor, "to_k_ip"):
            processor.scale = [case.scale for case in cases]
    want = nhwc(model(*inputs, added_cond_kwargs={"image_embeds": [torch.from_numpy(e) for e in embeds]}).sample)
    own = [load_alone(write(folder / f"{i}.safetensors", file), bundle)[1] for i, file in enumerate(files)]

    @jax.jit
    def run(params: Params, nets: Any, embeds: Any) -> jax.Array:
        hooks = Hooks()
        for case, adapter, net, seen in zip(cases, own, nets, embeds, strict=True):
            made = bind(IPAdapter, adapter.config, net)
            tokens = made.see(seen.reshape(-1, *seen.shape[2:])).reshape(2, -1, E)
            hooks = with_pairs(made.pairs(tokens), dict.fromkeys(sites(unet), case.scale), hooks)
        return bind(UNet, unet, params)(x, t, Conditioning(context), hooks=hooks)

    got = run(bundle.params["unet"], [adapter.params for adapter in own], embeds)
    assert oracle.rel(want, clean) > 0.02
    agree(f"U-Net, {title}", got, want, limit)


UNETS = {
    "base": [Seen("base")],
    "plus": [Seen("plus", 0.6, wide=128)],
    "full": [Seen("full", 0.9, wide=128)],
    "face": [Seen("face", wide=24)],
    "two adapters": [Seen("base", 0.7), Seen("plus", 0.4, wide=128)],
    "three pictures in one prompt": [Seen("base", pictures=3)],
    "two pictures for each of two adapters": [Seen("full", 0.5, 2, 128), Seen("base", 0.9, 2)],
}


@pytest.mark.parametrize("case", UNETS)
def test_the_unet(case: str, tmp_path: Path):
    model = oracle.randomize(oracle.unet("sd1"), 5)
    evaluations(case, model, converted(model), UNETS[case], tmp_path, 16, TINY)


def test_the_unet_of_sdxl_by_its_numbering(tmp_path: Path):
    """Levels without attention, several blocks in a transformer: numbers go on through all of them."""
    plain = {"addition_embed_type": None, "projection_class_embeddings_input_dim": None}
    model = oracle.randomize(oracle.unet("sdxl", **plain), 6)
    evaluations("sdxl's levels", model, converted(model), [Seen("plus", wide=128)], tmp_path, 8, TINY)


@pytest.mark.full
def test_the_unet_at_full_size(tmp_path: Path):
    model = oracle.randomize(oracle.unet("sd1", full=True), 5)
    bundle = converted(model)
    plus = {"tokens": 16, "width": 768}
    base, full = Seen("base", wide=1024), Seen("full", 1, 1, 1280, 257)
    for case in (base, Seen("plus", wide=1280, states=257, more=plus), full):
        evaluations(f"{case.kind} at full size, 256x256", model, bundle, [case], tmp_path, 32, FULL)
        diffusers.StableDiffusionPipeline.unload_ip_adapter(Only(model))


class Only:
    """As much of a pipeline as taking an adapter out of its U-Net asks for."""

    def __init__(self, unet: Any):
        self.unet = unet


# ---- whole pipelines ----


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this module's files lie."""
    return tmp_path_factory.mktemp("ip_adapter")


@pytest.fixture(scope="module")
def encoder() -> Any:
    """The image tower."""
    config = transformers.CLIPVisionConfig(**VISION)
    return oracle.randomize(oracle.abstract(transformers.CLIPVisionModelWithProjection, config), 8)


@pytest.fixture(scope="module")
def pipe(home: Path) -> Any:
    """diffusers' pipeline without an adapter."""
    return layouts.pipeline("sd1", home / "tokenizer", unet=SIZES | {"up_block_types": UP})


@pytest.fixture(scope="module")
def bundle(pipe: Any, encoder: Any, home: Path) -> Bundle:
    """Ours, from its folder, with the image tower."""
    found = weights_convert.load(layouts.save_folder(pipe, home / "model"))
    vision, tower = converted_tower(encoder)
    return replace(found, configs=replace(found.configs, image=vision), params={**found.params, "image": tower})


def file(folder: Path, kind: str, bundle: Bundle, seed: int = 0, ending: str = "safetensors") -> Path:
    """A public file for the pipeline; .bin as PyTorch writes it. FaceID has its LoRA."""
    tensors = public(kind, bundle.configs.unet, SEEN[kind], seed, lora=kind == "face")
    path = folder / f"{kind}.{ending}"
    if ending == "bin":
        torch.save(torch_state(tensors), path)
        return path
    return write(path, tensors)


def with_files(pipe: Any, encoder: Any, files: Sequence[Path], scale: Any) -> Any:
    """A pipeline with adapters from files of one folder."""
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE)
    parts = pipe.components | {"unet": copy.deepcopy(pipe.unet), "image_encoder": encoder}
    parts |= {"feature_extractor": processor, "scheduler": layouts.scheduler(pipe, "DDIMScheduler")}
    other = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    names = {"subfolder": "", "weight_name": [path.name for path in files]}
    other.load_ip_adapter(str(files[0].parent), **names, image_encoder_folder=None, local_files_only=True)
    other.set_ip_adapter_scale(scale)
    return other


def equal(title: str, bundle: Bundle, other: Any, prompts: Sequence[ldm.ImagePrompt], **options: Any) -> None:
    """Our pictures with image prompts are theirs, and not those without."""
    settings = {"steps": STEPS, "guidance": GUIDANCE, "negative": NEGATIVES, "latents": NOISE, "progress": False}
    drawn = ldm.generate(bundle, PROMPTS, image_prompts=prompts, **settings)
    without = ldm.generate(bundle, PROMPTS, **settings)
    assert np.abs(drawn.astype(int) - without).mean() > 1
    named = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "negative_prompt": NEGATIVES}
    equal_pictures(title, drawn, layouts.pictures(other, PROMPTS, NOISE, **named, **options))


@pytest.mark.parametrize("kind", ["base", "plus", "full"])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_pictures(kind: str, ending: str, pipe: Any, encoder: Any, bundle: Bundle, tmp_path: Path):
    path = file(tmp_path, kind, bundle, ending=ending)
    prompt = ldm.ImagePrompt(load_ip_adapter(path, bundle), PICTURES[0], 0.7)
    other = with_files(pipe, encoder, [path], 0.7)
    equal(f"{kind}, .{ending}", bundle, other, [prompt], ip_adapter_image=Image.fromarray(PICTURES[0]))


def test_two_adapters_and_two_pictures_of_one(pipe: Any, encoder: Any, bundle: Bundle, tmp_path: Path):
    paths = [file(tmp_path, kind, bundle, seed) for seed, kind in enumerate(("plus", "base"))]
    plus, base = (load_ip_adapter(path, bundle) for path in paths)
    prompts = [ldm.ImagePrompt(plus, list(PICTURES), 0.5), ldm.ImagePrompt(base, PICTURES[1], 0.9)]
    both = [Image.fromarray(picture) for picture in PICTURES]
    other = with_files(pipe, encoder, paths, [0.5, 0.9])
    equal("two adapters", bundle, other, prompts, ip_adapter_image=[both, both[1]])


def test_scales_by_block(pipe: Any, encoder: Any, bundle: Bundle, tmp_path: Path):
    path = file(tmp_path, "base", bundle)
    theirs = {"down": {"block_0": [0.0, 0.8]}, "up": {"block_1": [0.5, 0.0, 1.0]}, "mid": 0.3}
    scale = {"encoder.down.0.attn.1.": 0.8, "decoder.up.1.attn.0.": 0.5, "decoder.up.1.attn.2.": 1.0}
    prompt = ldm.ImagePrompt(load_ip_adapter(path, bundle), PICTURES[0], scale | {"encoder.middle": 0.3})
    other = with_files(pipe, encoder, [path], theirs)
    equal("scales by block", bundle, other, [prompt], ip_adapter_image=Image.fromarray(PICTURES[0]))


def test_face_id_and_its_lora(pipe: Any, encoder: Any, bundle: Bundle, tmp_path: Path):
    """The vector of a face; what stands for none is 0."""
    path, vectors = file(tmp_path, "face", bundle), gaussian(9, 2, SEEN["face"])
    adapter = load_ip_adapter(path, bundle)
    embeds = torch.from_numpy(np.stack([np.zeros_like(vectors), vectors]))
    model = ldm.with_lora(bundle, adapter.lora)
    other = with_files(pipe, encoder, [path], 0.8)
    equal("FaceID", model, other, [ldm.ImagePrompt(adapter, vectors, 0.8)], ip_adapter_image_embeds=[embeds])


@pytest.mark.parametrize("kind", ["base", "plus", "full"])
def test_what_is_said_of_nothing_and_of_pictures(kind: str, pipe: Any, encoder: Any, bundle: Bundle, tmp_path: Path):
    """Negative rows: of the vector 0, or of a picture that is 0 once it is prepared."""
    path = file(tmp_path, kind, bundle)
    other = with_files(pipe, encoder, [path], 1.0)
    images = [[Image.fromarray(picture) for picture in PICTURES]]
    embeds = other.prepare_ip_adapter_image_embeds(images, None, "cpu", 1, True)
    want = other.unet.encoder_hid_proj(embeds)[0].flatten(1, 2).numpy()
    got = tokens_of(ldm.ImagePrompt(load_ip_adapter(path, bundle), list(PICTURES)), 1)[0]
    for row, name in enumerate(("nothing", "two pictures")):
        agree(f"tokens of {name}, {kind}", got[row], want[row], TINY)


# ---- what we write ----


@pytest.mark.parametrize("kind", SEEN)
def test_what_we_export_diffusers_loads(kind: str, pipe: Any, encoder: Any, bundle: Bundle, tmp_path: Path):
    """To the bit: its kernels, and what its projection makes of the same; FaceID's LoRA by the names that it gives."""
    _, adapter = load_alone(file(tmp_path, kind, bundle), bundle)
    (tmp_path / "out").mkdir()
    export_ip_adapter(adapter, tmp_path / "out/a.safetensors")
    other = with_files(pipe, encoder, [tmp_path / "out/a.safetensors"], 1.0)
    kept = [processor for processor in other.unet.attn_processors.values() if hasattr(processor, "to_k_ip")]
    assert len(kept) == len(sites(bundle.configs.unet))
    for i, processor in enumerate(kept):
        for role, layer in (("k", processor.to_k_ip[0]), ("v", processor.to_v_ip[0])):
            assert np.array_equal(layer.weight.numpy().T, adapter.params[f"{role}.{i}.kernel"])
    first = with_files(pipe, encoder, [file(tmp_path, kind, bundle)], 1.0)
    ours_, theirs = (one.unet.state_dict() for one in (other, first))
    assert ours_.keys() == theirs.keys() and all(torch.equal(ours_[name], theirs[name]) for name in theirs)
    assert (kind == "face") == any("lora_A" in name for name in ours_)
