"""``load_lora``: a public LoRA of any layout -> {part: {kernel: change}}, as ``ldm.adapters.lora`` has it.

Read are kohya's files and LyCORIS's (LoCon, LoHa, LoKr, DoRA), those of the diffusers library old and new, PEFT's
folders, and cloneofsimo's. Every tensor is used, or named in a warning; a file of which nothing fits is an error.

Not all readers agree on scales. Here a layer's factor is alpha / r, where alpha comes, in turn, from the file (0 is
taken for the rank, as kohya's tools do), from ``adapter_config.json`` beside it (alpha / sqrt(r) where that says
``use_rslora``), or is the rank. A Kronecker product of two whole matrices has the factor 1, as LyCORIS trains it, or
alpha / r where PEFT says what both are.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from ldm.adapters.lora import Change, Lora
from ldm.bundle import Bundle
from weights_convert.adapters import cloneofsimo
from weights_convert.adapters.forms import change_of
from weights_convert.adapters.names import Kernel, family, other_kind, parse, table
from weights_convert.engine import Tensors
from weights_convert.folder import parse_json, read_json
from weights_convert.load import located
from weights_convert.reading import Checkpoint, read_file

FILES = (  # what a folder calls its weights
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
)
CONFIG, METADATA = "adapter_config.json", "lora_adapter_metadata"
SHOWN = 40  # names in a warning


@dataclass(frozen=True)
class Numbers:
    """What PEFT says of the layers of one part: its configuration."""

    said: Mapping[str, Any] = field(default_factory=dict)

    def alpha(self, layer: str, rank: int | None) -> float | None:
        """alpha such that the factor is alpha / rank; of whole matrices, the factor itself. None: not said."""
        usual = self.said.get("lora_alpha", self.said.get("alpha"))
        alpha = self._of("alpha_pattern", layer, usual)
        if not isinstance(alpha, int | float):
            return None
        r = rank or self._of("rank_pattern", layer, self.said.get("r", 1))
        alpha = alpha * sqrt(r) if self.said.get("use_rslora") else alpha
        return alpha if rank else alpha / r

    def _of(self, pattern: str, layer: str, usual: Any) -> Any:
        """The first entry of a table of patterns that fits the layer's name, as PEFT looks them up."""
        entries = self.said.get(pattern) or {}
        return next((value for key, value in entries.items() if re.match(rf"(.*\.)?({key})$", layer)), usual)


def load_lora(source: str | Path, bundle: Bundle) -> Lora:
    """Reads a LoRA for ``bundle``: a file, a folder of PEFT or diffusers, or a hub id.

    Raises ValueError in one sentence: for another family's, another kind of adapter, matrices that do not fit.
    """
    path, checkpoint, said = opened(source)
    try:
        return changes(checkpoint, said, bundle)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


Opened = tuple[Path, Checkpoint, dict[str, Any]]
"""A file, what it holds, and PEFT's configuration or {}."""


def opened(source: str | Path) -> Opened:
    """The file of a source. Raises ValueError."""
    path = located(source)
    if path.is_dir():
        held = [path / name for name in FILES if (path / name).exists()]
        others = sorted(path.glob("*.safetensors"))
        if not held and len(others) != 1:
            raise ValueError(f"{path}: holds no LoRA under a usual name ({', '.join(FILES)}); name the file itself")
        path = (held or others)[0]
    return with_settings(path, read_file(path))


def with_settings(path: Path, checkpoint: Checkpoint) -> Opened:
    """What PEFT says, in a file beside it or in its metadata. Raises ValueError."""
    config = path.parent / CONFIG
    if config.exists():
        return path, checkpoint, read_json(config)
    return path, checkpoint, parse_json(checkpoint.metadata.get(METADATA, "{}"), f"{path}: its metadata")


def numbers(said: Mapping[str, Any], part: str) -> Numbers:
    """PEFT's settings of one part: one table for the file, or one for each part under its prefix."""
    prefix = {"unet": "unet.", "text": "text_encoder."}[part]
    own = {key.removeprefix(prefix): value for key, value in said.items() if key.startswith(prefix)}
    return Numbers(own or said)


def changes(checkpoint: Checkpoint, said: Mapping[str, Any], bundle: Bundle) -> Lora:
    """The LoRA in a checkpoint. Raises ValueError."""
    tensors: Tensors = checkpoint.tensors
    if cloneofsimo.is_one(tensors):
        tensors = cloneofsimo.named(checkpoint, bundle.configs)
    parsed, known = parse(tensors), table(bundle.configs)
    found = {layer: known[layer] for layer in parsed.layers if layer in known}
    unused = [*parsed.odd, *(t for layer, own in parsed.layers.items() if layer not in known for t in own.values())]
    check_kinds(tensors, parsed.layers, unused, found)
    lora: dict[str, dict[str, Change]] = {}
    for layer, kernel in found.items():
        own = {role: tensors[name].read() for role, name in parsed.layers[layer].items()}
        part = lora.setdefault(kernel.part, {})
        if kernel.name in part:
            raise ValueError(f"two layers of it are the model's {kernel.part} {kernel.name}; one is {layer}")
        try:
            part[kernel.name] = one_change(layer, own, kernel, numbers(said, kernel.part))
        except ValueError as error:
            raise ValueError(f"{layer}: {error}{made_for(tensors, parsed.layers)}") from None
    if unused:
        more = f" and {len(unused) - SHOWN} more" if len(unused) > SHOWN else ""
        warnings.warn(f"{len(unused)} tensors of the LoRA fit nothing: {', '.join(unused[:SHOWN])}{more}", stacklevel=4)
    return lora


def one_change(layer: str, own: dict[str, np.ndarray], kernel: Kernel, settings: Numbers) -> Change:
    """The change of one layer. Raises ValueError."""
    alpha = own.pop("alpha", None)
    if alpha is not None and (alpha.size != 1 or not np.isfinite(alpha).all()):
        raise ValueError(f"alpha must be one finite number, and has shape {alpha.shape}")
    if not own:
        raise ValueError("has an alpha and no matrices")
    if alpha is not None and not alpha.any():
        warnings.warn(f"{layer}: alpha is 0, which is read as the rank, as by the tools that write it", stacklevel=5)
    rank = next((m.shape[0] for role, m in own.items() if role in ("down", "hada_w1_b", "lokr_w2_b")), None)
    value = settings.alpha(layer, rank) if alpha is None else float(alpha.reshape(()))
    return change_of(own, kernel.shape, value, alpha is None)


def check_kinds(tensors: Tensors, layers: Mapping, unused: list[str], found: Mapping) -> None:
    """Raises ValueError for adapters of other kinds, and where nothing fits."""
    kind = other_kind(list(tensors))
    if kind is not None:
        raise ValueError(f"holds {kind}, which is not read; LoRA, LoCon, LoHa, LoKr and DoRA are")
    if not layers:
        raise ValueError(f"no LoRA is in it: its tensors are such as {', '.join(list(tensors)[:3])}")
    if not found:
        raise ValueError(
            f"nothing in it fits this model: {len(unused)} tensors, such as {unused[0]}{made_for(tensors, layers)}"
        )


def made_for(tensors: Tensors, layers: Mapping[str, Mapping[str, str]]) -> str:
    """ "; it was made for …", where that can be told and is another family than the model's."""
    shapes = {layer: tensors[own["down"]].shape for layer, own in layers.items() if "down" in own}
    name = family({layer: shape[1] for layer, shape in shapes.items() if len(shape) > 1})
    return f"; it looks like one for {name}" if name else ""
