"""A public ControlNet of any layout -> its numbers and parameters.

original      names below ``control_model.``: alone (v1.1), or beside the whole model that it was trained with; or the
              same names without that prefix
diffusers     a folder with a config.json, or its names in one file
differences   marked by a tensor ``difference``: what the model's own U-Net has too is to be added to it
control-LoRA  marked by ``lora_controlnet``: original names, where X.up X.down is to be added to the model's X.weight,
              and what is left out is the model's own

The last two need the model. In all of them the hint's network and the zero convolutions are whole.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ldm.adapters.controlnet import ControlNet, ControlNetConfig, Net
from ldm.bundle import Bundle
from ldm.models.layers import array_of, shapes
from ldm.models.unet import UNetConfig
from weights_convert import families
from weights_convert.engine import Part, Tensors, below, convert, stored_shape, to_public
from weights_convert.folder import DIFFUSION, bare_name, read_json
from weights_convert.load import located
from weights_convert.reading import Checkpoint, LazyTensor, read_component, read_file
from weights_convert.single_file import check_leftovers, unwrapped
from weights_convert.tables import controlnet as table
from weights_convert.tables.unet import XL_CONTEXT

PREFIX, CONFIG, CLASS = "control_model.", "config.json", "ControlNetModel"
SHARED = ("encoder.", "time_mlp.")  # what a ControlNet and a U-Net both have, by our names
WHOLE, DIFFERENCES, LOW_RANK = "a ControlNet", "a ControlNet of differences", "a control-LoRA"
MARKS = {"lora_controlnet": LOW_RANK, "difference": DIFFERENCES}
FILES = (".safetensors", ".pth", ".bin", ".ckpt", ".pt")
XL = "a ControlNet for SDXL"
REFUSED = (  # by a name that only they have
    (r"task_embedding|control_add_embedding\..*|spatial_ch_projs\..*", "a union ControlNet (several kinds of hint)"),
    (r"(label_emb|add_embedding)\..*", XL),
)
SAME = {"context_dim": "context", "channels": "channels", "blocks": "blocks per level"}


@dataclass(frozen=True)
class Made:
    """A tensor that is computed when it is read, in place of one in a file."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class Found(NamedTuple):
    """What a source holds, before any weight is read.

    stored      its tensors as they are there; ``part`` has the products of a control-LoRA in place of their factors
    deltas      the names of ``part`` that are to be added to a U-Net's, where it has them too
    """

    path: Path
    kind: str
    stored: Tensors
    part: Part
    deltas: frozenset[str] = frozenset()


Opened = tuple[Path, Checkpoint, Path]  # what :func:`opened` returns


def load_controlnet(source: Opened, bundle: Bundle | None, dtype: Any) -> Net:
    """Reads a ControlNet. Arguments and errors as ``weights_convert.adapters.control.load_control``."""
    found = find_controlnet(source, bundle)
    if found.kind == WHOLE:
        return Net(found.part.config, convert(found.part, dtype))
    if bundle is None:
        raise ValueError(f"{found.path}: is {found.kind}, to be added to a model's U-Net: give the model too (bundle=)")
    return Net(found.part.config, convert(with_base(found, bundle.params["unet"]), dtype))


def find_controlnet(source: Opened, bundle: Bundle | None = None) -> Found:
    """What a source holds, without reading its weights. Arguments and errors as :func:`load_controlnet`."""
    if bundle is not None:
        bundle.require("unet")
    path, checkpoint, beside = source
    held, stored = {*checkpoint.tensors, *checkpoint.extras}, own_tensors(path, checkpoint)
    kind = next((kind for mark, kind in MARKS.items() if mark in held), WHOLE)
    said = config_beside(path, stored, beside)
    try:
        tensors, deltas = products(stored) if kind == LOW_RANK else (stored, frozenset(stored))
        config = said or table.config_from_shapes(tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if config.unet.context_dim == XL_CONTEXT:
        raise refusal(path, XL)
    if bundle is not None:
        base = bundle.configs.unet
        check_family(path, config.unet, base)
        config = said or replace(config, unet=replace(config.unet, heads=base.heads, groups=base.groups))
    part = Part(f"{path}: {kind}", ControlNet, config, tensors, table.layouts(config))
    return Found(path, kind, stored, part, deltas if kind != WHOLE else frozenset())


def opened(source: str | Path) -> Opened:
    """(the file or folder, what it holds, where a config.json would be). Raises ValueError."""
    path = located(source)
    if path.is_dir() and (path / CONFIG).exists():
        return path, read_component(path, DIFFUSION), path / CONFIG
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in FILES)
        if len(files) != 1:
            raise ValueError(f"{path}: holds no {CONFIG} and {len(files)} files of weights; name the file itself")
        path = files[0]
    return path, read_file(path), path.parent / CONFIG


def config_beside(path: Path, tensors: Tensors, beside: Path) -> ControlNetConfig | None:
    """The numbers in ``config.json``; None beside a file to which it does not belong. Raises ValueError."""
    if not beside.exists() or not table.is_folder_names(tensors):
        return None
    data = read_json(beside)
    if data.get("_class_name") == CLASS:
        return table.config_from_json(data, str(beside))
    if path.is_dir():
        raise ValueError(f"{beside}: holds {bare_name(data.get('_class_name'))}, where a {CLASS} is expected")
    return None


