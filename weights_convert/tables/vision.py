"""The image tower's public spellings: the folder layout, and that of the original CLIP and OpenCLIP files."""

import math
import re
from collections.abc import Mapping
from typing import Any

from ldm.models.layers import ACTIVATIONS
from ldm.models.vision import VisionConfig
from weights_convert.engine import Layout, Tensors
from weights_convert.tables.fields import DEEPEST, axis, choice, divides, fail, fixed, index, whole
from weights_convert.tables.text import FOLDER_LAYERS, OPENCLIP_LAYERS, SCALARS

TEXT = r"(text_model|text_projection)\..*"  # the text tower of a whole CLIP in the folder layout
OTHER_TOWERS = ("visual.layer1.", "visual.trunk.")  # OpenAI's ResNets; OpenCLIP's networks of another library
WIDEST_OF_64, HEADS_BEYOND = 1024, 16  # see heads_of
LETTERS = {768: "B", 1024: "L", 1280: "H", 1408: "g", 1664: "bigG"}  # of the public sizes, by width


def folder(config: VisionConfig) -> Layout:
    """Names of ``image_encoder/model.*`` after :func:`named_alike`; ``pre_layrnorm`` is spelt so there."""
    rules = (
        (r"^class_embedding$", "embeddings.class_embedding"),
        (r"^patch_embedding\.", "embeddings.patch_embedding."),
        (r"^position_embedding$", "embeddings.position_embedding.weight"),
        (r"^first_norm\.", "pre_layrnorm."),
        (r"^final_norm\.", "post_layernorm."),
        (r"^projection\.", "visual_projection."),
        *FOLDER_LAYERS,
    )
    unused_projection = "" if config.projection else r"|visual_projection\.weight"
    return Layout("folder image tower", rules, rf"{TEXT}|{SCALARS}|embeddings\.position_ids{unused_projection}")


def openclip(config: VisionConfig) -> Layout:
    """Names of OpenAI's and OpenCLIP's files: queries, keys and values are fused, the projection is input-first."""
    rules = (
        (r"^projection\.kernel$", "proj@"),
        (r"^position_embedding$", "positional_embedding"),
        (r"^patch_embedding\.", "conv1."),
        (r"^first_norm\.", "ln_pre."),
        (r"^final_norm\.", "ln_post."),
        *OPENCLIP_LAYERS,
        (r"^", "visual."),
    )
    unused_projection = "" if config.projection else r"|visual\.proj"
    return Layout("CLIP image tower", rules, rf"{SCALARS}{unused_projection}")


def layouts(config: VisionConfig) -> list[Layout]:
    """All spellings."""
    return [folder(config), openclip(config)]


def named_alike(tensors: Tensors) -> dict:
    """Drops the ``vision_model.`` that most public folders put before every name, and new ones do not; puts
    ``visual.`` before the names of OpenCLIP's tower where it was saved alone, and has lost it.
    """
    if "conv1.weight" in tensors:
        return {f"visual.{key}": value for key, value in tensors.items()}
    return {key.removeprefix("vision_model."): value for key, value in tensors.items()}


def heads_of(width: int) -> int:
    """The heads of the public towers, which no shape shows: 64 wide up to ViT-L, 16 of them in ViT-H, -g and -bigG."""
    return max(width // 64, 1) if width <= WIDEST_OF_64 else HEADS_BEYOND


def config_from_shapes(tensors: Tensors, activation: str) -> VisionConfig:
    """The numbers of an image tower in either spelling (names as :func:`named_alike` gives them).

    Raises ValueError if it is not whole, or its shapes are those of no such tower.
    """
    if any(key.startswith(OTHER_TOWERS) for key in tensors):
        raise ValueError("this image tower is no vision transformer of CLIP's (a ResNet, perhaps); it is not read")
    original = any(key.startswith("visual.") for key in tensors)
    patches = "visual.conv1.weight" if original else "embeddings.patch_embedding.weight"
    positions = "visual.positional_embedding" if original else "embeddings.position_embedding.weight"
    mlp = "visual.transformer.resblocks.0.mlp.c_fc.weight" if original else "encoder.layers.0.mlp.fc1.weight"
    projection = ("visual.proj", 1) if original else ("visual_projection.weight", 0)  # and the axis of its output
    for key in (patches, positions, mlp):
        if key not in tensors:
            raise ValueError(f"this is not a whole image tower: tensor '{key}' is missing")
    numbered = r"(?:encoder\.layers|visual\.transformer\.resblocks)\.(\d+)\..*"
    width, patch = (axis(tensors, patches, n, (4,)) for n in (0, 2))
    heads = heads_of(width)
    if width % heads:
        raise ValueError(f"tensor '{patches}' is {width} wide, which {heads} heads do not divide: no public one is so")
    return VisionConfig(
        image=side_of(axis(tensors, positions, 0, (2,)), positions) * patch,
        patch=patch,
        width=width,
        mlp_width=axis(tensors, mlp, 0, (2,)),
        layers=1 + max(index(m[1], k, tensors) for k in tensors if (m := re.fullmatch(numbered, k))),
        heads=heads,
        activation=activation,
        projection=axis(tensors, *projection, (2,)) if projection[0] in tensors else 0,
    )


def side_of(rows: int, key: str) -> int:
    """Patches along each side, of the table of positions ``key`` with so many ``rows``. Raises ValueError."""
    side = math.isqrt(rows - 1)
    if not side or side**2 != rows - 1:
        raise ValueError(
            f"tensor '{key}' has {rows} rows, but 1 and a square number are expected: for the class token, and for"
            " patches as many down as across"
        )
    return side


def config_from_json(data: Mapping[str, Any], projected: bool, where: str) -> VisionConfig:
    """The numbers of ``image_encoder/config.json``, or of a whole CLIP's ``vision_config``.

    ``projected`` says whether the file holds a ``visual_projection``. Raises ValueError.
    """
    fixed(data, {"layer_norm_eps": 1e-5, "num_channels": 3}, where, "image tower")
    numbers = {
        "image": whole(data, "image_size", 224, where),
        "patch": whole(data, "patch_size", 32, where),
        "width": whole(data, "hidden_size", 768, where),
        "mlp_width": whole(data, "intermediate_size", 3072, where),
        "layers": whole(data, "num_hidden_layers", 12, where, high=DEEPEST),
        "heads": whole(data, "num_attention_heads", 12, where),
        "activation": choice(data, "hidden_act", "quick_gelu", sorted(ACTIVATIONS), where),
        "projection": whole(data, "projection_dim", 512, where) if projected else 0,
    }
    divides(where, "num_attention_heads", numbers["heads"], [numbers["width"]])
    if numbers["image"] % numbers["patch"]:
        raise fail(where, "patch_size", numbers["patch"], f"a divisor of image_size, {numbers['image']}, is expected")
    return VisionConfig(**numbers)


def title(config: VisionConfig) -> str:
    """A tower's public name, such as ViT-L/14 or, for pictures of another size than 224, ViT-L/14@336."""
    letter = LETTERS.get(config.width, f"{config.width}-wide")
    return f"ViT-{letter}/{config.patch}" + (f"@{config.image}" if config.image != 224 else "")
