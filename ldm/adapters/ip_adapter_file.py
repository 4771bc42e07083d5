"""An IP-Adapter in a file of this project's own: safetensors with our names, its numbers as JSON in the metadata."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from ldm.adapters.image_prompt import Adapter
from ldm.adapters.ip_adapter import IPAdapter, IPAdapterConfig
from ldm.bundle import Bundle, rebuilt
from ldm.files import write_whole
from ldm.models.layers import shapes
from ldm.models.unet import UNetConfig

KEY = "ldm.ip_adapter"  # of the metadata


def save_adapter(adapter: Adapter, path: str | Path) -> None:
    """Writes an adapter without its tower; :func:`read_adapter` and ``weights_convert.load_ip_adapter`` read it.

    Raises ValueError for one with a LoRA, of which the file would know nothing.
    """
    if adapter.lora is not None:
        raise ValueError("it has a LoRA, which this file would lose: write it by weights_convert.export_ip_adapter")
    arrays = {name: np.asarray(array, order="C") for name, array in adapter.params.items()}
    made = safetensors.numpy.save(arrays, {KEY: json.dumps(asdict(adapter.config))})
    write_whole(Path(path), lambda file: file.write(made))


def config_of(stored: Mapping[str, Any], metadata: Mapping[str, str]) -> IPAdapterConfig:
    """The numbers of an adapter whose arrays (of which shapes are asked) and metadata :func:`save_adapter` wrote.

    Raises ValueError for what does not fit.
    """
    try:
        told: dict[str, Any] = json.loads(metadata[KEY])
        config = rebuilt(IPAdapterConfig, told | {"unet": rebuilt(UNetConfig, told["unet"])})
        config = replace(config, kind=told["kind"])  # which `rebuilt` takes for the name of a class
        wanted = {name: spec.shape for name, spec in shapes(IPAdapter, config).items()}
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"not an IP-Adapter that this version understands ({error})") from None
    found = {name: tuple(array.shape) for name, array in stored.items()}
    odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if odd:
        raise ValueError(f"{len(odd)} tensors do not fit its numbers, such as {odd[0]}")
    return config


def read_adapter(path: str | Path, bundle: Bundle) -> Adapter:
    """A file that :func:`save_adapter` wrote, with the image tower of a bundle. Raises ValueError."""
    path = Path(path)
    try:
        with safetensors.safe_open(path, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            config = config_of(arrays, file.metadata() or {})
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return with_tower(Adapter(config, arrays), bundle)


def with_tower(adapter: Adapter, bundle: Bundle) -> Adapter:
    """An adapter with a bundle's image tower, where it looks at pictures. Raises ValueError."""
    if adapter.config.kind == "face":
        return adapter
    bundle.require("image")
    return Adapter(adapter.config, adapter.params, bundle.configs.image, bundle.params["image"])
