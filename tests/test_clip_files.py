"""CLIP's towers in every public layout: the same numbers out of each, and what is wrong in one sentence."""

import json
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import pytest
from safetensors.numpy import save_file

import ldm
import weights_convert
from ldm.cli import main
from ldm.models.layers import shapes
from ldm.models.vision import VisionConfig, VisionTower
from tests.clip_files import (
    BARE,
    CLIP_JSON,
    IMAGE,
    READ,
    SEEN,
    TEXT,
    folder_of,
    hub,
    numbers,
    original,
    prefixed,
    seen_json,
    torchscript,
    whole_hub,
    whole_original,
    wrapped,
    written,
)
from tests.public_files import refused, same, single_file, spelt
from weights_convert.engine import compare
from weights_convert.families import identify
from weights_convert.inspection import inspect
from weights_convert.parts import vision_part
from weights_convert.tables import text, vision

# ---- both towers ----

FILES = {
    "the hub's": whole_hub,
    "OpenCLIP's": whole_original,
    "OpenCLIP's, pickled and wrapped": lambda: wrapped(whole_original()),
    "OpenAI's": lambda: torchscript(whole_original()),
    "OpenAI's with the masks of its layers": lambda: torchscript(
        whole_original() | {f"transformer.resblocks.{i}.attn_mask": np.ones((9, 9), np.float32) for i in range(2)}
    ),
}


def both_right(bundle, activation):
    """Whether a bundle holds the two towers above."""
    assert set(bundle.params) == {"text", "image"}
    assert (bundle.configs.text, bundle.configs.image) == tuple(
        replace(config, activation=activation) for config in (READ, SEEN)
    )
    assert bundle.tokenizer is not None
    return same(bundle, replace(bundle, params={"text": TEXT, "image": IMAGE}), ("text", "image"))


@pytest.mark.parametrize("name", FILES)
def test_a_whole_clip_in_a_file(tmp_path, name):
    path = written(tmp_path / "clip.pt", FILES[name]())
    assert both_right(weights_convert.load(path), "quick_gelu" if "OpenAI" in name else "gelu")
    report = inspect(path)
    assert report.splitlines()[0].endswith("CLIP, its text tower and its image tower, ViT-128-wide/8@32")
    assert report.count("every tensor used, every parameter filled") == 2
    assert "sees 32x32 pixels in patches of 8x8, says 48 numbers; 3 layers, 2 heads" in report


def test_a_whole_clip_in_a_folder(tmp_path):
    path = folder_of(tmp_path / "clip", "CLIPModel", whole_hub(), CLIP_JSON)
    assert both_right(weights_convert.load(path), "gelu")
    assert inspect(path).splitlines()[0].endswith("clip: CLIPModel, ViT-128-wide/8@32")


def test_older_folders_say_their_numbers_twice_and_the_second_counts(tmp_path):
    twice = {"vision_config": {"hidden_size": 7}, "vision_config_dict": seen_json(), "text_config_dict": None}
    path = folder_of(tmp_path / "clip", "CLIPModel", whole_hub(), CLIP_JSON | twice)
    assert both_right(weights_convert.load(path), "gelu")


def test_what_is_missing_or_unknown_is_told_of_its_tower(tmp_path):
    tensors = whole_original() | {"visual.surprise": np.ones(2, np.float32), "other": np.ones(2, np.float32)}
    del tensors["visual.ln_post.bias"]
    path = written(tmp_path / "clip.safetensors", tensors)
    of_text, of_image = (line for line in inspect(path).splitlines() if " names; " in line)
    assert "1 unknown: other" in of_text and "missing" not in of_text
    assert "1 missing: visual.ln_post.bias; 1 unknown: visual.surprise" in of_image
    refused(path, "clip.safetensors: the text tower does not fit the CLIP text tower layout: 1 unknown: other")


# ---- the image tower alone ----

ALONE = {
    "the hub's": (hub, SEEN),
    "the hub's without prefix": (lambda: hub(prefix=""), SEEN),
    "the hub's without projection": (lambda: hub(BARE), BARE),
    "OpenCLIP's": (original, SEEN),
    "OpenCLIP's without prefix": (
        lambda: {name.removeprefix("visual."): array for name, array in original().items()},
        SEEN,
    ),
}


def image_right(bundle, config):
    """Whether a bundle holds the image tower and nothing else."""
    assert set(bundle.params) == {"image"}
    assert bundle.configs.image == config
    kept = {name: array for name, array in IMAGE.items() if config.projection or "projection" not in name}
    return same(bundle, replace(bundle, params={"image": kept}), ("image",))


