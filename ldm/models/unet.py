"""The U-Net with cross-attention: the network of Stable Diffusion 1.x, 2.x and, with other numbers, SDXL.

Shapes: B batch, H W latent size, C channels, L = H * W tokens, S text tokens, E context width, T width of the time
embedding (4 * channels[0]).

Sources: "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv:2112.10752), section 3.3 and appendix
E.2.1; SDXL (arXiv:2307.01952), section 2, for ``depth`` per level and the added condition. Pooling is a strided
convolution and unpooling is nearest upsampling with a 3x3 convolution.

    x, t, context -> encoder -> skips, middle  (+ control) -> decoder -> eps | v | x0

The encoder, with the middle block, is a module of its own: its output is what a ControlNet adds to.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from ldm.conditioning import Conditioning
from ldm.hooks import Hooks
from ldm.models.layers import Attention, Keys, ResBlock, conv, group_norm, layer_norm, linear, upsample_nearest

RES_EPS, TRANSFORMER_EPS = 1e-5, 1e-6
WIDE, AT_ONCE = 1 << 24, 1024  # numbers inside a feed-forward layer that are too many for a cache; tokens that are not


@dataclass(frozen=True)
class UNetConfig:
    """The numbers of a U-Net; the defaults are Stable Diffusion 1.x. One entry per level, finest first."""

    in_channels: int = 4  # 9: inpainting (latent, mask, masked latent); 8: instruct-pix2pix, Zero-1-to-3
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2  # residual blocks per level of the encoder; the decoder has one more
    depth: tuple[int, ...] = (1, 1, 1, 0)  # transformer blocks after each residual block; 0: no attention
    middle_depth: int = 1
    heads: tuple[int, ...] = (8, 8, 8, 8)
    context_dim: int = 768
    pooled_dim: int = 0  # width of Conditioning.pooled; SDXL 2816, 0: none
    guidance_dim: int = 0  # width in which Conditioning.guidance is embedded; latent consistency models 256, 0: none
    groups: int = 32


class Features(NamedTuple):
    """What the encoder hands on: one skip per block, finest first, and the middle. ``control=`` has this shape."""

    skips: tuple[Array, ...]
    middle: Array


def timestep_embedding(t: Array, width: int) -> Array:
    """[B] timesteps -> [B, width] float32: cosines, then sines, of t at geometric frequencies 10000^(-k/h), k = 0..h-1.

    DDPM (arXiv:2006.11239) takes it from "Attention Is All You Need", section 3.5.
    """
    frequencies = jnp.exp(-math.log(10_000.0) * jnp.arange(width // 2, dtype=jnp.float32) / (width // 2))
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def guidance_embedding(scale: Array, width: int) -> Array:
    """[B] guidance scales -> [B, width] float32: sines, then cosines, of 1000 w, w = scale - 1, at 10000^(-k/(h-1)).

    What latent consistency models (arXiv:2310.04378, section 4.2) are told instead of being guided.
    """
    h = width // 2
    frequencies = jnp.exp(-math.log(10_000.0) * jnp.arange(h, dtype=jnp.float32) / (h - 1))
    angles = 1000 * (scale.astype(jnp.float32)[:, None] - 1) * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class MLP(nnx.Module):
    """Two linear layers with SiLU between: [B, c_in] -> [B, c_out]."""

    def __init__(self, c_in: int, c_out: int, keys: Keys):
        self.fc1, self.fc2 = linear(c_in, c_out, keys), linear(c_out, c_out, keys)

    def __call__(self, x: Array) -> Array:
        return self.fc2(nnx.silu(self.fc1(x)))


def embed_time(mlp: MLP, t: Array, batch: int, width: int, dtype, added: Array | float = 0.0) -> Array:
    """Timesteps [] or [B] -> time embedding [B, 4 * width]; sines and cosines in float32, the MLP in ``dtype``.

    added [B, width]: to the sines and cosines."""
    return mlp(timestep_embedding(jnp.broadcast_to(t, (batch,)), width).astype(dtype) + added)


class GEGLU(nnx.Module):
    """Feed-forward layer value * gelu(gate), four times as wide inside (arXiv:2002.05202); the exact gelu.

    What is inside of it at a large picture's finest level is more than a CPU's cache holds: there it is computed for
    ``AT_ONCE`` tokens after another, which saves memory too.
    """

    def __init__(self, width: int, keys: Keys):
        self.proj_in, self.proj_out = linear(width, 8 * width, keys), linear(4 * width, width, keys)

    def __call__(self, x: Array) -> Array:
        if jax.default_backend() != "cpu" or 8 * x.size < WIDE or (x.size // x.shape[-1]) % AT_ONCE:
            return self.layer(x)
        return lax.map(self.layer, x.reshape(-1, AT_ONCE, x.shape[-1])).reshape(x.shape)

    def layer(self, x: Array) -> Array:
        """For as many tokens as are given."""
        value, gate = jnp.split(self.proj_in(x), 2, axis=-1)
        return self.proj_out(value * nnx.gelu(gate, approximate=False))


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention to the context, feed-forward; each after a norm and around a shortcut."""

    def __init__(self, width: int, heads: int, context_dim: int, keys: Keys, site: str):
        self.site = site
        self.norm1, self.norm2, self.norm3 = (layer_norm(width, keys) for _ in range(3))
        self.self_attn = Attention(width, width, heads, keys, f"{site}.self_attn")
        self.cross_attn = Attention(width, context_dim, heads, keys, f"{site}.cross_attn")
        self.ff = GEGLU(width, keys)

    def __call__(self, h: Array, context: Array, hooks: Hooks) -> Array:
        h = hooks.tap(f"{self.site}.self_attn", h + self.self_attn(self.norm1(h), None, hooks))
        h = hooks.tap(f"{self.site}.cross_attn", h + self.cross_attn(self.norm2(h), context, hooks))
        return hooks.tap(f"{self.site}.ff", h + self.ff(self.norm3(h)))


