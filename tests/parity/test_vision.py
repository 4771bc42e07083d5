"""Our vision tower against transformers and OpenCLIP in every public layout: tiny to 1e-5, real sizes to 1e-4.

Limits: float32 rounding through up to 32 layers. And pictures made ready for it against CLIP's image processors.
"""

import importlib
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import weights_convert
from ldm.adapters.image_prompt import square_of
from ldm.bundle import Bundle
from ldm.models.autoencoder import from_uint8
from ldm.models.layers import shapes
from ldm.models.text import TextTower
from ldm.models.vision import MEAN, SPREAD, VisionConfig, VisionTower, preprocess
from weights_convert import engine
from weights_convert.clip import configs_from_json, tower_parts
from weights_convert.tables import vision as table

from . import oracle, ours
from .oracle import agree, nn, torch

TINY, FULL = 1e-5, 1e-4
FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
FIELDS += ("projection_dim",)
SMALL = dict(zip(FIELDS, (128, 320, 4, 2, 64, 8, 96), strict=True))  # 96 wide: a missed transpose cannot hide
SIZES = {  # and the activation of those who trained it
    "ViT-L/14": (dict(zip(FIELDS, (1024, 4096, 24, 16, 224, 14, 768), strict=True)), "quick_gelu"),
    "ViT-H/14": (dict(zip(FIELDS, (1280, 5120, 32, 16, 224, 14, 1024), strict=True)), "gelu"),
    "ViT-bigG/14": (dict(zip(FIELDS, (1664, 8192, 48, 16, 224, 14, 1280), strict=True)), "gelu"),
}
WORDS = 1000  # of the vocabularies here; the last one ends a text


def open_clip() -> Any:
    """The module of OpenCLIP's models."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("open_clip.model")


def public(sizes: Mapping[str, int], act: str, seed: int | None) -> nn.Module:
    """transformers' tower, with random weights; with the seed None, with none."""
    config = oracle.transformers.CLIPVisionConfig(**sizes, hidden_act=act)
    model = oracle.abstract(oracle.transformers.CLIPVisionModelWithProjection, config)
    return model if seed is None else oracle.randomize(model, seed)


def converted(model: nn.Module) -> tuple[VisionConfig, dict]:
    """Our configuration and parameters of it, from its own configuration and names."""
    config = table.config_from_json(model.config.to_dict(), True, "the oracle")
    weights = table.named_alike(ours.tensors(oracle.arrays(model)))
    ours.bijection(VisionTower, config, weights, table.layouts(config))
    return config, ours.convert(VisionTower, config, weights, table.layouts(config))


def compare(title: str, model: nn.Module, pictures: np.ndarray, limit: float) -> None:
    """The tokens at every number of layers left out, and the pooled state."""
    seen = oracle.nchw(preprocess(pictures))
    out = model(seen, output_hidden_states=True)
    states = [state.numpy() for state in reversed(out.hidden_states)]
    config, params = converted(model)
    encode = ours.run(VisionTower, config)
    got = [encode(params, pictures, skip) for skip in range(len(states))]
    assert len(states) == config.layers + 1
    worst = max(range(len(states)), key=lambda skip: oracle.rel(got[skip].tokens, states[skip]))
    agree(f"{title}, {worst} layers left out (the worst)", got[worst].tokens, states[worst], limit)
    agree(f"{title}, pooled", got[0].pooled, out.image_embeds.numpy(), limit)
    assert encode._cache_size() == 1  # the layers left out are a run-time value


def pictures(side: int, count: int = 2) -> np.ndarray:
    """Noise in [-1, 1]."""
    return np.random.default_rng(0).uniform(-1, 1, (count, side, side, 3)).astype(np.float32)


def texts() -> np.ndarray:
    """Token ids [2, 77], of which one ends early."""
    ids = np.random.default_rng(1).integers(1, WORDS - 2, (2, 77)).astype(np.int32)
    ids[:, 0], ids[:, -1], ids[0, 9:] = WORDS - 2, WORDS - 1, WORDS - 1
    return ids


# ---- transformers ----


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_tiny(act: str):
    compare(f"vision tower, {act}", public(SMALL, act, 1), pictures(64), TINY)


def test_each_picture_may_leave_out_another_number_of_layers():
    model = public(SMALL, "gelu", 2)
    config, params = converted(model)
    states = model(oracle.nchw(preprocess(pictures(64, 3))), output_hidden_states=True).hidden_states
    want = np.stack([states[-1 - skip][i] for i, skip in enumerate((1, 0, 2))])
    got = ours.run(VisionTower, config)(params, pictures(64, 3), np.array([1, 0, 2])).tokens
    agree("vision tower, 1, 0 and 2 layers left out", got, want, TINY)


