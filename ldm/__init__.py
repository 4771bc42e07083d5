"""Latent diffusion from scratch in JAX: models, samplers, guidance, jitted whole from text to picture."""

from ldm.acceleration.shortcuts import Shortcuts
from ldm.adapters.control import Control
from ldm.adapters.image_prompt import ImagePrompt
from ldm.adapters.lora import with_lora, without_lora
from ldm.adapters.textual_inversion import with_word
from ldm.bundle import Bundle, load, save
from ldm.devices import on_devices
from ldm.generate import decode, encode, encode_prompts, generate
from ldm.guidance import Guidance

__all__ = [
    "Bundle",
    "Control",
    "Guidance",
    "ImagePrompt",
    "Shortcuts",
    "decode",
    "encode",
    "encode_prompts",
    "generate",
    "load",
    "on_devices",
    "save",
    "with_lora",
    "with_word",
    "without_lora",
]
