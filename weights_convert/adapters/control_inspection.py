"""What a ControlNet or a T2I-Adapter is, in a few lines for people. Names and shapes are read, and no weights."""

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from ldm.adapters.control_file import KEY
from ldm.adapters.controlnet import ControlNet, ControlNetConfig
from ldm.adapters.t2i_adapter import T2IAdapter
from ldm.models.layers import shapes
from ldm.models.unet import UNet
from weights_convert import families
from weights_convert.adapters.control import T2I, is_t2i_adapter, own_config, t2i_config
from weights_convert.adapters.controlnet import (
    CLASS,
    CONFIG,
    DIFFERENCES,
    LOW_RANK,
    WHOLE,
    Opened,
    family_of,
    find_controlnet,
    with_base,
)
from weights_convert.adapters.inspection import said_of
from weights_convert.adapters.t2i_adapter import t2i_part
from weights_convert.engine import Part, fit
from weights_convert.folder import read_json
from weights_convert.reading import Checkpoint, read_file
from weights_convert.single_file import unwrapped

CLASSES = (CLASS, "T2IAdapter")


def is_control_folder(path: Path) -> bool:
    """Whether a folder has the configuration of a ControlNet or a T2I-Adapter."""
    return (path / CONFIG).exists() and str(read_json(path / CONFIG).get("_class_name")).startswith(CLASSES)


def is_control(checkpoint: Checkpoint) -> bool:
    """Whether a file is one."""
    return KEY in checkpoint.metadata or families.identify(unwrapped(checkpoint.tensors)).name in (WHOLE, T2I)


def is_control_source(path: Path) -> bool:
    """Whether a folder or a file is one."""
    return is_control_folder(path) if path.is_dir() else is_control(read_file(path))


def control_report(source: Opened) -> str:
    """Kind, family, layout, parameters, dtypes and hint, and which tensors are missing or unknown.

    Raises ValueError for those that are not read.
    """
    path, checkpoint, _ = source
    if KEY in checkpoint.metadata:
        config = own_config(path, checkpoint)
        lines = [f"{path}: a ControlNet in a file of this project's own"]
        return "\n".join([*lines, size_of(ControlNet, config, checkpoint.tensors), hint_of(config)])
    if is_t2i_adapter(checkpoint):
        part = t2i_part(f"{path}: {T2I}", unwrapped(checkpoint.tensors), t2i_config(source))
        lines = [f"{path}: {T2I}, {'light' if part.config.light else 'full'}"]
        lines += [size_of(T2IAdapter, part.config, checkpoint.tensors), fit_of(part)]
        return "\n".join([*lines, f"  {part.config.in_channels} hint channels"])
    return controlnet_report(source)


def controlnet_report(source: Opened) -> str:
    """The report on a public ControlNet. Raises ValueError."""
    found = find_controlnet(source)
    part, config = found.part, found.part.config
    if found.kind != WHOLE:  # held against the model that it must be for
        part = with_base(found, shapes(UNet, config.unet))
    ranks = Counter(tensor.shape[1] for name, tensor in found.stored.items() if name.endswith(".up"))
    return "\n".join(
        [
            f"{found.path}: {found.kind} for {family_of(config.unet)}",
            size_of(ControlNet, config, found.stored),
            fit_of(part),
            *[f"  products of rank {said_of(ranks)}, to be added to a model's weights"] * (found.kind == LOW_RANK),
            *["  differences, to be added to a model's weights"] * (found.kind == DIFFERENCES),
            hint_of(config),
        ]
    )


def hint_of(config: ControlNetConfig) -> str:
    """The line about what a ControlNet sees and gives."""
    pooled = ", pooled: averaged over all pixels" if config.pooled else ""
    return f"  {config.hint_channels} hint channels, context {config.unet.context_dim}{pooled}"


def size_of(model: type, config: Any, stored: Any) -> str:
    """The line about parameters and dtypes."""
    specs = shapes(model, config).values()
    dtypes = ", ".join(sorted({str(tensor.dtype) for tensor in stored.values()}))
    return f"  {sum(prod(s.shape) for s in specs):,} parameters in {len(specs)} arrays, stored as {dtypes}"


def fit_of(part: Part) -> str:
    """The line about names."""
    return f"  {part.layout().title} names; {fit(part)}"
