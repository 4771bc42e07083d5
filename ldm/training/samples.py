"""What training shows of itself: reconstructions of the autoencoder, pictures of the U-Net.

N pictures, H W picture, h w Z latents, S tokens.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ldm.bundle import Configs, module
from ldm.conditioning import Conditioning
from ldm.denoiser import from_network
from ldm.guidance import cfg, paired
from ldm.models.autoencoder import VAE, VAEConfig, from_uint8, to_uint8
from ldm.models.layers import Params, bind
from ldm.samplers import SAMPLERS, START, Plan, image_keys, make_plan, noise_per_step, sample, unit_noise

AT_ONCE = 32
SAMPLER, SPACING, STEPS, GUIDANCE, SEED = "ddim", "trailing", 20, 3.0, 0


def reconstruct(config: VAEConfig, params: Params, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [N, H, W, 3] through the autoencoder and back; and the standard deviation of their latents, []."""
    chunks = [pictures[i : i + AT_ONCE] for i in range(0, len(pictures), AT_ONCE)]
    done = [jax.tree.map(np.asarray, _reconstruct(config, params, chunk)) for chunk in chunks]
    return np.concatenate([seen for seen, _ in done]), np.concatenate([z for _, z in done]).std()


def draw(
    configs: Configs, params: Any, ids: np.ndarray, empty: np.ndarray, size: tuple[int, int], first: int = 0
) -> np.ndarray:
    """Pictures uint8 [N, H, W, 3] of captions, ids [N, S], by 20 steps of guided DDIM.

    Picture i has the noise of number ``first`` + i: the same each time.
    """
    plan = make_plan(configs.schedule, SAMPLER, SPACING, STEPS)
    parts = {part: params[part] for part in ("unet", "vae", "text")}
    side = tuple(length // configs.vae.factor for length in size[::-1])
    both = np.concatenate([np.broadcast_to(empty, ids.shape), ids])
    return np.asarray(_draw(configs, parts, both, plan, side, jnp.int32(first)))


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(config: VAEConfig, params: Params, pictures: Array) -> tuple[Array, Array]:
    vae = bind(VAE, config, params)
    mean, _ = vae.encode(from_uint8(pictures))
    return to_uint8(vae.decode(mean)), mean


@functools.partial(jax.jit, static_argnums=(0, 4))
def _draw(configs: Configs, params: Any, ids: Array, plan: Plan, side: tuple[int, int], first: Array) -> Array:
    unet, cond = module(configs, params, "unet"), Conditioning(module(configs, params, "text")(ids).context)
    count, shape = len(ids) // 2, (*side, configs.vae.latent_channels)
    keys = image_keys(jnp.uint32(SEED), first + jnp.arange(count))
    denoise = cfg(paired(from_network(lambda x, t: unet(x, t, cond), configs.schedule)), jnp.float32(GUIDANCE))
    start = plan.scale * unit_noise(keys, START, shape)
    x = sample(SAMPLERS[SAMPLER], denoise, start, plan, noise_per_step(keys, shape))
    return to_uint8(module(configs, params, "vae").decode(x / configs.vae.scale))
