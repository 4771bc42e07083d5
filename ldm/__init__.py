"""Latent diffusion from scratch in JAX: models, samplers, guidance, and one jitted program from text to picture."""

from ldm.bundle import Bundle, load, save
from ldm.generate import decode, generate

__all__ = ["Bundle", "decode", "generate", "load", "save"]
