"""The KL autoencoder: pictures to latents eight times smaller a side, and back.

Shapes: B batch, H W picture size, h w latent size (H / 8, W / 8 with four levels), Z latent channels.

Sources: "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv:2112.10752), section 3.1 and appendix G;
"Auto-Encoding Variational Bayes" (arXiv:1312.6114), section 2.3, for the Gaussian posterior

    q(z | x) = N(mean(x), exp(logvar(x))).                                                eq. (1)

``config.scale`` brings latents to unit variance for diffusion: it multiplies what :meth:`VAE.encode` returns and
divides what :meth:`VAE.decode` takes; both methods work on the unscaled latents.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jax import Array

from ldm.hooks import Hooks
from ldm.models.layers import Attention, Keys, ResBlock, conv, group_norm, linear, upsample_nearest

EPS = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)  # outside it exp(logvar) is as good as 0, or as infinite, in float32


@dataclass(frozen=True)
class VAEConfig:
    """The numbers of an autoencoder; the defaults are Stable Diffusion 1.x and 2.x. Channels: finest level first."""

    in_channels: int = 3
    latent_channels: int = 4
    channels: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2  # residual blocks per level of the encoder; the decoder has one more
    groups: int = 32
    scale: float = 0.18215
    patch: int = 1  # blocks of patch x patch pixels become the channels of one, and back: for small machines

    @property
    def factor(self) -> int:
        """Pixels of the picture per latent pixel, a side."""
        return self.patch * 2 ** (len(self.channels) - 1)


def space_to_depth(x: Array, n: int) -> Array:
    """[B, H, W, C] -> [B, H / n, W / n, n n C]: each n x n block of pixels becomes one pixel's channels."""
    B, H, W, C = x.shape
    return x.reshape(B, H // n, n, W // n, n, C).transpose(0, 1, 3, 2, 4, 5).reshape(B, H // n, W // n, n * n * C)


def depth_to_space(x: Array, n: int) -> Array:
    """The inverse of :func:`space_to_depth`."""
    B, H, W, C = x.shape
    return x.reshape(B, H, W, n, n, C // n**2).transpose(0, 1, 3, 2, 4, 5).reshape(B, H * n, W * n, C // n**2)


class AttentionBlock(nnx.Module):
    """One-headed self-attention over all pixels, around a shortcut: [B, h, w, C] -> the same."""

    def __init__(self, width: int, groups: int, keys: Keys, site: str):
        self.norm = group_norm(width, groups, EPS, keys)
        self.attn = Attention(width, width, 1, keys, site, qkv_bias=True)

    def __call__(self, x: Array, hooks: Hooks) -> Array:
        B, H, W, C = x.shape
        return x + self.attn(self.norm(x).reshape(B, H * W, C), None, hooks).reshape(x.shape)


class Middle(nnx.Module):
    """Residual block, attention, residual block at the coarsest resolution."""

    def __init__(self, c: int, groups: int, keys: Keys, site: str):
        self.res1, self.res2 = ResBlock(c, c, groups, EPS, keys), ResBlock(c, c, groups, EPS, keys)
        self.attn = AttentionBlock(c, groups, keys, f"{site}.attn")

    def __call__(self, h: Array, hooks: Hooks) -> Array:
        return self.res2(self.attn(self.res1(h), hooks))


class DownLevel(nnx.Module):
    """Residual blocks, then a strided convolution padded right and bottom only (but for the last level)."""

    def __init__(self, c_in: int, c: int, config: VAEConfig, keys: Keys, last: bool):
        c_ins = [c_in] + [c] * (config.blocks - 1)
        self.res = nnx.List([ResBlock(i, c, config.groups, EPS, keys) for i in c_ins])
        self.downsample = None if last else conv(c, c, keys, stride=2, padding=((0, 1), (0, 1)))

    def __call__(self, h: Array) -> Array:
        for block in self.res:
            h = block(h)
        return h if self.downsample is None else self.downsample(h)


class UpLevel(nnx.Module):
    """Residual blocks, then nearest upsampling and a convolution (but for the finest level)."""

    def __init__(self, c_in: int, c: int, config: VAEConfig, keys: Keys, last: bool):
        c_ins = [c_in] + [c] * config.blocks
        self.res = nnx.List([ResBlock(i, c, config.groups, EPS, keys) for i in c_ins])
        self.upsample = None if last else conv(c, c, keys)

    def __call__(self, h: Array) -> Array:
        for block in self.res:
            h = block(h)
        return h if self.upsample is None else self.upsample(upsample_nearest(h))


class Encoder(nnx.Module):
    """[B, H, W, 3] -> [B, h, w, 2Z]: mean and log-variance before the 1x1 ``quant`` layer."""

    def __init__(self, config: VAEConfig, keys: Keys):
        cs, last = config.channels, len(config.channels) - 1
        self.patch = config.patch
        self.conv_in = conv(config.in_channels * config.patch**2, cs[0], keys)
        self.down = nnx.List([DownLevel(cs[max(i - 1, 0)], c, config, keys, i == last) for i, c in enumerate(cs)])
        self.middle = Middle(cs[-1], config.groups, keys, "encoder.middle")
        self.norm_out = group_norm(cs[-1], config.groups, EPS, keys)
        self.conv_out = conv(cs[-1], 2 * config.latent_channels, keys)

    def __call__(self, x: Array, hooks: Hooks) -> Array:
        h = self.conv_in(space_to_depth(x, self.patch))
        for level in self.down:
            h = level(h)
        return self.conv_out(nnx.silu(self.norm_out(self.middle(h, hooks))))


class Decoder(nnx.Module):
    """[B, h, w, Z] -> [B, H, W, 3]. ``up.0`` is the coarsest level."""

    def __init__(self, config: VAEConfig, keys: Keys):
        cs, last = config.channels[::-1], len(config.channels) - 1
        self.patch = config.patch
        self.conv_in = conv(config.latent_channels, cs[0], keys)
        self.middle = Middle(cs[0], config.groups, keys, "decoder.middle")
        self.up = nnx.List([UpLevel(cs[max(i - 1, 0)], c, config, keys, i == last) for i, c in enumerate(cs)])
        self.norm_out = group_norm(cs[-1], config.groups, EPS, keys)
        self.conv_out = conv(cs[-1], config.in_channels * config.patch**2, keys)

    def __call__(self, z: Array, hooks: Hooks) -> Array:
        h = self.middle(self.conv_in(z), hooks)
        for level in self.up:
            h = level(h)
        return depth_to_space(self.conv_out(nnx.silu(self.norm_out(h))), self.patch)


class VAE(nnx.Module):
    """The autoencoder. Computes in the dtype of its weights."""

    def __init__(self, config: VAEConfig, keys: Keys):
        z = config.latent_channels
        self.encoder, self.decoder = Encoder(config, keys), Decoder(config, keys)
        self.quant, self.post_quant = linear(2 * z, 2 * z, keys), linear(z, z, keys)

    def encode(self, x: Array, hooks: Hooks = Hooks()) -> tuple[Array, Array]:
        """Picture [B, H, W, 3] in [-1, 1] -> eq. (1): mean and logvar, both [B, h, w, Z], unscaled."""
        moments = self.quant(self.encoder(x.astype(self.quant.kernel.dtype), hooks))
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def decode(self, z: Array, hooks: Hooks = Hooks()) -> Array:
        """Unscaled latent [B, h, w, Z] -> picture [B, H, W, 3], about [-1, 1]."""
        return self.decoder(self.post_quant(z.astype(self.quant.kernel.dtype)), hooks)


def from_uint8(pictures: Array) -> Array:
    """0..255 uint8 -> [-1, 1] float32, what :meth:`VAE.encode` takes. Of NumPy's arrays too, which compiles nothing."""
    return pictures.astype(jnp.float32) / 127.5 - 1


def to_uint8(pictures: Array) -> Array:
    """[-1, 1] float, what :meth:`VAE.decode` gives -> 0..255 uint8, rounded to nearest, clipped. Of NumPy's too."""
    return ((pictures / 2 + 0.5).clip(0.0, 1.0) * 255).round().astype(jnp.uint8)


def reparameterize(mean: Array, logvar: Array, noise: Array) -> Array:
    """A sample of eq. (1) as a differentiable function of its parameters: mean + exp(logvar / 2) * noise.

    All [B, h, w, Z]; ``noise`` is unit Gaussian. Source: arXiv:1312.6114, section 2.4.
    """
    return mean + jnp.exp(0.5 * logvar) * noise
