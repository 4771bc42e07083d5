"""What a checkpoint is, in a few lines for people: ``ldm inspect``. Names and shapes are read, and no weights."""

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import ldm.bundle
from ldm.bundle import MODELS, Bundle
from ldm.models.layers import shapes
from ldm.models.vision import VisionConfig
from weights_convert.adapters import inspection as adapters
from weights_convert.adapters import lora
from weights_convert.adapters.control_inspection import control_report, is_control, is_control_folder
from weights_convert.adapters.controlnet import CONFIG, opened
from weights_convert.adapters.ip_adapter import is_ip_adapter
from weights_convert.adapters.ip_adapter_inspection import ip_adapter_report
from weights_convert.engine import fit
from weights_convert.load import find, located
from weights_convert.reading import read_file


def inspect(source: str | Path, **options: Any) -> str:
    """A report on a checkpoint: family, parts, parameters, dtypes, prediction type, what is missing or unknown.

    ``options`` are those of ``weights_convert.load.find``. Raises ValueError where the source cannot be read at all.
    """
    path = located(source)
    if path.is_dir() and ldm.bundle.is_bundle(path):
        bundle = ldm.bundle.load(path)
        lines = [f"{path}: a folder of this project's own layout"]
        for name, params in bundle.params.items():
            dtypes = Counter(str(a.dtype) for a in params.values())
            config = getattr(bundle.configs, name)
            lines += [_line(name, config, _dtypes(dtypes)), *_sight(config)]
        return "\n".join([*lines, *_tail(bundle, "its config.json")])
    if adapter := adapter_report(path):
        return adapter
    found = find(path, **options)
    lines = [f"{path}: {found.family}"]
    for name, part in found.parts.items():
        lines.append(_line(name, part.config, _dtypes(Counter(str(t.dtype) for t in part.tensors.values()))))
        lines.append(f"          {part.layout().title} names; {fit(part)}")
        lines += _sight(part.config)
    return "\n".join([*lines, *_tail(found.bundle, found.prediction_from)])


def adapter_report(path: Path) -> str | None:
    """The report on a LoRA, an embedding, a ControlNet, a T2I- or an IP-Adapter; None where it is something else."""
    if path.is_dir() and is_control_folder(path):
        return control_report(opened(path))
    if path.is_dir():
        return adapters.lora_report(lora.opened(path)) if any((path / name).exists() for name in lora.FILES) else None
    checkpoint = read_file(path)
    if is_ip_adapter(checkpoint):
        return ip_adapter_report(path, checkpoint)
    if is_control(checkpoint):
        return control_report((path, checkpoint, path.parent / CONFIG))
    if adapters.is_embedding(checkpoint.tensors):
        return adapters.embedding_report(path, checkpoint)
    return adapters.lora_report(lora.with_settings(path, checkpoint)) if adapters.is_lora(checkpoint.tensors) else None


def _line(name: str, config: Any, dtypes: str) -> str:
    specs = shapes(MODELS[type(config)], config).values()
    return f"  {name:<7} {sum(prod(s.shape) for s in specs):>13,} parameters in {len(specs)} arrays, stored as {dtypes}"


def _sight(config: Any) -> list[str]:
    """How an image tower looks at a picture; heads and activation are in no shape, and may be guesses."""
    if not isinstance(config, VisionConfig):
        return []
    says = f"{config.projection} numbers" if config.projection else f"{config.width} numbers, for it has no projection"
    sees = f"{config.image}x{config.image} pixels in patches of {config.patch}x{config.patch}"
    return [f"          sees {sees}, says {says}; {config.layers} layers, {config.heads} heads, {config.activation}"]


def _dtypes(counts: Counter) -> str:
    return ", ".join(f"{dtype} ({count})" if len(counts) > 1 else dtype for dtype, count in counts.most_common())


def _tail(bundle: Bundle, prediction_from: str) -> list[str]:
    if bundle.configs.unet is None or not prediction_from:  # a part alone says neither
        return []
    unet, schedule = bundle.configs.unet, bundle.configs.schedule
    return [
        f"  predicts {schedule.prediction} ({prediction_from})",
        f"  {unet.in_channels} input channels, context {unet.context_dim}, {bundle.size[0]}x{bundle.size[1]} pixels",
    ]