class Transformer(nnx.Module):
    """Transformer blocks over the pixels of a feature map: [B, H, W, C] -> the same."""

    def __init__(self, width: int, heads: int, depth: int, config: UNetConfig, keys: Keys, site: str):
        self.norm = group_norm(width, config.groups, TRANSFORMER_EPS, keys)
        self.proj_in, self.proj_out = linear(width, width, keys), linear(width, width, keys)
        make = lambda k: TransformerBlock(width, heads, config.context_dim, keys, f"{site}.blocks.{k}")
        self.blocks = nnx.List([make(k) for k in range(depth)])

    def __call__(self, x: Array, context: Array, hooks: Hooks) -> Array:
        B, H, W, C = x.shape
        h = self.proj_in(self.norm(x)).reshape(B, H * W, C)
        for block in self.blocks:
            h = block(h, context, hooks)
        return x + self.proj_out(h).reshape(B, H, W, C)


class Level(nnx.Module):
    """The blocks of one resolution: ``len(c_ins)`` residual blocks, each followed by a transformer if depth > 0."""

    def __init__(self, c_ins: list[int], level: int, config: UNetConfig, keys: Keys, site: str):
        c, heads, depth = config.channels[level], config.heads[level], config.depth[level]
        self.site = site
        self.res = nnx.List([ResBlock(i, c, config.groups, RES_EPS, keys, 4 * config.channels[0]) for i in c_ins])
        make = lambda j: Transformer(c, heads, depth, config, keys, f"{site}.attn.{j}")
        self.attn = nnx.List([make(j) for j in range(len(c_ins))] if depth else [])

    def block(self, j: int, h: Array, emb: Array, context: Array, hooks: Hooks) -> Array:
        """Residual block j and its transformer."""
        h = hooks.tap(f"{self.site}.res.{j}", self.res[j](h, emb))
        return self.attn[j](h, context, hooks) if len(self.attn) else h


class DownLevel(Level):
    """A level of the encoder; all but the last end in a strided convolution."""

    def __init__(self, c_in: int, level: int, config: UNetConfig, keys: Keys, site: str):
        c = config.channels[level]
        super().__init__([c_in] + [c] * (config.blocks - 1), level, config, keys, site)
        last = level == len(config.channels) - 1
        self.downsample = None if last else conv(c, c, keys, stride=2)

    def __call__(self, h: Array, emb: Array, context: Array, hooks: Hooks) -> list[Array]:
        skips = []
        for j in range(len(self.res)):
            h = hooks.tap(f"{self.site}.block.{j}", self.block(j, h, emb, context, hooks))
            skips.append(h)
        if self.downsample is None:
            return skips
        return [*skips, hooks.tap(f"{self.site}.downsample", self.downsample(h))]


class UpLevel(Level):
    """A level of the decoder: each block takes the last skip left; all but the finest end in an upsampling."""

    def __init__(self, c_in: int, c_skips: list[int], level: int, config: UNetConfig, keys: Keys, site: str):
        c = config.channels[level]
        c_ins = [a + b for a, b in zip([c_in] + [c] * config.blocks, c_skips, strict=True)]
        super().__init__(c_ins, level, config, keys, site)
        self.upsample = conv(c, c, keys) if level else None

    def __call__(self, h: Array, skips: list[Array], emb: Array, context: Array, hooks: Hooks) -> Array:
        for j in range(len(self.res)):
            h = hooks.tap(f"{self.site}.in.{j}", h)
            h = self.block(j, jnp.concatenate([h, skips.pop()], axis=-1), emb, context, hooks)
        if self.upsample is None:
            return h
        _, H, W, _ = skips[-1].shape  # where H or W is odd, the strided convolution had rounded up
        return self.upsample(upsample_nearest(h)[:, :H, :W])


