"""Latent diffusion from scratch in JAX: models, samplers, guidance, and one jitted program from text to picture."""

from ldm.bundle import Bundle, load, save
from ldm.generate import decode, encode, encode_prompts, generate
from ldm.guidance import Guidance

__all__ = ["Bundle", "Guidance", "decode", "encode", "encode_prompts", "generate", "load", "save"]
