"""``load_ip_adapter``: a public IP-Adapter, or one in a file of ours, with the image tower that it was trained beside.

Read are the forms base, plus, plus-face (a plus trained on faces), full-face and FaceID, .bin and .safetensors, for
every family whose U-Net is known. Of a FaceID file the LoRA is :attr:`Adapter.lora`, for ``ldm.with_lora``.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax

import ldm.bundle
from ldm.adapters.image_prompt import Adapter, check_tower, check_unet
from ldm.adapters.ip_adapter import IPAdapter
from ldm.adapters.ip_adapter_file import KEY, config_of
from ldm.adapters.lora import Change, Lora
from ldm.bundle import Bundle, as_dtype
from ldm.models.layers import shapes
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vision import VisionConfig
from weights_convert import families
from weights_convert.adapters.forms import change_of
from weights_convert.adapters.inspection import MODELS
from weights_convert.engine import Part, Tensors, convert
from weights_convert.load import find, load, located
from weights_convert.reading import Checkpoint, read_file
from weights_convert.single_file import unwrapped
from weights_convert.tables import ip_adapter as table

FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
BESIDE = tuple(f"{place}image_encoder" for place in ("", "../", "../models/", "../sdxl_models/"))
NUMBERS = "Kernels have odd numbers, 1, 3, and so on, of encoder, decoder and middle in turn."
REFUSED = {
    table.FACE_ID_PLUS: "which sees a face recogniser's vector and a picture at once",
    table.INSTANT_ID: "whose resampler reads a face recogniser's vector",
}


class Found(NamedTuple):
    """What a public file holds, before any weight is read; ``lora`` are the tensors of FaceID's."""

    path: Path
    part: Part
    lora: Tensors


def load_ip_adapter(
    source: str | Path, bundle: Bundle | None = None, tower: str | Path | None = None, dtype: Any = "float32"
) -> Adapter:
    """Reads what ``ldm.ImagePrompt`` looks through: a file, a folder that holds one, or a hub id.

    bundle  the model that it is for. None: one of the families that are known by the width of their context
    tower   where its image tower is: whatever ``weights_convert.load`` reads. None: the folder ``image_encoder``
            beside or above the file, as the public repository has it, else the bundle's own, if it fits. FaceID looks
            at no picture, and has none
    dtype   of the adapter and of a tower that is read: "float32", "bfloat16" or "float16"

    Raises ValueError in one sentence: for another family's, another kind, tensors that do not fit, and where no tower
    that fits is found.
    """
    path, adapter = load_alone(source, bundle, dtype)
    if adapter.config.kind == "face":
        return adapter
    vision, params = tower_for(path, adapter, tower, bundle, dtype)
    return replace(adapter, vision=vision, tower=params)


def load_alone(source: str | Path, bundle: Bundle | None = None, dtype: Any = "float32") -> tuple[Path, Adapter]:
    """(the file, the adapter in it without its tower). Arguments and errors as :func:`load_ip_adapter`."""
    kind = as_dtype(dtype)
    path = file_of(source)
    checkpoint = read_file(path)
    if bundle is not None:
        bundle.require("unet")
    unet = None if bundle is None else bundle.configs.unet
    if KEY not in checkpoint.metadata:
        found = find_ip_adapter(path, checkpoint, unet)
        own = found.part.config.unet
        return path, Adapter(found.part.config, convert(found.part, dtype), lora=lora_of(path, found.lora, own))
    try:
        config = config_of(checkpoint.tensors, checkpoint.metadata)
        arrays = {name: tensor.read().astype(kind) for name, tensor in checkpoint.tensors.items()}
        if unet is not None:
            check_unet(config, unet)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return path, Adapter(config, jax.device_put(arrays))


def file_of(source: str | Path) -> Path:
    """The file of a source. Raises ValueError for a folder that holds none or several."""
    path = located(source)
    if not path.is_dir():
        return path
    files = sorted(file for file in path.iterdir() if file.suffix in FILES)
    if len(files) != 1:
        raise ValueError(f"{path}: holds {len(files)} files of weights; name that of the IP-Adapter itself")
    return files[0]


def is_ip_adapter(checkpoint: Checkpoint) -> bool:
    """Whether a file is one, of ours or of the public's, of a kind that is read or not."""
    parts = (table.PROJECTION, table.KERNELS)
    return KEY in checkpoint.metadata or any(name.startswith(parts) for name in unwrapped(checkpoint.tensors))


def tensors_of(checkpoint: Checkpoint) -> tuple[Tensors, Tensors]:
    """(the adapter's own tensors, those of its LoRA)."""
    tensors = table.without_batch(unwrapped(checkpoint.tensors))
    lora = {name: tensor for name, tensor in tensors.items() if re.fullmatch(table.LORA, name)}
    return {name: tensor for name, tensor in tensors.items() if name not in lora}, lora


