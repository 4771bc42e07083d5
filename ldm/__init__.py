"""Latent diffusion from scratch in JAX: models, samplers, guidance, and one jitted program from text to picture."""
