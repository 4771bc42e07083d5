"""ControlNet: a second encoder that sees a hint picture and adds to the features of the first.

Shapes: B batch, H W latent size, C latent channels; the hint is a picture, 8H x 8W.

Source: "Adding Conditional Control to Text-to-Image Diffusion Models" (arXiv:2302.05543), sections 3.1 and 3.2: with F
the copied encoder and Z convolutions of one pixel that begin at zero,

    control = Z(F(x + hint(c)))                                                           eq. (2)

so that before training it adds exactly nothing. What it returns is what ``UNet(..., control=)`` takes.

A net may be pooled, as the published one that learned from shuffled pictures (version 1.1): its control is averaged
over all pixels, so that it can say what a picture is made of and nothing of where. It is meant to leave the
negative prompts alone (``ldm.Control``'s ``prompts_only``).
"""

import itertools
from dataclasses import dataclass

import jax
from flax import nnx
from jax import Array

from ldm.conditioning import Conditioning
from ldm.hooks import Hooks
from ldm.models.layers import Keys, Params, conv, zero_linear
from ldm.models.unet import MLP, Encoder, Features, UNetConfig, embed_time, skip_channels


@dataclass(frozen=True)
class ControlNetConfig:
    """The numbers: those of the U-Net that it controls, and of the hint's own small network; pooled: see above."""

    unet: UNetConfig = UNetConfig()  # noqa: RUF009
    hint_channels: int = 3
    widths: tuple[int, ...] = (16, 32, 96, 256)  # each but the last ends in a strided convolution: 8 times smaller
    pooled: bool = False


@dataclass(frozen=True)
class Net:
    """A ControlNet as a plain value: its numbers, and its parameters by name."""

    config: ControlNetConfig
    params: Params


class Hint(nnx.Module):
    """The hint picture [B, 8H, 8W, 3] in [0, 1] -> features [B, H, W, channels[0]] at the size of the latent."""

    def __init__(self, config: ControlNetConfig, keys: Keys):
        w = config.widths
        pairs = [layer for a, b in itertools.pairwise(w) for layer in ((a, a, 1), (a, b, 2))]
        out = conv(w[-1], config.unet.channels[0], keys, zero=True)
        first = conv(config.hint_channels, w[0], keys)
        self.convs = nnx.List([first, *(conv(a, b, keys, stride=stride) for a, b, stride in pairs), out])

    def __call__(self, hint: Array) -> Array:
        for layer in self.convs[:-1]:
            hint = nnx.silu(layer(hint))
        return self.convs[-1](hint)


class ControlNet(nnx.Module):
    """Eq. (2). Computes in the dtype of its weights."""

    def __init__(self, config: ControlNetConfig, keys: Keys):
        c = config.unet.channels
        self.config = config
        self.time_mlp = MLP(c[0], 4 * c[0], keys)
        self.encoder, self.hint = Encoder(config.unet, keys), Hint(config, keys)
        self.zeros = nnx.List([zero_linear(n, n, keys) for n in skip_channels(config.unet)])
        self.zero_middle = zero_linear(c[-1], c[-1], keys)

    def __call__(self, x: Array, t: Array, cond: Conditioning, hint: Array, *, hooks: Hooks = Hooks()) -> Features:
        """``x``, ``t``, ``cond`` as the U-Net takes them, and the hint [B, 8H, 8W, 3] in [0, 1] -> the control."""
        return self.control(x, t, cond, self.see(hint), hooks=hooks)

    def see(self, hint: Array) -> Array:
        """What it sees in the hint, [B, H, W, channels[0]]: the same at every step of a run."""
        return self.hint(hint.astype(self.zero_middle.kernel.dtype))

    def control(self, x: Array, t: Array, cond: Conditioning, seen: Array, *, hooks: Hooks = Hooks()) -> Features:
        """The control, from what :meth:`see` made of the hint. Where it is pooled, H = W = 1."""
        dtype = self.zero_middle.kernel.dtype
        emb = embed_time(self.time_mlp, t, x.shape[0], self.config.unet.channels[0], dtype)
        features = self.encoder(x.astype(dtype), emb, cond.context.astype(dtype), hooks, seen.astype(dtype))
        skips = tuple(zero(skip) for zero, skip in zip(self.zeros, features.skips, strict=True))
        control = Features(skips, self.zero_middle(features.middle))
        return jax.tree.map(lambda a: a.mean((1, 2), keepdims=True), control) if self.config.pooled else control
