"""The loss that every way of training the U-Net shares: noise on latents, given captions.

B examples, h w Z latents, S tokens.
Source: "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv:2112.10752), eq. (3).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ldm.bundle import Configs
from ldm.conditioning import Conditioning
from ldm.hooks import Hooks
from ldm.models.autoencoder import VAE, from_uint8, reparameterize
from ldm.models.layers import bind
from ldm.models.text import TextTower
from ldm.models.unet import Features, UNet
from ldm.training import losses
from ldm.training.losses import DiffusionOptions
from ldm.training.parts import TRAINING


def latents(configs: Configs, params: Any, batch: Any, keys: Array) -> Array:
    """Latents of unit variance [B, h, w, Z] of a batch: drawn from those that are kept, or encoded here."""
    if "mean" in batch:
        mean, logvar = (batch[name].astype(jnp.float32) for name in ("mean", "logvar"))
    else:
        mean, logvar = bind(VAE, configs.vae, params["vae"]).encode(from_uint8(batch["pictures"]), TRAINING)
    noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
    return jax.lax.stop_gradient(reparameterize(mean, logvar, noise) * configs.vae.scale)


def denoise(
    configs: Configs,
    params: Any,
    batch: Any,
    keys: Array,
    drop: float,
    options: DiffusionOptions,
    hooks: Hooks = TRAINING,
    control: Callable[[Array, Array, Conditioning], Features] | None = None,
) -> tuple[Array, dict]:
    """Eq. (3) for a batch: latents or pictures, and ids [B, S]. keys [B].

    params   whole parameters of unet, vae and text, and "empty" [S], the ids of the empty caption
    drop     the fraction of captions in whose place the empty one stands
    control  (x, t, what the U-Net is told) -> what is added to its encoder's features
    """
    parts = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    x0 = latents(configs, params, batch, parts[:, 0])
    ids = losses.drop_captions(parts[:, 1], batch["ids"], params["empty"], drop)
    cond = Conditioning(bind(TextTower, configs.text, params["text"])(ids).context)
    model = bind(UNet, configs.unet, params["unet"])
    steer = (lambda x, t: None) if control is None else (lambda x, t: control(x, t, cond))
    network = lambda x, t: model(x, t, cond, hooks=hooks, control=steer(x, t))
    return losses.denoising_loss(network, configs.schedule, x0, parts[:, 2], options)
