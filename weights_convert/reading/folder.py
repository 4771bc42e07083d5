"""Reads the weights of one component of a model folder: one file, or shards with an index.

A component folder (``unet/``, ``vae/``, ``text_encoder/``) holds, for a variant V such as fp16, or none:

    STEM[.V].safetensors    STEM[.V].bin                                    one file
    STEM.safetensors.index[.V].json    (older: STEM.safetensors[.V].index.json)
        {"metadata": {"total_size": bytes}, "weight_map": {tensor: shard}}  and the shards beside it

STEM is ``diffusion_pytorch_model`` for diffusers, ``model`` (safetensors) or ``pytorch_model`` (.bin) for transformers.
Shards' names are taken from the index alone, so both ways of putting the variant into them are read.
"""

import json
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

from weights_convert.reading.container import read_file
from weights_convert.reading.errors import CheckpointError, kind, quoted
from weights_convert.reading.tensor import Checkpoint

VARIANTS = ("ema", "non_ema", "fp32", "fp16", "bf16")  # the order in which one stands in for the plain weights
MOST_INDEX_BYTES = 1 << 26


def read_component(folder: str | os.PathLike, stem: str | tuple[str, ...], variant: str | None = None) -> Checkpoint:
    """The tensors of a component folder, from one file or from shards.

    ``stem`` is the file name without its endings, or several to try. For each variant safetensors comes before .bin.
    With ``variant`` None the plain weights are read; where a folder has only variants, the first of ``ema``,
    ``non_ema``, ``fp32``, ``fp16``, ``bf16``, then of any other by name. A named variant is never replaced by another.

    Raises CheckpointError if the folder has no such weights (it lists the files), or they cannot be read.
    """
    folder = Path(folder)
    stems = (stem,) if isinstance(stem, str) else tuple(stem)
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read as a folder ({error.strerror})") from None
    wanted = (variant,) if variant is not None else preference(names, stems)
    for name in (name for choice in wanted for name in candidates(stems, choice)):
        if name in names:
            return read_sharded(folder / name) if name.endswith(".json") else read_file(folder / name)
    which = f"the variant {quoted(variant)} of " if variant is not None else ""
    raise CheckpointError(
        f"{folder}: {which}{' or '.join(stems)} (.safetensors, .bin, or an index of shards) is missing; "
        f"it has {', '.join(names[:20]) or 'nothing'}"
    )


def candidates(stems: Iterable[str], variant: str | None) -> list[str]:
    """File names that hold the weights of a variant, the preferred first."""
    dot = f".{variant}" if variant else ""
    return [
        name
        for ending in ("safetensors", "bin")
        for stem in stems
        for name in (
            f"{stem}{dot}.{ending}",
            f"{stem}.{ending}.index{dot}.json",
            f"{stem}.{ending}{dot}.index.json",
            f"{stem}{dot}.{ending}.index.json",
        )
    ]


def preference(names: Iterable[str], stems: Iterable[str]) -> tuple[str | None, ...]:
    """No variant first, then those that the file names show, in the order of VARIANTS, then by name."""
    stem = "|".join(map(re.escape, stems))
    middle = r"\.([A-Za-z0-9_]+)"
    forms = (rf"(?:{stem}){middle}\.(?:safetensors|bin)(?:\.index\.json)?", *(
        rf"(?:{stem})\.(?:safetensors|bin){shape}\.json" for shape in (rf"\.index{middle}", rf"{middle}\.index")
    ))  # fmt: skip
    found = {match[1] for name in names for form in forms if (match := re.fullmatch(form, name))}
    rest = sorted(found - {*VARIANTS, "safetensors", "bin"})
    return (None, *(variant for variant in VARIANTS if variant in found), *rest)


def read_sharded(index: str | os.PathLike) -> Checkpoint:
    """The tensors of every shard that an index names; each must be where the index has it, and in one shard only."""
    index = Path(index)
    weight_map, total_bytes = read_index(index)
    tensors, metadata, extras, where = {}, {}, {}, {}
    for shard in dict.fromkeys(weight_map.values()):
        if not (index.parent / shard).exists():
            raise CheckpointError(f"{index.parent / shard}: this shard is missing, {index.name} names it")
        part = read_file(index.parent / shard)
        for name in part.tensors:
            if name in where:
                raise CheckpointError(f"{index}: tensor {quoted(name)} is in two shards, {where[name]} and {shard}")
            where[name] = shard
        tensors |= part.tensors
        metadata |= part.metadata
        extras |= part.extras
    for name, shard in weight_map.items():
        if where.get(name) != shard:
            raise CheckpointError(f"{index.parent / shard}: lacks tensor {quoted(name)}, which {index.name} promises")
    have = sum(tensor.size * tensor.dtype.itemsize for tensor in tensors.values())
    if total_bytes is not None and have != total_bytes:
        warnings.warn(f"{index}: its total_size is {total_bytes}, the shards' tensors have {have} bytes", stacklevel=2)
    return Checkpoint(tensors, metadata, extras, str(index))


def read_index(index: Path) -> tuple[dict[str, str], int | None]:
    """(tensor -> shard, total bytes if told) of an index of shards."""
    try:
        if index.stat().st_size > MOST_INDEX_BYTES:
            raise CheckpointError(f"{index}: is larger than any index of shards")
        content = json.loads(index.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{index}: cannot be read ({error.strerror})") from None
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{index}: is not JSON ({str(error)[:100]})") from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(
            f"{index}: an index of shards needs weight_map, of tensors to files, not {kind(weight_map)}"
        )
    for shard in dict.fromkeys(weight_map.values()):
        if not re.fullmatch(r"[\w][\w.\- ]*", shard, re.ASCII):
            raise CheckpointError(
                f"{index}: names the shard {quoted(shard)}; shards are plain file names beside the index"
            )
    metadata = content.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return weight_map, total if isinstance(total, int | float) else None
