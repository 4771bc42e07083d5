"""What training shows of itself: reconstructions of the autoencoder, pictures of the U-Net.

N pictures, H W picture, h w Z latents, S tokens.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ldm.adapters.controlnet import ControlNet, ControlNetConfig, Net
from ldm.adapters.image_prompt import Adapter, said_of_nothing
from ldm.adapters.ip_adapter import IPAdapter, IPAdapterConfig, sites, with_pairs
from ldm.bundle import Configs, module
from ldm.conditioning import Conditioning
from ldm.denoiser import from_network
from ldm.guidance import cfg, paired
from ldm.hooks import Hooks
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
    configs: Configs,
    params: Any,
    ids: np.ndarray,
    empty: np.ndarray,
    size: tuple[int, int],
    first: int = 0,
    net: Net | None = None,
    hint: np.ndarray | None = None,
    prompt: tuple[Adapter, np.ndarray] | None = None,
) -> np.ndarray:
    """Pictures uint8 [N, H, W, 3] of captions, ids [N, S], by 20 steps of guided DDIM.

    Picture i has the noise of number ``first`` + i: the same each time. With ``net`` and its ``hint``, uint8
    [N, H, W, 3], both halves of the guided batch are controlled. With ``prompt``, an IP-Adapter and what its tower sees
    in N pictures, those are image prompts beside the captions.
    """
    plan = make_plan(configs.schedule, SAMPLER, SPACING, STEPS)
    parts = {part: params[part] for part in ("unet", "vae", "text")}
    side = tuple(length // configs.vae.factor for length in size[::-1])
    both = np.concatenate([np.broadcast_to(empty, ids.shape), ids])
    seen = None if net is None else (net.params, np.concatenate([hint, hint]).astype(np.float32) / 255)
    shown = (
        None if prompt is None else (prompt[0].params, np.asarray(prompt[1], np.float32), said_of_nothing(prompt[0]))
    )
    own = None if net is None else net.config, None if prompt is None else prompt[0].config
    return np.asarray(_draw(configs, own, parts, seen, shown, both, plan, side, jnp.int32(first)))


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(config: VAEConfig, params: Params, pictures: Array) -> tuple[Array, Array]:
    vae = bind(VAE, config, params)
    mean, _ = vae.encode(from_uint8(pictures))
    return to_uint8(vae.decode(mean)), mean


@functools.partial(jax.jit, static_argnums=(0, 1, 7))
def _draw(
    configs: Configs,
    own: tuple[ControlNetConfig | None, IPAdapterConfig | None],
    params: Any,
    seen: Any,
    shown: Any,
    ids: Array,
    plan: Plan,
    side: tuple[int, int],
    first: Array,
) -> Array:
    unet, cond = module(configs, params, "unet"), Conditioning(module(configs, params, "text")(ids).context)
    count, shape = len(ids) // 2, (*side, configs.vae.latent_channels)
    keys, (net, adapter) = image_keys(jnp.uint32(SEED), first + jnp.arange(count)), own
    hooks = Hooks()
    if adapter is not None:
        image = bind(IPAdapter, adapter, shown[0])
        said = image.see(shown[1])
        nothing = jnp.broadcast_to(shown[2], said.shape).astype(said.dtype)
        everywhere = dict.fromkeys(sites(adapter.unet), 1.0)
        hooks = with_pairs(image.pairs(jnp.concatenate([nothing, said])), everywhere)

    def network(x: Array, t: Array) -> Array:
        control = None if net is None else bind(ControlNet, net, seen[0])(x, t, cond, seen[1])
        return unet(x, t, cond, control=control, hooks=hooks)

    denoise = cfg(paired(from_network(network, configs.schedule)), jnp.float32(GUIDANCE))
    start = plan.scale * unit_noise(keys, START, shape)
    x = sample(SAMPLERS[SAMPLER], denoise, start, plan, noise_per_step(keys, shape))
    return to_uint8(module(configs, params, "vae").decode(x / configs.vae.scale))
