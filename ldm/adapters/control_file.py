"""A ControlNet in a file of this project's own: safetensors with our names, and its numbers as JSON in the metadata."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from ldm.adapters.controlnet import ControlNet, ControlNetConfig, Net
from ldm.bundle import rebuilt
from ldm.files import write_whole
from ldm.models.layers import shapes
from ldm.models.unet import UNetConfig

KEY = "ldm.controlnet"  # of the metadata


def save_net(net: Net, path: str | Path) -> None:
    """Writes a ControlNet; :func:`read_net` and ``weights_convert.load_control`` read it. Dtypes are kept."""
    arrays = {name: np.asarray(array, order="C") for name, array in net.params.items()}
    made = safetensors.numpy.save(arrays, {KEY: json.dumps(asdict(net.config))})
    write_whole(Path(path), lambda file: file.write(made))


def config_of(stored: Mapping[str, Any], metadata: Mapping[str, str]) -> ControlNetConfig:
    """The numbers of a ControlNet whose arrays (of which shapes are asked) and metadata :func:`save_net` wrote.

    Raises ValueError for what does not fit.
    """
    try:
        told: dict[str, Any] = json.loads(metadata[KEY])
        config = rebuilt(ControlNetConfig, told | {"unet": rebuilt(UNetConfig, told["unet"])})
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"not a ControlNet that this version understands ({error})") from None
    wanted = {name: spec.shape for name, spec in shapes(ControlNet, config).items()}
    found = {name: tuple(array.shape) for name, array in stored.items()}
    odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if odd:
        raise ValueError(f"{len(odd)} tensors do not fit its numbers, such as {odd[0]}")
    return config


def read_net(path: str | Path) -> Net:
    """A file that :func:`save_net` wrote. Raises ValueError."""
    path = Path(path)
    try:
        with safetensors.safe_open(path, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Net(config_of(arrays, file.metadata() or {}), arrays)
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
