"""What an IP-Adapter is, in a few lines for people. Names and shapes are read, and no weights."""

from pathlib import Path

from ldm.adapters.ip_adapter import IPAdapter, IPAdapterConfig
from ldm.adapters.ip_adapter_file import KEY, config_of
from weights_convert.adapters.control_inspection import family_of, fit_of, size_of
from weights_convert.adapters.inspection import MODELS
from weights_convert.adapters.ip_adapter import REFUSED, find_ip_adapter, tensors_of
from weights_convert.engine import Tensors
from weights_convert.reading import Checkpoint
from weights_convert.tables import ip_adapter as table

NAMES = {"face": "FaceID"}  # where the public's word is not ours
TOWERS = {  # (whether states are read, numbers seen): whose they are, of the published towers
    (False, 768): "ViT-L/14",
    (False, 1024): "ViT-H/14",
    (False, 1280): "ViT-bigG/14",
    (True, 1024): "ViT-L/14",
    (True, 1280): "ViT-H/14",
    (True, 1664): "ViT-bigG/14",
}


def ip_adapter_report(path: Path, checkpoint: Checkpoint) -> str:
    """Kind, family, tokens, what it expects of an image tower, parameters, and what is missing or unknown.

    Raises ValueError for a file that is too far from whole to say.
    """
    if KEY in checkpoint.metadata:
        return own_report(path, checkpoint)
    tensors, lora = tensors_of(checkpoint)
    try:
        kind, context = table.kind_of(tensors), table.context_of(tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    family = next((name for name, c in MODELS.items() if c.unet.context_dim == context), None)
    whose = f"for {family}" if family else f"for no family that is known here, its tokens are {context} wide"
    title = f"{path}: an IP-Adapter, {NAMES.get(kind, kind)}, {whose}"
    if kind in REFUSED:
        return "\n".join([f"{title}; this program does not apply it", count_of(tensors)])
    if family is None:
        return "\n".join([title, count_of(tensors), *lora_lines(lora)])
    part = find_ip_adapter(path, checkpoint, None).part
    lines = [title, seen_by(part.config), size_of(IPAdapter, part.config, tensors), fit_of(part)]
    return "\n".join([*lines, *lora_lines(lora)])


def own_report(path: Path, checkpoint: Checkpoint) -> str:
    """The report on a file of ours. Raises ValueError."""
    try:
        config = config_of(checkpoint.tensors, checkpoint.metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    title = f"{path}: an IP-Adapter in a file of this project's own, {config.kind}, for {family_of(config.unet)}"
    return "\n".join([title, seen_by(config), size_of(IPAdapter, config, checkpoint.tensors)])


def seen_by(config: IPAdapterConfig) -> str:
    """The line about tokens and what they are made of."""
    if config.kind == "face":
        return f"  {config.tokens} tokens of a face recogniser's vector of {config.image_dim} numbers"
    tower = TOWERS.get((config.reads_states, config.image_dim))
    name = f", {tower}'s" if tower else ""
    if config.reads_states:
        tokens = "a token for each" if config.kind == "full" else f"{config.tokens} tokens"
        return f"  {tokens} of an image tower's states, {config.image_dim} wide{name}"
    return f"  {config.tokens} tokens of an image tower's vector of {config.image_dim} numbers{name}"


def count_of(tensors: Tensors) -> str:
    """The line about what cannot be held against a model."""
    dtypes = ", ".join(sorted({str(tensor.dtype) for tensor in tensors.values()}))
    return f"  {sum(t.size for t in tensors.values()):,} numbers in {len(tensors)} tensors, stored as {dtypes}"


def lora_lines(lora: Tensors) -> list[str]:
    """The line about a LoRA, if there is one."""
    ranks = sorted({tensor.shape[0] for name, tensor in lora.items() if name.endswith("down.weight") and tensor.shape})
    return [f"  and a LoRA of rank {', '.join(map(str, ranks))} in {len(lora)} tensors"] if lora else []
