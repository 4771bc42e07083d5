"""TAESD: a tiny autoencoder distilled from Stable Diffusion's, small enough to preview every step of a sampler.

Shapes: B batch, H W picture size, h w latent size (H / 8, W / 8), Z latent channels, C width (64 everywhere).

Source: the published TAESD weights and their description (MIT). No norms, no attention: convolutions and ReLU only.
Latents are those of the diffusion process itself, already at unit variance: no scale is applied.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jax import Array

from ldm.models.layers import Keys, conv, upsample_nearest


@dataclass(frozen=True)
class TinyVAEConfig:
    """The numbers of TAESD. ``blocks``: residual blocks per level, finest level first."""

    in_channels: int = 3
    latent_channels: int = 4
    width: int = 64
    blocks: tuple[int, ...] = (1, 3, 3, 3)

    @property
    def factor(self) -> int:
        """Pixels of the picture per latent pixel, a side."""
        return 2 ** (len(self.blocks) - 1)


class Block(nnx.Module):
    """relu(x + three convolutions of x)."""

    def __init__(self, c: int, keys: Keys):
        self.conv1, self.conv2, self.conv3 = (conv(c, c, keys) for _ in range(3))

    def __call__(self, x: Array) -> Array:
        return nnx.relu(x + self.conv3(nnx.relu(self.conv2(nnx.relu(self.conv1(x))))))


class Level(nnx.Module):
    """Residual blocks and one convolution without bias that changes the resolution (absent at the finest level)."""

    def __init__(self, blocks: int, c: int, keys: Keys, stride: int, resample: bool):
        self.blocks = nnx.List([Block(c, keys) for _ in range(blocks)])
        self.resample = conv(c, c, keys, stride=stride, bias=False) if resample else None

    def run_blocks(self, h: Array) -> Array:
        """All residual blocks in turn."""
        for block in self.blocks:
            h = block(h)
        return h


class Encoder(nnx.Module):
    """[B, H, W, 3] in [0, 1] -> latents [B, h, w, Z]. A level first halves the resolution, then runs its blocks."""

    def __init__(self, config: TinyVAEConfig, keys: Keys):
        c = config.width
        self.conv_in = conv(config.in_channels, c, keys)
        self.levels = nnx.List([Level(n, c, keys, 2, i > 0) for i, n in enumerate(config.blocks)])
        self.conv_out = conv(c, config.latent_channels, keys)

    def __call__(self, x: Array) -> Array:
        h = self.conv_in(x)
        for level in self.levels:
            h = level.run_blocks(h if level.resample is None else level.resample(h))
        return self.conv_out(h)


class Decoder(nnx.Module):
    """Latents [B, h, w, Z] -> [B, H, W, 3] about [0, 1]. A level runs its blocks, then doubles the resolution."""

    def __init__(self, config: TinyVAEConfig, keys: Keys):
        c, coarse_first = config.width, config.blocks[::-1]
        self.conv_in = conv(config.latent_channels, c, keys)
        last = len(coarse_first) - 1
        self.levels = nnx.List([Level(n, c, keys, 1, i < last) for i, n in enumerate(coarse_first)])
        self.conv_out = conv(c, config.in_channels, keys)

    def __call__(self, z: Array) -> Array:
        h = nnx.relu(self.conv_in(3.0 * jnp.tanh(z / 3.0)))  # latents beyond +-3 are squeezed, not trusted
        for level in self.levels:
            h = level.run_blocks(h)
            h = h if level.resample is None else level.resample(upsample_nearest(h))
        return self.conv_out(h)


class TinyVAE(nnx.Module):
    """TAESD with the interface of the large autoencoder: pictures in [-1, 1], latents of the diffusion process."""

    def __init__(self, config: TinyVAEConfig, keys: Keys):
        self.encoder, self.decoder = Encoder(config, keys), Decoder(config, keys)

    def encode(self, x: Array) -> Array:
        """Picture [B, H, W, 3] in [-1, 1] -> latents [B, h, w, Z], already scaled."""
        return self.encoder((x.astype(self.encoder.conv_in.kernel.dtype) + 1.0) / 2.0)

    def decode(self, z: Array) -> Array:
        """Latents [B, h, w, Z], as the sampler has them -> picture [B, H, W, 3], about [-1, 1]."""
        return 2.0 * self.decoder(z.astype(self.encoder.conv_in.kernel.dtype)) - 1.0
