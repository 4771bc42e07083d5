"""Public PyTorch checkpoints read into this project's models, without PyTorch."""

from ldm.bundle import save
from weights_convert.adapters.control import load_control
from weights_convert.adapters.controlnet_export import export_control
from weights_convert.adapters.embedding import load_embedding
from weights_convert.adapters.ip_adapter import load_ip_adapter
from weights_convert.adapters.ip_adapter_export import export_ip_adapter
from weights_convert.adapters.lora import load_lora
from weights_convert.load import load

__all__ = [
    "export_control",
    "export_ip_adapter",
    "load",
    "load_control",
    "load_embedding",
    "load_ip_adapter",
    "load_lora",
    "save",
]
