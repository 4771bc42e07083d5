"""Public PyTorch checkpoints read into this project's models, without PyTorch."""

from ldm.bundle import save
from weights_convert.load import load

__all__ = ["load", "save"]