@pytest.mark.parametrize("kind", ["CLIPVisionModelWithProjection", "CLIPVisionModel", "CLIPModel"])
def test_folders_that_transformers_writes(tmp_path: Path, kind: str):
    """As this version names them, and with the prefix that public folders have where this version has none."""
    read = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1}
    read |= {"vocab_size": WORDS, "eos_token_id": WORDS - 1}
    both = {"text_config": read, "vision_config": SMALL | {"hidden_act": "gelu"}}
    config = oracle.transformers.CLIPVisionConfig(**SMALL, hidden_act="gelu")
    if kind == "CLIPModel":
        config = oracle.transformers.CLIPConfig(**both, projection_dim=96)
    model = oracle.randomize(oracle.abstract(getattr(oracle.transformers, kind), config), 3)
    model.save_pretrained(tmp_path / "new")
    names = oracle.arrays(model)
    if kind == "CLIPVisionModel":
        names = {f"vision_model.{name}": array for name, array in names.items()}
    (tmp_path / "old").mkdir()
    shutil.copy(tmp_path / "new/config.json", tmp_path / "old/config.json")
    save_file(names, tmp_path / "old/model.safetensors")
    new, old = (weights_convert.load(tmp_path / name) for name in ("new", "old"))
    assert all(ours.same(new.params[part], old.params[part]) for part in new.params)
    see = ours.run(VisionTower, new.configs.image)
    seen, got = oracle.nchw(preprocess(pictures(64))), see(new.params["image"], pictures(64)).pooled
    if kind != "CLIPModel":
        out = model(seen)
        agree(kind, got, out.pooler_output if kind == "CLIPVisionModel" else out.image_embeds, TINY)
        return
    ids = texts()
    out = model(torch.from_numpy(ids).long(), seen)
    agree("CLIPModel, a picture", got / np.linalg.norm(got, axis=-1, keepdims=True), out.image_embeds, TINY)
    got = np.asarray(ours.run(TextTower, new.configs.text)(new.params["text"], ids).pooled)
    agree("CLIPModel, a text", got / np.linalg.norm(got, axis=-1, keepdims=True), out.text_embeds, TINY)