@pytest.mark.parametrize("name", ALONE)
def test_an_image_tower_in_a_file(tmp_path, name):
    tensors, config = ALONE[name]
    path = written(tmp_path / "tower.safetensors", tensors())
    assert image_right(weights_convert.load(path), config)
    assert inspect(path).splitlines()[0].endswith("CLIP image tower, ViT-128-wide/8@32")


@pytest.mark.parametrize("prefix", ["vision_model.", ""])
@pytest.mark.parametrize(("kind", "config"), [("CLIPVisionModelWithProjection", SEEN), ("CLIPVisionModel", BARE)])
def test_an_image_tower_in_a_folder(tmp_path, kind, config, prefix):
    path = folder_of(tmp_path / "image_encoder", kind, hub(config, prefix), seen_json())
    assert image_right(weights_convert.load(path), config)
    assert f"{kind}, ViT-128-wide/8@32" in inspect(path)
    assert ("for it has no projection" in inspect(path)) == (config is BARE)


def test_a_folder_of_the_image_tower_may_hold_the_whole_of_clip(tmp_path):
    path = folder_of(tmp_path / "clip", "CLIPVisionModelWithProjection", whole_hub(), seen_json())
    assert image_right(weights_convert.load(path), SEEN)
    path = folder_of(tmp_path / "bare", "CLIPVisionModel", whole_hub(), seen_json())
    assert image_right(weights_convert.load(path), BARE)


def test_a_file_beside_its_configuration_takes_what_that_says(tmp_path):
    eager = replace(SEEN, heads=4, activation="quick_gelu")  # neither is in the shapes
    path = folder_of(tmp_path / "tower", "CLIPVisionModelWithProjection", hub(), seen_json(eager))
    assert image_right(weights_convert.load(path / "model.safetensors"), eager)
    other = replace(eager, width=256)  # another model's: it does not fit, and the shapes are gone by
    (path / "config.json").write_text(json.dumps({"architectures": ["CLIPVisionModel"]} | seen_json(other)))
    assert image_right(weights_convert.load(path / "model.safetensors"), SEEN)


def test_convert_writes_a_folder_of_our_own(tmp_path, capsys):
    path, own = written(tmp_path / "clip.pt", torchscript(whole_original())), tmp_path / "own"
    assert main(["convert", str(path), str(own)]) == 0
    assert both_right(ldm.load(own), "quick_gelu")
    assert sorted(p.name for p in own.iterdir()) == [
        "config.json",
        "image.safetensors",
        "text.safetensors",
        "tokenizer",
    ]
    capsys.readouterr()
    assert main(["inspect", str(own)]) == 0
    assert "sees 32x32 pixels in patches of 8x8" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["cond_stage_model.transformer.", "cond_stage_model.model."])
def test_stable_diffusion_leaves_the_image_tower_aside(tiny, tmp_path, place):
    def change(tensors):
        tensors |= {f"{place}{name}": array for name, array in (original() | hub()).items()}
        if place.endswith("model."):
            for key in [key for key in tensors if key.startswith("cond_stage_model.transformer.")]:
                del tensors[key]
            public = spelt(text.openclip(tiny.configs.text), tiny.params["text"])
            tensors |= {place + name: array for name, array in public.items()}

    bundle = weights_convert.load(single_file(tiny, tmp_path / "m.safetensors", change))
    assert set(bundle.params) == {"unet", "vae", "text"}
    assert same(bundle, tiny, ("text",))


# ---- public sizes ----


@dataclass(frozen=True)
class Shaped:
    """A tensor of which only the shape matters."""

    shape: tuple


