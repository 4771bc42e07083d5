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
    """Writes a ControlNet; :func:`net_of` and ``weights_convert.load_control`` read it. Dtypes are kept."""
    arrays = {name: np.asarray(array, order="C") for name, array in net.params.items()}
    made = safetensors.numpy.save(arrays, {KEY: json.dumps(asdict(net.config))})
    write_whole(Path(path), lambda file: file.write(made))


def net_of(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Net:
    """The ControlNet whose arrays and metadata :func:`save_net` wrote. Raises ValueError for what does not fit."""
    try:
        told: dict[str, Any] = json.loads(metadata[KEY])
        config = rebuilt(ControlNetConfig, told | {"unet": rebuilt(UNetConfig, told["unet"])})
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"not a ControlNet that this version understands ({error})") from None
    wanted = {name: spec.shape for name, spec in shapes(ControlNet, config).items()}
    odd = sorted(name for name in wanted.keys() | arrays.keys() if wanted.get(name) != np.shape(arrays.get(name, 0.0)))
    if odd:
        raise ValueError(f"{len(odd)} tensors do not fit its numbers, such as {odd[0]}")
    return Net(config, dict(arrays))


def read_net(path: str | Path) -> Net:
    """A file that :func:`save_net` wrote. Raises ValueError."""
    path = Path(path)
    try:
        with safetensors.safe_open(path, "np") as file:
            return net_of({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