def find_ip_adapter(path: Path, checkpoint: Checkpoint, unet: UNetConfig | None) -> Found:
    """What a public file holds, without reading its weights. Errors as :func:`load_ip_adapter`."""
    if not is_ip_adapter(checkpoint):
        family = families.identify(unwrapped(checkpoint.tensors)).name
        raise ValueError(f"{path}: this is {family}, where an IP-Adapter is expected")
    tensors, lora = tensors_of(checkpoint)
    try:
        kind = table.kind_of(tensors)
        if kind in REFUSED:
            raise ValueError(f"is of the kind {kind}, {REFUSED[kind]}, and is not read; base, plus, full, FaceID are")
        config = table.config_from_shapes(tensors, unet_for(table.context_of(tensors), unet))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    part = Part(f"{path}: an IP-Adapter", IPAdapter, config, tensors, [table.public(config)], NUMBERS)
    return Found(path, part, lora)


def unet_for(context: int, unet: UNetConfig | None) -> UNetConfig:
    """The U-Net that an adapter with tokens ``context`` wide is for: the given one, or a known family's. ValueError."""
    known = next((c.unet for c in MODELS.values() if c.unet.context_dim == context), None)
    if unet is None and known is None:
        raise ValueError(f"its tokens are {context} wide, as in no family that is known here: give its model (bundle=)")
    if unet is not None and unet.context_dim != context:
        names = (families.unet_family(width, 4) for width in (context, unet.context_dim))
        raise ValueError("is an IP-Adapter for {}, and the model is {}".format(*names))
    return known if unet is None else unet


# ---------------------------------------------------------------------------------------------------------------------
# What comes with it


def tower_for(
    path: Path, adapter: Adapter, tower: str | Path | None, bundle: Bundle | None, dtype: Any
) -> tuple[VisionConfig, Mapping[str, Any]]:
    """The image tower of an adapter in the file ``path``: its numbers and parameters. Raises ValueError."""
    if tower is not None:
        return image_part(tower, adapter, dtype)
    unfit = []
    for place in (path.parent / name for name in BESIDE):
        if place.is_dir():
            vision = vision_of(place)
            try:
                check_tower(adapter.config, vision)
            except ValueError as error:
                unfit.append(f"{place}: {error}")
            else:
                return image_part(place, adapter, dtype)
    if bundle is not None and "image" in bundle.params:
        try:
            check_tower(adapter.config, bundle.configs.image)
            return bundle.configs.image, bundle.params["image"]
        except ValueError as error:
            unfit.append(f"the model's own image tower: {error}")
    why = "there is no folder image_encoder beside it: give the image tower that it was trained beside"
    raise ValueError(f"{path}: {unfit[0] if unfit else why} (tower=, on the command line --image-encoder)")


def vision_of(place: Path) -> VisionConfig | None:
    """The numbers of an image tower, or None where there is none. Raises ValueError for what cannot be read."""
    return (ldm.bundle.load(place) if ldm.bundle.is_bundle(place) else find(place).bundle).configs.image


def image_part(source: str | Path, adapter: Adapter, dtype: Any) -> tuple[VisionConfig, Mapping[str, Any]]:
    """The image tower of a source. Raises ValueError unless there is one that fits."""
    found = load(source, dtype)
    try:
        check_tower(adapter.config, found.configs.image)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return found.configs.image, found.params["image"]


def lora_of(path: Path, tensors: Tensors, unet: UNetConfig) -> Lora | None:
    """A FaceID file's LoRA: of the four kernels of every attention, with the factor 1; None where there is none.

    Raises ValueError where not all of them are there, and for matrices that do not fit.
    """
    if not tensors:
        return None
    wanted, found, missing = shapes(UNet, unet), {}, set(tensors)
    for number, site in enumerate(table.attentions(unet)):
        for role in table.ROLES:
            layer, kernel = f"{table.KERNELS}{number}.to_{role}_lora", f"{site}.{role}.kernel"
            names = {side: f"{layer}.{side}.weight" for side in ("down", "up")}
            missing ^= set(names.values())
            if set(names.values()) <= set(tensors):
                found[kernel] = change_at(f"{path}: {layer}", {s: tensors[n] for s, n in names.items()}, wanted[kernel])
    if missing:
        raise ValueError(f"{path}: its LoRA is not that of the model: {len(missing)} tensors, such as {min(missing)}")
    return {"unet": found}


def change_at(where: str, tensors: Tensors, kernel: jax.ShapeDtypeStruct) -> Change:
    """The change of one kernel. Raises ValueError."""
    try:
        return change_of({side: tensor.read() for side, tensor in tensors.items()}, kernel.shape, None, True)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