class Middle(nnx.Module):
    """Residual block, transformer, residual block at the coarsest resolution."""

    def __init__(self, config: UNetConfig, keys: Keys, site: str):
        c, c_time = config.channels[-1], 4 * config.channels[0]
        self.site = site
        self.res1 = ResBlock(c, c, config.groups, RES_EPS, keys, c_time)
        self.attn = Transformer(c, config.heads[-1], config.middle_depth, config, keys, f"{site}.attn")
        self.res2 = ResBlock(c, c, config.groups, RES_EPS, keys, c_time)

    def __call__(self, h: Array, emb: Array, context: Array, hooks: Hooks) -> Array:
        h = self.attn(self.res1(h, emb), context, hooks)
        return hooks.tap(self.site, self.res2(h, emb))


class Encoder(nnx.Module):
    """The contracting half with the middle block: [B, H, W, in_channels] -> :class:`Features`."""

    def __init__(self, config: UNetConfig, keys: Keys, site: str = "encoder"):
        c_ins = (config.channels[0], *config.channels[:-1])
        self.conv_in = conv(config.in_channels, config.channels[0], keys)
        self.down = nnx.List([DownLevel(c, i, config, keys, f"{site}.down.{i}") for i, c in enumerate(c_ins)])
        self.middle = Middle(config, keys, f"{site}.middle")

    def __call__(self, x: Array, emb: Array, context: Array, hooks: Hooks, added: Array | None = None) -> Features:
        h = self.conv_in(x)
        skips = [h if added is None else h + added]  # a ControlNet adds its hint here
        for level in self.down:
            skips += level(skips[-1], emb, context, hooks)
        return Features(tuple(skips), self.middle(skips[-1], emb, context, hooks))


def skip_channels(config: UNetConfig) -> list[int]:
    """Channels of the encoder's skips, in the order in which it makes them."""
    last = len(config.channels) - 1
    per_level = [[c] * (config.blocks + (i < last)) for i, c in enumerate(config.channels)]
    return [config.channels[0]] + [c for level in per_level for c in level]


class Decoder(nnx.Module):
    """The expanding half: consumes the skips from the last to the first -> [B, H, W, channels[0]]."""

    def __init__(self, config: UNetConfig, keys: Keys, site: str = "decoder"):
        c_skips, levels, c_in = skip_channels(config), [], config.channels[-1]
        for i, level in enumerate(reversed(range(len(config.channels)))):
            take = [c_skips.pop() for _ in range(config.blocks + 1)]
            levels.append(UpLevel(c_in, take, level, config, keys, f"{site}.up.{i}"))
            c_in = config.channels[level]
        self.up = nnx.List(levels)

    def __call__(self, features: Features, emb: Array, context: Array, hooks: Hooks) -> Array:
        h, skips = features.middle, list(features.skips)
        for level in self.up:
            h = level(h, skips, emb, context, hooks)
        return h


class UNet(nnx.Module):
    """The denoising network. What it predicts (eps, v or x0) is a matter of its training: see ``ldm.denoiser``."""

    def __init__(self, config: UNetConfig, keys: Keys):
        c = config.channels[0]
        self.config = config
        self.time_mlp = MLP(c, 4 * c, keys)
        self.pooled_mlp = MLP(config.pooled_dim, 4 * c, keys) if config.pooled_dim else None
        self.guidance = linear(config.guidance_dim, c, keys, bias=False) if config.guidance_dim else None
        self.encoder, self.decoder = Encoder(config, keys), Decoder(config, keys)
        self.norm_out = group_norm(c, config.groups, RES_EPS, keys)
        self.conv_out = conv(c, config.out_channels, keys)

    def embed(self, t: Array, cond: Conditioning, batch: int, dtype) -> Array:
        """Time embedding [B, T], with the guidance scale and the pooled condition where the model is told them."""
        added = 0.0
        if self.guidance is not None:
            scale = jnp.broadcast_to(cond.guidance, (batch,))
            added = self.guidance(guidance_embedding(scale, self.config.guidance_dim).astype(dtype))
        emb = embed_time(self.time_mlp, t, batch, self.config.channels[0], dtype, added)
        return emb if self.pooled_mlp is None else emb + self.pooled_mlp(cond.pooled.astype(dtype))

    def __call__(
        self, x: Array, t: Array, cond: Conditioning, *, control: Features | None = None, hooks: Hooks = Hooks()
    ) -> Array:
        """One evaluation.

        ``x`` [B, H, W, C] is the noisy latent scaled to unit variance, ``t`` [] or [B] the timestep (it may be
        fractional), ``control`` a :class:`Features` to add to the encoder's own, of any dtype, and of their shapes or
        such that broadcast against them. ``cond.concat``, where given, is stacked on the channels of ``x``. Computes in
        the dtype of the weights; returns [B, H, W, out_channels].
        """
        dtype = self.conv_out.kernel.dtype
        x = x if cond.concat is None else jnp.concatenate([x, cond.concat.astype(x.dtype)], axis=-1)
        emb, context = self.embed(t, cond, x.shape[0], dtype), cond.context.astype(dtype)
        features = self.encoder(x.astype(dtype), emb, context, hooks)
        if control is not None:
            features = jax.tree.map(lambda own, more: own + more.astype(dtype), features, control)
        h = self.decoder(features, emb, context, hooks)
        return self.conv_out(nnx.silu(self.norm_out(h)))