def own_tensors(path: Path, checkpoint: Checkpoint) -> Tensors:
    """The ControlNet's tensors, without prefix, of a file that may hold the whole model too. Raises ValueError."""
    tensors = unwrapped({name: tensor for name, tensor in checkpoint.tensors.items() if name not in MARKS})
    for pattern, name in REFUSED:
        if any(re.fullmatch(pattern, key.removeprefix(PREFIX)) for key in tensors):
            raise refusal(path, name)
    family = families.identify(tensors).name
    if family != WHOLE:
        raise ValueError(f"{path}: this is {family}, where a ControlNet is expected")
    found = below(tensors, PREFIX)
    if found:
        check_leftovers(path, {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)})
    return found or tensors


def refusal(path: Path, name: str) -> ValueError:
    """The error for ControlNets of models that this program does not run."""
    return ValueError(f"{path}: is {name}, which is not read; those for Stable Diffusion 1.x and 2.x are")


def check_family(path: Path, own: UNetConfig, base: UNetConfig) -> None:
    """Raises ValueError where a ControlNet is for another U-Net than ``base``."""
    for key, what in SAME.items():
        if getattr(own, key) != getattr(base, key):
            for_own, of_base = (f"{family_of(c)} ({what} {getattr(c, key)})" for c in (own, base))
            raise ValueError(f"{path}: is a ControlNet for {for_own}, and the model is {of_base}")


def family_of(config: UNetConfig) -> str:
    """ "Stable Diffusion 1.x", without the number that sets a family without a name apart."""
    return families.unet_family(config.context_dim, config.in_channels).split(", context")[0]


# ---------------------------------------------------------------------------------------------------------------------
# Files of changes


def products(tensors: Tensors) -> tuple[Tensors, frozenset[str]]:
    """A control-LoRA's tensors with X.up X.down as X.weight, and the names of those. Raises ValueError."""
    sides = {name: m[1] for name in tensors if (m := re.fullmatch(r"(.+)\.(?:up|down)", name))}
    made = {}
    for layer in sorted(set(sides.values())):
        missing = [side for side in ("up", "down") if f"{layer}.{side}" not in tensors]
        if missing or f"{layer}.weight" in tensors:
            raise ValueError(f"{layer} has {f'no {missing[0]}' if missing else 'a weight beside its up and down'}")
        made[f"{layer}.weight"] = product(layer, tensors[f"{layer}.up"], tensors[f"{layer}.down"])
    return {name: tensor for name, tensor in tensors.items() if name not in sides} | made, frozenset(made)


def product(layer: str, up: LazyTensor, down: LazyTensor) -> Made:
    """up [o, r] or [o, r, 1, 1] times down [r, i] or [r, i, k, k], as [o, i] or [o, i, k, k]. Raises ValueError."""
    if {len(up.shape), len(down.shape)} - {2, 4} or up.shape[2:] not in ((), (1, 1)) or 0 in up.shape + down.shape:
        raise ValueError(f"{layer}: up is {up.shape} and down {down.shape}, where two matrices are expected")
    if up.shape[1] != down.shape[0]:
        raise ValueError(f"{layer}: the ranks of its matrices differ: up has {up.shape[1]}, down has {down.shape[0]}")
    (o, rank), shape = up.shape[:2], (up.shape[0], *down.shape[1:])
    matrix = lambda tensor, *to: tensor.read().astype(np.float32).reshape(to)
    return Made(shape, lambda: (matrix(up, o, rank) @ matrix(down, rank, -1)).reshape(shape))


def with_base(found: Found, base: Mapping[str, Any]) -> Part:
    """``found``'s part with its deltas added, when they are read, to a U-Net's parameters (or shapes) ``base``.

    Raises ValueError where the two have not the same layers.
    """
    part, layout = found.part, found.part.layout()
    tensors = dict(part.tensors)
    for name, spec in shapes(ControlNet, part.config).items():
        if not name.startswith(SHARED):
            continue
        theirs = jax.eval_shape(array_of, base[name]).shape if name in base else "absent"
        if theirs != spec.shape:
            raise ValueError(f"{part.what}: it changes {name} of shape {spec.shape}, which in the model is {theirs}")
        public = layout.public(name)
        if public in found.deltas:
            tensors[public] = total(public, base[name], part.tensors[public])
        elif found.kind == LOW_RANK and public not in tensors:
            tensors[public] = Made(stored_shape(public, spec.shape, {}), own(public, base[name]))
    return replace(part, tensors=tensors)


def own(public: str, leaf: Any) -> Callable[[], np.ndarray]:
    """A function that gives a parameter of ours in its public form."""
    return lambda: to_public(public, np.asarray(array_of(leaf), np.float32))


def total(public: str, leaf: Any, delta: LazyTensor | Made) -> Made:
    """A parameter of ours plus ``delta``, in its public form."""
    base = own(public, leaf)
    return Made(delta.shape, lambda: base().reshape(delta.shape) + delta.read().astype(np.float32))