@pytest.mark.parametrize(
    "data",
    [
        {"vision_config": SMALL, "text_config": {"hidden_size": 64, "num_attention_heads": 1}},
        {"vision_config": {"hidden_size": 36}, "vision_config_dict": SMALL | {"hidden_act": "gelu"}},
        {"vision_config": {"hidden_act": "gelu"}, "vision_config_dict": SMALL},
        {"text_config_dict": {"hidden_size": 64, "num_attention_heads": 1}, "projection_dim": 640},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_configurations_mean_what_they_mean_to_transformers(data: dict):
    theirs = oracle.transformers.CLIPConfig(**data)
    known = {"projection_dim": theirs.projection_dim}
    numbers = configs_from_json(data, "CLIPModel", "the file")
    assert numbers["image"] == table.config_from_json(theirs.vision_config.to_dict() | known, True, "the oracle")
    text = configs_from_json(theirs.text_config.to_dict() | known, "CLIPTextModelWithProjection", "the oracle")
    assert numbers["text"] == text["text"]


# ---- OpenCLIP, OpenAI ----


def whole_clip(quick: bool, seed: int) -> nn.Module:
    """A small model of OpenCLIP's, heads as wide as OpenAI's."""
    clip = open_clip()
    seen = clip.CLIPVisionCfg(layers=3, width=128, head_width=64, patch_size=8, image_size=32)
    read = clip.CLIPTextCfg(context_length=77, vocab_size=WORDS, width=64, heads=1, layers=2)
    return oracle.randomize(clip.CLIP(96, seen, read, quick_gelu=quick), seed)


def sees_the_same(title: str, bundle: Bundle, model: nn.Module) -> None:
    """Every state of a picture, the picture as one vector, and a text as one."""
    seen, ids = oracle.nchw(preprocess(pictures(32))), texts()
    states = [model.visual._embeds(seen)]
    for block in model.visual.transformer.resblocks:
        states.append(block(states[-1]))
    see, read = ours.run(VisionTower, bundle.configs.image), ours.run(TextTower, bundle.configs.text)
    got = [see(bundle.params["image"], pictures(32), skip) for skip in range(len(states))]
    for skip, want in enumerate(reversed(states)):
        agree(f"{title}, {skip} layers left out", got[skip].tokens, want, TINY)
    agree(f"{title}, a picture", got[0].pooled, model.encode_image(seen), TINY)
    want = model.encode_text(torch.from_numpy(ids).long())
    agree(f"{title}, a text", read(bundle.params["text"], ids).pooled, want, TINY)


def test_openclip(tmp_path: Path):
    model = whole_clip(quick=False, seed=4)
    torch.save({"epoch": 1, "name": "x", "state_dict": model.state_dict()}, tmp_path / "open_clip_pytorch_model.bin")
    sees_the_same("OpenCLIP", weights_convert.load(tmp_path / "open_clip_pytorch_model.bin"), model)


class Compiled(nn.Module):
    """Modules within modules that hold the tensors of a state dict under their own names."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        super().__init__()
        for first in dict.fromkeys(name.split(".")[0] for name in tensors):
            below = {name.partition(".")[2]: value for name, value in tensors.items() if name.split(".")[0] == first}
            if "" in below:
                self.register_buffer(first, below[""])
            else:
                self.add_module(first, Compiled(below))


@pytest.mark.filterwarnings("ignore")  # of TorchScript's end
def test_openai(tmp_path: Path):
    """A TorchScript archive, half of it float16, with the sizes as tensors; OpenCLIP's own reading is the oracle."""
    clip = open_clip()
    model = whole_clip(quick=True, seed=5)
    clip.convert_weights_to_fp16(model)
    sizes = {"input_resolution": 32, "context_length": 77, "vocab_size": WORDS}
    weights = dict(model.state_dict()) | {name: torch.tensor(number) for name, number in sizes.items()}
    torch.jit.script(Compiled(weights)).save(tmp_path / "ViT.pt")
    theirs = clip.build_model_from_openai_state_dict(torch.jit.load(tmp_path / "ViT.pt").state_dict())
    bundle = weights_convert.load(tmp_path / "ViT.pt")
    assert (bundle.configs.image.activation, bundle.configs.text.activation) == ("quick_gelu", "quick_gelu")
    sees_the_same("OpenAI", bundle, theirs.float())


# ---- public sizes ----


@pytest.mark.parametrize("name", SIZES)
def test_names_and_shapes_of_the_public_sizes(name: str):
    """Of both libraries' models, without a number in them; what OpenCLIP's file does not say is guessed right."""
    sizes, act = SIZES[name]
    config = table.config_from_json(sizes | {"hidden_act": act}, True, name)
    assert table.title(config) == name
    weights = table.named_alike(ours.tensors(public(sizes, act, None).state_dict()))
    ours.bijection(VisionTower, config, weights, table.layouts(config))
    clip = open_clip()
    seen = clip.CLIPVisionCfg(
        layers=config.layers,
        width=config.width,
        head_width=config.width // config.heads,
        mlp_ratio=4.9231 if config.width == 1664 else 4.0,
        patch_size=14,
    )
    model = oracle.abstract(clip.CLIP, config.projection, seen, clip.CLIPTextCfg(layers=1, heads=8))
    part = tower_parts(name, ours.tensors(model.state_dict()), {"text": None, "image": None}, act)["image"]
    assert part.config == config
    assert str(engine.compare(part)) == ""
    assert len(part.tensors) == sum(key.startswith("visual.") for key in model.state_dict())
    assert len(shapes(VisionTower, config)) == len(weights)


@pytest.mark.full
@pytest.mark.parametrize("name", ["ViT-L/14", "ViT-H/14"])
def test_full_size(name: str):
    model = public(*SIZES[name], 6)
    assert table.title(converted(model)[0]) == name
    compare(f"vision tower, {name} at full size", model, pictures(224, 1), FULL)


# ---- pictures made ready ----


def prepared(kind: str, picture: np.ndarray, side: int) -> np.ndarray:
    """What a processor of transformers' makes of a picture [H, W, 3]: [side, side, 3], in levels of 0..255."""
    made = getattr(importlib.import_module("transformers.models.clip"), kind)
    processor = made(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    values = processor(picture, return_tensors="pt")["pixel_values"]
    return 255 * (oracle.nhwc(values)[0] * np.array(SPREAD) + np.array(MEAN))


PICTURES = [(224, 224), (480, 640), (640, 480), (333, 500), (60, 37), (32, 32), (227, 224), (224, 226), (999, 250)]


@pytest.mark.parametrize("size", PICTURES, ids=str)
@pytest.mark.parametrize(
    ("kind", "darkest", "brightest", "levels"),
    [("CLIPImageProcessorPil", 0, 256, 1e-3), ("CLIPImageProcessor", 96, 160, 1.001)],
)
def test_pictures_are_prepared_as_the_public_processors_do(
    size: tuple[int, int], kind: str, darkest: int, brightest: int, levels: float
):
    """The processor that works with Pillow, as CLIP's own programs did: exactly. The faster one resizes tensors, also
    bicubic and antialiased: to one level, where no value has to be held to 0..255 between rows and columns.

    Where some have, as in noise of full contrast, the two part by up to 23 levels for a tall picture: Pillow 13 takes
    the columns first there, and PyTorch the rows.
    """
    picture = np.random.default_rng(7).integers(darkest, brightest, (*size, 3), np.uint8)
    ready = np.asarray(preprocess(from_uint8(square_of(picture, 224))))
    got, want = 255 * (ready * np.array(SPREAD) + np.array(MEAN)), prepared(kind, picture, 224)
    worst = np.abs(got - want).max()
    print(f"{kind}, {size[1]}x{size[0]}: {worst:.3f} levels of 255, relative error {oracle.rel(got, want):.1e}")
    assert worst <= levels
