"""T2I-Adapter: a small network sees a hint picture ONCE, and its features are added to the encoder's at every step.

Shapes: B batch, H W latent size, C channels; the hint is a picture, 8H x 8W. r is the unshuffling factor: each r x r
block of pixels becomes the channels of one.

Source: "T2I-Adapter: Learning Adapters to Dig out More Controllable Ability for Text-to-Image Diffusion Models"
(arXiv:2302.08453), section 3.3: with F_AD the adapter, F_enc the features of the U-Net's encoder at every level and w
the weight of an adapter among several,

    F_c = F_AD(hint)                                                                        eq. (3)
    F_enc <- F_enc + F_c                                                                    eq. (4)
    F_c = sum_k w_k F_AD^k(hint_k)                                                          eq. (5)

The sum goes into the skip AND into the deeper levels; a ControlNet's control reaches only the skips and the middle. The
light form and the one for SDXL are those of the authors' published code and weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flax import nnx
from jax import Array

from ldm.hooks import Hooks
from ldm.models.layers import Keys, conv, linear
from ldm.models.unet import UNetConfig


def last_blocks(levels: int, blocks: int = 2) -> tuple[str, ...]:
    """The tap sites after the last block of every level of an encoder, before its strided convolution."""
    return tuple(f"encoder.down.{i}.block.{blocks - 1}" for i in range(levels))


@dataclass(frozen=True)
class T2IAdapterConfig:
    """The numbers of an adapter; the defaults are Stable Diffusion 1.x's. One entry of each tuple per feature map."""

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    sites: tuple[str, ...] = last_blocks(4)  # where in the U-Net each map is added
    halves: tuple[bool, ...] = (False, True, True, True)  # whether the size is halved before it
    blocks: int = 2  # residual blocks per map
    in_channels: int = 3  # of the hint; 1: grey, as sketches and edges are
    unshuffle: int = 8
    light: bool = False


LIGHT = T2IAdapterConfig(blocks=4, light=True)
SDXL_SITES = ("encoder.down.0.downsample", "encoder.down.1.block.1", "encoder.down.2.block.1", "encoder.middle")
SDXL = T2IAdapterConfig(sites=SDXL_SITES, halves=(False, False, True, False), unshuffle=16)

Maps = Mapping[str, Array]  # tap site -> features [B, h, w, C]


def unshuffle(hint: Array, factor: int) -> Array:
    """[B, H, W, C] -> [B, H / factor, W / factor, C * factor^2], all pixels of the first channel first."""
    B, H, W, C = hint.shape
    blocks = hint.reshape(B, H // factor, factor, W // factor, factor, C)
    return blocks.transpose(0, 1, 3, 5, 2, 4).reshape(B, H // factor, W // factor, C * factor**2)


def halved(h: Array) -> Array:
    """[B, H, W, C] -> the means of 2x2 blocks. An odd size is rounded up, as the U-Net's strided convolutions do."""
    return nnx.avg_pool(h, (2, 2), strides=(2, 2), padding="SAME", count_include_pad=False)


class Residual(nnx.Module):
    """x plus two convolutions of it; the second sees one pixel, or 3x3 in the light form."""

    def __init__(self, c: int, light: bool, keys: Keys):
        self.conv1 = conv(c, c, keys)
        self.conv2 = conv(c, c, keys) if light else linear(c, c, keys)

    def __call__(self, x: Array) -> Array:
        return x + self.conv2(nnx.relu(self.conv1(x)))


class Level(nnx.Module):
    """What makes one feature map out of the one before: [B, h, w, c_in] -> [B, h, w, c] or half as large a side.

    The light form works in a quarter of the channels: that is what makes it light.
    """

    def __init__(self, c_in: int, c: int, halve: bool, config: T2IAdapterConfig, keys: Keys):
        inside = c // 4 if config.light else c
        self.halve = halve
        self.proj_in = linear(c_in, inside, keys) if config.light or c_in != c else None
        self.blocks = nnx.List([Residual(inside, config.light, keys) for _ in range(config.blocks)])
        self.proj_out = linear(inside, c, keys) if config.light else None

    def __call__(self, h: Array) -> Array:
        h = halved(h) if self.halve else h
        h = h if self.proj_in is None else self.proj_in(h)
        for block in self.blocks:
            h = block(h)
        return h if self.proj_out is None else self.proj_out(h)


class T2IAdapter(nnx.Module):
    """Eq. (3), full or light. Computes in the dtype of its weights."""

    def __init__(self, config: T2IAdapterConfig, keys: Keys):
        c, seen = config.channels, config.in_channels * config.unshuffle**2
        self.config = config
        self.conv_in = None if config.light else conv(seen, c[0], keys)
        c_ins = (seen if config.light else c[0], *c[:-1])
        self.levels = nnx.List(
            [Level(a, b, halve, config, keys) for a, b, halve in zip(c_ins, c, config.halves, strict=True)]
        )

    def __call__(self, hint: Array) -> Maps:
        """The hint [B, 8H, 8W, in_channels] in [0, 1] -> a feature map for each of ``config.sites``.

        Raises ValueError, while tracing, for a hint of other channels or whose sides the factor does not divide.
        """
        _, rows, columns, channels = hint.shape
        factor, wanted = self.config.unshuffle, self.config.in_channels
        if channels != wanted:
            raise ValueError(f"the hint has {channels} channels, and this T2I-Adapter sees {wanted} (1 is grey)")
        if rows % factor or columns % factor:
            raise ValueError(f"the hint is {columns}x{rows}, and this T2I-Adapter needs sides that {factor} divides")
        h = unshuffle(hint.astype(self.levels[0].blocks[0].conv1.kernel.dtype), factor)
        h = h if self.conv_in is None else self.conv_in(h)
        maps = {}
        for site, level in zip(self.config.sites, self.levels, strict=True):
            h = maps[site] = level(h)
        return maps


def with_features(features: Maps, hooks: Hooks = Hooks(), scale: Array | float = 1.0) -> Hooks:
    """Hooks that do what ``hooks`` do and add ``scale`` times the features at their sites: eq. (4).

    features: what :class:`T2IAdapter` returns, of the U-Net's batch or of one picture for all of it.
    scale [] or [B, 1, 1, 1]: w of eq. (5), a run-time value; at 0 the U-Net is what it was. Several adapters are
    hooks around hooks.
    """

    def tap(site: str, h: Array) -> Array:
        h = hooks.tap(site, h)
        return h + (scale * features[site]).astype(h.dtype) if site in features else h

    return hooks._replace(tap=tap)


def check_fit(config: T2IAdapterConfig, unet: UNetConfig, factor: int = 8) -> None:
    """Raises ValueError unless the U-Net has every site of the adapter, with as many channels and pixels.

    factor: how many times smaller than the picture the latent is.
    """
    c, last = unet.channels, len(unet.channels) - 1
    places = {
        site: (n, factor << i) for i, (site, n) in enumerate(zip(last_blocks(last + 1, unet.blocks), c, strict=True))
    }
    places |= {f"encoder.down.{i}.downsample": (n, 2 * factor << i) for i, n in enumerate(c[:last])}
    places["encoder.middle"] = (c[last], factor << last)
    smaller = config.unshuffle
    for site, channels, halve in zip(config.sites, config.channels, config.halves, strict=True):
        smaller *= 1 + halve
        if places.get(site) != (channels, smaller):
            has = "{} at 1/{}".format(*places[site]) if site in places else "no such place"
            raise ValueError(
                f"this T2I-Adapter adds {channels} channels at 1/{smaller} of the picture's size to {site}, and this"
                f" U-Net has {has}: use one that was made for the model's family"
            )
