"""A classifier of noisy latents: p(labels | x, t), for guidance by its gradient and for measuring what noise leaves.

It is the contracting half of the U-Net without any text, and attention pooling: the mean over the places asks all of
them. One linear head speaks of several labels at once (kind, colour, ...), each by itself given the latent.

Shapes: B batch, H W latent size, C channels, L = H * W places of the coarsest level, K labels.

Sources: "Diffusion Models Beat GANs on Image Synthesis" (arXiv:2105.05233), section 4 and appendix H, for a classifier
of noisy pictures and its shape; "Learning Transferable Visual Models From Natural Language Supervision"
(arXiv:2103.00020), section 2.4, for attention pooling.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ldm.denoiser import to_variance_preserving
from ldm.hooks import Hooks
from ldm.models.layers import Attention, Keys, group_norm, zero_linear
from ldm.models.unet import MLP, RES_EPS, Encoder, UNetConfig, embed_time
from ldm.schedule import NoiseSchedule, t_at

Logits = tuple[Array, ...]  # one [B, n] float32 for each label
Classify = Callable[[Array, Array], Logits]  # (x / sqrt(1 + sigma^2) [B, H, W, C], t) -> Logits, as a classifier does


@dataclass(frozen=True)
class ClassifierConfig:
    """The numbers of a classifier. ``labels``: how many values each label has. One of ``channels`` per level."""

    labels: tuple[int, ...]
    in_channels: int = 4
    channels: tuple[int, ...] = (64, 128, 192)
    blocks: int = 1  # residual blocks per level
    heads: int = 4  # of the attention pooling
    groups: int = 32

    @property
    def encoder(self) -> UNetConfig:
        """The U-Net whose encoder it has: one without transformer blocks."""
        return UNetConfig(
            in_channels=self.in_channels,
            channels=self.channels,
            blocks=self.blocks,
            depth=(0,) * len(self.channels),
            middle_depth=0,
            heads=(self.heads,) * len(self.channels),
            groups=self.groups,
        )


class Classifier(nnx.Module):
    """(noisy latent [B, H, W, in_channels], t) -> the logits of each label. It begins by finding all alike likely."""

    def __init__(self, config: ClassifierConfig, keys: Keys):
        first, last = config.channels[0], config.channels[-1]
        self.config = config
        self.time_mlp = MLP(first, 4 * first, keys)
        self.encoder = Encoder(config.encoder, keys)
        self.norm = group_norm(last, config.groups, RES_EPS, keys)
        self.pool = Attention(last, last, config.heads, keys, "pool", qkv_bias=True)
        self.head = zero_linear(last, sum(config.labels), keys)

    def __call__(self, x: Array, t: Array) -> Logits:
        """``x`` is scaled to unit variance and ``t`` [] or [B] the timestep, as for the U-Net.

        Computes in the dtype of the weights; the logits are float32, [B, n] for each n of ``config.labels``.
        """
        dtype, batch = self.head.kernel.dtype, len(x)
        emb = embed_time(self.time_mlp, t, batch, self.config.channels[0], dtype)
        h = self.encoder(x.astype(dtype), emb, None, Hooks()).middle
        h = nnx.silu(self.norm(h)).reshape(batch, -1, h.shape[-1])  # [B, L, C]
        mean = h.mean(1, keepdims=True)
        pooled = mean + self.pool(mean, h, Hooks())
        ends = list(accumulate(self.config.labels))
        return tuple(jnp.split(self.head(pooled[:, 0]).astype(jnp.float32), ends[:-1], axis=-1))


def log_prob(classify: Classify, schedule: NoiseSchedule, labels: Array) -> Callable[[Array, Array], Array]:
    """(x [B, H, W, C] = x0 + sigma * noise, sigma []) -> log p(labels | x) [B] float32, in the samplers' space.

    ``labels`` int32 [B, K]: the value of each label, -1 for one that is not asked; what is asked multiplies. Its
    gradient with respect to x is what guides. Raises ValueError if there are not as many labels as the classifier has.
    """

    def log_p(x: Array, sigma: Array) -> Array:
        x, sigma = jnp.asarray(x, jnp.float32), jnp.asarray(sigma, jnp.float32)
        logits = classify(to_variance_preserving(x, sigma), t_at(schedule, sigma))
        if labels.shape[1:] != (len(logits),):
            raise ValueError(f"this classifier has {len(logits)} labels [B, {len(logits)}], got shape {labels.shape}")
        return sum(_chosen(values, labels[:, k]) for k, values in enumerate(logits))

    return log_p


def _chosen(logits: Array, label: Array) -> Array:
    """The log-probability [B] of one label's values [B]; 0 where it is not asked."""
    values = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(label, 0)[:, None], axis=-1)
    return jnp.where(label >= 0, values[:, 0], 0.0)
