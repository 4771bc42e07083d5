"""``load_control``: a ControlNet or a T2I-Adapter of any public layout, or a ControlNet in a file of ours."""

from pathlib import Path
from typing import Any

import jax

from ldm.adapters.control_file import KEY, config_of
from ldm.adapters.controlnet import ControlNetConfig, Net
from ldm.adapters.t2i_adapter import T2IAdapterConfig, check_fit
from ldm.bundle import Bundle, as_dtype
from weights_convert import families
from weights_convert.adapters.controlnet import Opened, check_family, load_controlnet, opened
from weights_convert.adapters.t2i_adapter import t2i_part
from weights_convert.engine import convert
from weights_convert.folder import read_json
from weights_convert.reading import Checkpoint
from weights_convert.single_file import unwrapped
from weights_convert.tables import t2i_adapter

T2I = "a T2I-Adapter"


def load_control(source: str | Path, bundle: Bundle | None = None, dtype: Any = "float32") -> Net:
    """Reads what ``ldm.Control`` steers by: a file, a folder of diffusers, or a hub id.

    bundle      the model that it is for. ControlNets that are kept as differences, and control-LoRAs, are added to its
                U-Net; of others the family is compared, and what single files do not say is taken from it
    dtype       "float32", "bfloat16" or "float16"

    A diffusers folder says whether a ControlNet is pooled (v1.1 "shuffle" is); single files do not, and are taken for
    nets that are not: ``dataclasses.replace(net, config=dataclasses.replace(net.config, pooled=True))`` makes it so.

    Raises ValueError in one sentence: for another family's, another kind of adapter, tensors that do not fit.
    """
    kind = as_dtype(dtype)
    path, checkpoint, beside = opened(source)
    if KEY in checkpoint.metadata:
        config = own_config(path, checkpoint)
        if bundle is not None:
            bundle.require("unet")
            check_family(path, config.unet, bundle.configs.unet)
        return Net(config, jax.device_put({name: t.read().astype(kind) for name, t in checkpoint.tensors.items()}))
    if is_t2i_adapter(checkpoint):
        return t2i_adapter_of((path, checkpoint, beside), bundle, dtype)
    return load_controlnet((path, checkpoint, beside), bundle, dtype)


def is_t2i_adapter(checkpoint: Checkpoint) -> bool:
    """Whether the names are a T2I-Adapter's."""
    return families.identify(unwrapped(checkpoint.tensors)).name == T2I


def own_config(path: Path, checkpoint: Checkpoint) -> ControlNetConfig:
    """The numbers in a file that ``ldm.adapters.control_file.save_net`` wrote. Raises ValueError."""
    try:
        return config_of(checkpoint.tensors, checkpoint.metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def t2i_config(source: Opened) -> T2IAdapterConfig | None:
    """The numbers in a folder's ``config.json``; None for a file, whose shapes say them. Raises ValueError."""
    path, _, beside = source
    return t2i_adapter.config_from_json(read_json(beside), str(beside)) if path.is_dir() else None


def t2i_adapter_of(source: Opened, bundle: Bundle | None, dtype: Any) -> Net:
    """A T2I-Adapter. Raises ValueError."""
    path, checkpoint, _ = source
    part = t2i_part(f"{path}: {T2I}", unwrapped(checkpoint.tensors), t2i_config(source))
    if bundle is not None:
        bundle.require("unet")
        try:
            check_fit(part.config, bundle.configs.unet)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return Net(part.config, convert(part, dtype))
