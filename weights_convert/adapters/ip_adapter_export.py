"""IP-Adapters in the public .safetensors layout, which the PyTorch tools load."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ldm.adapters.image_prompt import Adapter
from ldm.adapters.ip_adapter import IPAdapter
from ldm.adapters.lora import Lora, matrices
from ldm.files import write_whole
from ldm.models.layers import shapes
from ldm.models.unet import UNetConfig
from weights_convert.engine import bare, to_public
from weights_convert.tables import ip_adapter as table

LAYOUTS = ("original",)  # there is but one


def export_ip_adapter(adapter: Adapter, path: str | Path) -> None:
    """Writes an adapter, without its tower, in the dtypes of its parameters; a LoRA of it as FaceID files have theirs.

    Raises ValueError for a LoRA that is not of attentions, or not of low rank.
    """
    named = kernels(adapter) | ({} if adapter.lora is None else factors(adapter.lora, adapter.config.unet))
    tensors = {name: np.ascontiguousarray(array) for name, array in named.items()}
    write_whole(Path(path), lambda file: file.write(save(tensors, {"format": "pt"})))


def kernels(adapter: Adapter) -> dict[str, np.ndarray]:
    """The adapter's own tensors by their public names; those that are fused there are put together."""
    layout, parts = table.public(adapter.config), {}
    for name in shapes(IPAdapter, adapter.config):
        public = layout.public(name)
        parts.setdefault(bare(public), {})[public] = to_public(public, np.asarray(adapter.params[name]))
    joined = {name: np.concatenate([own[key] for key in sorted(own)]) for name, own in parts.items()}
    return {name: array[None] if name == table.LATENTS else array for name, array in joined.items()}


def factors(lora: Lora, unet: UNetConfig) -> dict[str, np.ndarray]:
    """The tensors of a LoRA by their public names. These files know no alpha: up is multiplied by the factor."""
    numbers, tensors = {site: number for number, site in enumerate(table.attentions(unet))}, {}
    for part, changes in lora.items():
        for name, change in changes.items():
            site, _, role = name.removesuffix(".kernel").rpartition(".")
            found = matrices(change)
            if part != "unet" or site not in numbers or role not in table.ROLES or "magnitude" in found:
                raise ValueError(f"IP-Adapters' files hold plain LoRAs of attentions, and no change of {part} {name}")
            layer = f"{table.KERNELS}{numbers[site]}.to_{role}_lora"
            tensors[f"{layer}.down.weight"] = found["down"]
            tensors[f"{layer}.up.weight"] = found["up"] * np.float32(change.factor)
    return tensors
