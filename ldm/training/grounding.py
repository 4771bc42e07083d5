"""Two losses that teach binding, which words belong to which toy, where the truth of a scene is known.

Contrastive and denoising losses say little about it: most of a picture is right with the right words in any order.
Each loss here asks for the toys themselves, through a small head that is thrown away after the training:

    read     a text tower's states are asked what stands at a place: kind, colour, size and material of the toy there
    layout   features inside the U-Net are asked what each cell of the clean picture shows: kind and colour, or nothing

Sources: words grounded in regions, "Grounded Language-Image Pre-training" (arXiv:2112.03857), section 3.1; features of
a denoiser aligned with what the clean picture shows, "Representation Alignment for Generation" (arXiv:2410.06940),
section 3.2; segments as a guide to attention, "TokenCompose" (arXiv:2312.03626), section 3.

Shapes: B batch, N slots of a scene, S tokens, E their width, L = h w cells of a feature map of C channels, s cells
along each side of a segmentation.
"""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ldm.hooks import Hooks
from ldm.models.autoencoder import depth_to_space
from ldm.models.layers import Attention, Keys, linear
from ldm.toybox.captions import FRONT_MARGIN, LEFT_MARGIN
from ldm.toybox.scene import COLOURS, KINDS, MATERIALS, SIZES, SLOTS

CLASSES = (len(KINDS), len(COLOURS), len(SIZES), len(MATERIALS))
EDGES = tuple(itertools.accumulate(CLASSES[:-1]))
WEIGHTS = (1.0, 1.0, 0.25, 0.25)  # sizes and materials are often left unsaid
PLACE = 2 + 3 * (SLOTS - 1)  # numbers that say where a toy stands, see `places`


@dataclass(frozen=True)
class ReaderConfig:
    """context: E. width, heads: of the one attention to the text."""

    context: int
    width: int = 128
    heads: int = 4


class Reader(nnx.Module):
    """A text's states [B, S, E] asked about places [B, N, PLACE] -> logits [B, N, sum(CLASSES)]."""

    def __init__(self, config: ReaderConfig, keys: Keys):
        c = config.width
        self.fc1, self.fc2, self.fc3 = linear(PLACE, c, keys), linear(c, c, keys), linear(c, c, keys)
        self.attn = Attention(c, config.context, config.heads, keys, "reader.attn")
        self.out = linear(c, sum(CLASSES), keys)

    def __call__(self, context: Array, where: Array) -> Array:
        h = self.fc2(nnx.silu(self.fc1(where)))
        h = h + self.attn(h, context, Hooks())
        return self.out(h + nnx.silu(self.fc3(h)))


def places(seen: Array, there: Array) -> Array:
    """Where each toy stands, for itself and against the others: [B, N, PLACE] float32.

    seen [B, N, 2] column (fraction) and depth (toy units), there [B, N] bool. Own column and depth; then for each
    other slot, in turn: whether a toy is there, and the differences, in the margins of captions, brought to -1..1.
    """
    scaled = seen / jnp.array([LEFT_MARGIN, FRONT_MARGIN])
    rows = [seen - jnp.array([0.5, 0.0])]
    for turn in range(1, SLOTS):
        other, present = jnp.roll(scaled, -turn, axis=1), jnp.roll(there, -turn, axis=1)[..., None]
        rows += [present, jnp.where(present, jnp.tanh((other - scaled) / 2), 0.0)]
    return jnp.concatenate(rows, axis=-1, dtype=jnp.float32)


def read_loss(reader: Reader, context: Array, toys: Array, seen: Array) -> tuple[Array, dict[str, Array]]:
    """Cross-entropy of what the reader says of each toy that is there.

    toys int [B, N, 4]: kind (-1 for none), colour, size, material; seen as in :func:`places`. Metrics: read, the share
    of toys of which kind and colour are right.
    """
    there = toys[..., 0] >= 0
    logits = jnp.split(reader(context, places(seen, there)), EDGES, axis=-1)
    pairs = [(values, jnp.maximum(toys[..., i], 0)) for i, values in enumerate(logits)]
    loss = sum(weight * _of(_cross_entropy(*pair), there) for weight, pair in zip(WEIGHTS, pairs, strict=True))
    both = jnp.stack([values.argmax(-1) == labels for values, labels in pairs[:2]]).all(0)
    return loss, {"read": _of(both, there)}


@dataclass(frozen=True)
class LayoutConfig:
    """channels: C. cells: of the segmentation, along each side of a cell of the features."""

    channels: int
    cells: int = 1


class Layout(nnx.Module):
    """Features [B, h, w, C] -> logits of kinds and of colours, class 0 for no toy, on the cells of a segmentation."""

    def __init__(self, config: LayoutConfig, keys: Keys):
        self.cells = config.cells
        self.out = linear(config.channels, config.cells**2 * (2 + len(KINDS) + len(COLOURS)), keys)

    def __call__(self, features: Array) -> tuple[Array, Array]:
        logits = depth_to_space(self.out(features), self.cells)
        return logits[..., : 1 + len(KINDS)], logits[..., 1 + len(KINDS) :]


def layout_loss(head: Layout, features: Array, toys: Array, segmentation: Array) -> tuple[Array, dict[str, Array]]:
    """Cross-entropy of what the head says of each cell.

    features [B, L, C]; toys int [B, N, 4]; segmentation int [B, s, s], 0 none, i + 1 the toy of slot i. Metrics: found,
    the share of the toys' cells with the right kind and colour.
    """
    side = segmentation.shape[1] // head.cells
    logits = head(features.reshape(len(features), side, side, -1))
    slots = jnp.pad(toys[..., :2].astype(jnp.int32) + 1, ((0, 0), (1, 0), (0, 0)))  # [B, 1 + N, 2]; slot 0: no toy
    labels = jax.vmap(lambda slot, where: slot[where])(slots, segmentation.astype(jnp.int32))  # [B, s, s, 2]
    each = [_cross_entropy(values, labels[..., i]) for i, values in enumerate(logits)]
    both = jnp.stack([values.argmax(-1) == labels[..., i] for i, values in enumerate(logits)]).all(0)
    return sum(each).mean(), {"found": _of(both, segmentation > 0)}


def _cross_entropy(logits: Array, labels: Array) -> Array:
    """-log softmax(logits)[label] of each; logits [..., K], labels int [...]."""
    scores = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(scores, labels[..., None].astype(jnp.int32), axis=-1)[..., 0]


def _of(values: Array, chosen: Array) -> Array:
    """The mean of the chosen values; 0 if none is."""
    return jnp.where(chosen, values, 0).sum() / jnp.maximum(chosen.sum(), 1)