SIZES = {  # the published numbers: side, patch, width, wide part of a layer, layers, heads, activation, joint width
    "ViT-B/32": (VisionConfig(224, 32, 768, 3072, 12, 12, "gelu", 512), 87_849_216),
    "ViT-B/16": (VisionConfig(224, 16, 768, 3072, 12, 12, "gelu", 512), 86_192_640),
    "ViT-L/14": (VisionConfig(224, 14, 1024, 4096, 24, 16, "gelu", 768), 303_966_208),
    "ViT-L/14@336": (VisionConfig(336, 14, 1024, 4096, 24, 16, "gelu", 768), 304_293_888),
    "ViT-H/14": (VisionConfig(224, 14, 1280, 5120, 32, 16, "gelu", 1024), 632_076_800),
    "ViT-g/14": (VisionConfig(224, 14, 1408, 6144, 40, 16, "gelu", 1024), 1_012_645_632),
    "ViT-bigG/14": (VisionConfig(224, 14, 1664, 8192, 48, 16, "gelu", 1280), 1_844_907_264),
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("spelling", [vision.folder, vision.openclip])
def test_the_numbers_of_every_public_size_are_in_its_shapes(spelling, name):
    config, parameters = SIZES[name]
    layout, specs = spelling(config), shapes(VisionTower, config)
    public = {}
    for ours, spec in specs.items():
        key = layout.public(ours)
        axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(len(spec.shape), (0,))
        as_stored = key.endswith(("@", "position_embedding.weight", "positional_embedding"))
        shape = spec.shape if as_stored else tuple(spec.shape[axis] for axis in axes)
        fused = key[-2:-1] == "#"
        public[key[:-2] if fused else key.removesuffix("@")] = Shaped((3 * shape[0], *shape[1:]) if fused else shape)
    part = vision_part(name, public)
    assert part.config == config
    assert str(compare(part)) == ""
    assert vision.title(config) == name
    assert sum(prod(spec.shape) for spec in specs.values()) == parameters


# ---- what is wrong, in one sentence ----


def test_a_damaged_file(tmp_path):
    path = written(tmp_path / "clip.pt", torchscript(whole_original()))
    path.write_bytes(path.read_bytes()[:-1000])
    refused(path, "clip.pt: ")
    path = written(tmp_path / "clip.safetensors", whole_hub())
    path.write_bytes(path.read_bytes()[:-1000])
    refused(path, "clip.safetensors: ")


def test_a_tower_without_the_projection_that_is_needed(tmp_path):
    path = folder_of(tmp_path / "tower", "CLIPVisionModelWithProjection", hub(BARE), seen_json())
    refused(path, "tower: the image tower does not fit", "1 missing: visual_projection.weight")
    for gone, name in (("visual.proj", "image"), ("text_projection", "text")):
        tensors = {key: array for key, array in whole_original().items() if key != gone}
        path = written(tmp_path / f"{name}.safetensors", tensors)
        refused(path, f"{name}.safetensors: the {name} tower has no projection", "cannot be compared")


def test_heads_that_do_not_divide(tmp_path):
    path = folder_of(tmp_path / "tower", "CLIPVisionModel", hub(BARE), seen_json(replace(BARE, heads=5)))
    refused(path, "config.json: num_attention_heads is 5, which does not divide the width 128")
    wide = replace(SEEN, width=200, heads=8)
    path = written(tmp_path / "x.safetensors", spelt(vision.openclip(wide), numbers(wide, 3)))
    refused(path, "the image tower: tensor 'visual.conv1.weight' is 200 wide, which 3 heads do not divide")


@pytest.mark.parametrize("rows", [1, 16, 18])
@pytest.mark.parametrize("tensors", [hub, original])
def test_positions_that_are_no_class_token_and_a_square(tmp_path, tensors, rows):
    changed = tensors()
    key = next(key for key in changed if key.endswith(("position_embedding.weight", "positional_embedding")))
    changed[key] = np.ones((rows, 128), np.float32)
    refused(written(tmp_path / "x.safetensors", changed), f"has {rows} rows, but 1 and a square number")


def test_a_text_tower_where_an_image_tower_is_asked_for(tmp_path):
    read = prefixed("text_model.", spelt(text.folder(READ), TEXT))
    path = written(tmp_path / "text.safetensors", read)
    with pytest.raises(ValueError, match="this checkpoint holds text, but image is needed too"):
        weights_convert.load(path).require("image")
    folder = folder_of(tmp_path / "tower", "CLIPVisionModelWithProjection", read, seen_json())
    refused(folder, "the image tower does not fit", "missing", "It looks like a CLIP text tower.")


def test_image_towers_of_other_kinds(tmp_path):
    resnet = {"visual.layer1.0.conv1.weight": np.ones((4, 3, 1, 1), np.float32), "ln_final.weight": np.ones(4)}
    resnet |= {"token_embedding.weight": np.ones((5, 4)), "positional_embedding": np.ones((5, 4))}
    resnet |= {"transformer.resblocks.0.mlp.c_fc.weight": np.ones((8, 4)), "text_projection": np.ones((4, 4))}
    path = tmp_path / "rn50.safetensors"
    save_file({key: np.float32(array) for key, array in resnet.items()}, path)
    refused(path, "the image tower: this image tower is no vision transformer of CLIP's (a ResNet, perhaps)")
    checker = prefixed("vision_model.", hub()) | {"concept_embeds": np.ones((2, 4), np.float32)}
    refused(written(tmp_path / "x.safetensors", checker), "this is a safety checker")
    assert identify({"visual.x": Shaped((1,))}).name == "CLIP image tower"
    half = {key: array for key, array in original().items() if "conv1" not in key}
    refused(written(tmp_path / "half.safetensors", half), "not a whole image tower: tensor 'visual.conv1.weight' is")
