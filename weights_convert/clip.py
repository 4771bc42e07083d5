"""CLIP's towers, one or both: folders of the model hub, and the files of OpenAI, of OpenCLIP and of the hub."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ldm.models.text import TextConfig
from ldm.models.vision import VisionConfig
from weights_convert import families
from weights_convert.engine import Part, Tensors
from weights_convert.parts import Found, text_part, together, vision_part
from weights_convert.reading import Checkpoint
from weights_convert.tables import text, vision
from weights_convert.tables.fields import fail

CLASSES = {  # what a folder's config.json calls itself, and the towers that it has
    "CLIPModel": ("text", "image"),
    "CLIPTextModel": ("text",),
    "CLIPTextModelWithProjection": ("text",),
    "CLIPVisionModel": ("image",),
    "CLIPVisionModelWithProjection": ("image",),
}
UNPROJECTED = ("CLIPTextModel", "CLIPVisionModel")
TABLES = {"text": ("text_config", text), "image": ("vision_config", vision)}
OPENAI_TEXTS, OPENAI_IMAGES = {512, 768}, {768, 1024}  # widths of ViT-B's and ViT-L's towers


def configs_from_json(data: Mapping[str, Any], kind: str, where: str) -> dict[str, TextConfig | VisionConfig]:
    """The numbers of the towers of ``config.json`` of the class ``kind``, one of ``CLASSES``. Raises ValueError."""
    found = {}
    for name in CLASSES[kind]:
        field, table = TABLES[name]
        numbers = numbers_of(data, field, where) | {"projection_dim": data.get("projection_dim")}
        found[name] = table.config_from_json(numbers, kind not in UNPROJECTED, where)
    return found


def numbers_of(data: Mapping[str, Any], field: str, where: str) -> dict:
    """One tower's part of ``config.json``: all of it, or the object ``field``; or, in place of that, the object of the
    older name that some files have too. Raises ValueError.
    """
    key = next((key for key in (f"{field}_dict", field) if data.get(key) is not None), None)
    numbers = data if key is None else data[key]
    if not isinstance(numbers, dict):
        raise fail(where, key, numbers, "a JSON object is expected")
    return numbers


def tower_parts(
    what: str, tensors: Tensors, configs: Mapping[str, TextConfig | VisionConfig | None], activation: str = "gelu"
) -> dict[str, Part]:
    """The towers that ``configs`` names, "text" or "image" or both, from the tensors of all.

    Where a configuration is None, its numbers come from the shapes, and ``activation`` is what they do not show.
    Raises ValueError where of two towers one has no projection.
    """
    seen = {key: tensor for key, tensor in tensors.items() if re.fullmatch(text.VISION, key)}
    read = {key: tensor for key, tensor in tensors.items() if key not in seen}
    parts = {}
    if "text" in configs:
        parts["text"] = text_part(f"{what}: the text tower", read, configs["text"], activation)
    if "image" in configs:
        own = seen if "text" in configs else tensors  # alone, it may have names without a prefix
        parts["image"] = vision_part(f"{what}: the image tower", own, configs["image"], activation)
    bare = [name for name, part in parts.items() if not part.config.projection]
    if len(parts) == 2 and bare:
        raise ValueError(
            f"{what}: the {bare[0]} tower has no projection, without which pictures and texts cannot be compared"
        )
    return parts


def find_in_tensors(what: str, checkpoint: Checkpoint, tensors: Tensors, known: TextConfig | None) -> Found:
    """What a file of one tower or both holds; ``known`` are the numbers of its text tower, where something tells them.

    Raises ValueError.
    """
    names = families.towers(tensors)
    configs = dict.fromkeys(names) | ({"text": known} if "text" in names else {})
    parts = tower_parts(what, tensors, configs, activation_of(checkpoint, tensors))
    return titled(together(families.TOWERS[names], parts))


def titled(found: Found) -> Found:
    """With the name of the image tower's size beside the family's, if there is one."""
    image = found.bundle.configs.image
    return replace(found, family=f"{found.family}, {vision.title(image)}") if image else found


def activation_of(checkpoint: Checkpoint, tensors: Tensors) -> str:
    """quick_gelu for OpenAI's files (they say their input resolution) and, in the hub's names, for towers as wide as
    OpenAI's; gelu otherwise.
    """
    openai = "input_resolution" in tensors or "input_resolution" in checkpoint.extras
    widths = lambda end, n: {t.shape[n] for key, t in tensors.items() if key.endswith(end) and len(t.shape) > n}
    read, seen = widths("embeddings.token_embedding.weight", 1), widths("embeddings.patch_embedding.weight", 0)
    return "quick_gelu" if openai or read & OPENAI_TEXTS or seen & OPENAI_IMAGES else "gelu"
