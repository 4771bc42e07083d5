"""The CLIP vision towers: ViT-L/14; ViT-H/14 and others by their numbers, down to what the toybox trains.

Shapes: B batch, H W picture, L tokens (1 + one for each patch), E width, P width of the joint text-image space.

Sources: "An Image is Worth 16x16 Words" (arXiv:2010.11929), section 3.1, eq. (1)-(4): a picture is a row of patches
with a class token before them; "Learning Transferable Visual Models From Natural Language Supervision"
(arXiv:2103.00020), section 2.4: one more norm before the transformer, and a projection into the joint space.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array

from ldm.hooks import Hooks
from ldm.models.layers import Keys, TransformerLayer, layer_norm, lecun_normal, linear, normal

MEAN = (0.48145466, 0.4578275, 0.40821073)
SPREAD = (0.26862954, 0.26130258, 0.27577711)
"""Of the red, green and blue in CLIP's training pictures, in [0, 1]; the numbers of every public CLIP."""


@dataclass(frozen=True)
class VisionConfig:
    """The numbers of a vision tower; the defaults are CLIP ViT-L/14. ValueError for patches that fill no side."""

    image: int = 224  # pixels along each side
    patch: int = 14
    width: int = 1024
    mlp_width: int = 4096
    layers: int = 24
    heads: int = 16
    activation: str = "quick_gelu"  # or "gelu"
    projection: int = 768  # P; 0: no projection, the pooled state stays E wide

    def __post_init__(self) -> None:
        if self.image % self.patch:
            raise ValueError(f"patches of {self.patch} pixels do not fill a picture of {self.image}; choose a divisor")

    @property
    def tokens(self) -> int:
        """L: the class token, and one for each patch."""
        return 1 + (self.image // self.patch) ** 2


class VisionFeatures(NamedTuple):
    """``tokens`` [B, L, E], a state per token, class token first; ``pooled`` [B, P], the picture as one vector."""

    tokens: Array
    pooled: Array


def preprocess(pictures: Array) -> Array:
    """Pictures [..., 3] in [-1, 1] as CLIP was trained to see them: each colour shifted and scaled; float32."""
    return (pictures.astype(jnp.float32) * 0.5 + 0.5 - jnp.array(MEAN)) / jnp.array(SPREAD)


class VisionTower(nnx.Module):
    """Pictures [B, H, W, 3] in [-1, 1] -> :class:`VisionFeatures`."""

    def __init__(self, config: VisionConfig, keys: Keys):
        self.config = config
        E, patch = config.width, (config.patch, config.patch)
        self.patch_embedding = nnx.Conv(
            3, E, patch, strides=patch, padding="VALID", use_bias=False, kernel_init=lecun_normal, rngs=keys
        )
        self.class_embedding = nnx.Param(E**-0.5 * normal(keys.params(), (E,)))
        self.position_embedding = nnx.Param(E**-0.5 * normal(keys.params(), (config.tokens, E)))
        self.first_norm = layer_norm(E, keys)
        numbers = E, config.mlp_width, config.heads, config.activation, keys
        self.layers = nnx.List([TransformerLayer(*numbers, f"layers.{i}.attn") for i in range(config.layers)])
        self.final_norm = layer_norm(E, keys)
        self.projection = linear(E, config.projection, keys, bias=False) if config.projection else None

    def embed(self, pictures: Array) -> Array:
        """The row of tokens before the transformer, [B, L, E]: eq. (1) and CLIP's norm. ``pictures`` in [-1, 1]."""
        patches = self.patch_embedding(preprocess(pictures).astype(self.patch_embedding.kernel.dtype))
        first = jnp.broadcast_to(self.class_embedding, (len(pictures), 1, self.config.width))
        h = jnp.concatenate([first, patches.reshape(len(pictures), -1, self.config.width)], axis=1)
        return self.first_norm(h + self.position_embedding)

    def hidden_states(self, pictures: Array) -> Array:
        """[layers + 1, B, L, E]: the embedding, then the state after each layer, before the final norm.

        Raises ValueError for pictures of another shape than the tower's.
        """
        wanted = (self.config.image, self.config.image, 3)
        if pictures.shape[1:] != wanted:
            raise ValueError(f"this tower sees pictures {('B', *wanted)}, got {pictures.shape}; resize them first")
        states = [self.embed(pictures)]
        for layer in self.layers:
            states.append(layer(states[-1], Hooks()))
        return jnp.stack(states)

    def __call__(self, pictures: Array, skip: Array | int = 0) -> VisionFeatures:
        """Encodes ``pictures`` [B, H, W, 3] float in [-1, 1], H = W = ``config.image``; in the dtype of the weights.

        ``skip``, [] or one per picture [B] (may be traced), is how many of the last layers ``tokens`` leaves out: 1
        gives the penultimate states that image prompts use. Unlike a text's, they have no final norm, as in the
        public pipelines. ``pooled`` is always of the last layer: its class token, normed and projected.
        """
        states = self.hidden_states(pictures)
        pooled = self.final_norm(states[-1][:, 0])
        pooled = pooled if self.projection is None else self.projection(pooled)
        return VisionFeatures(states[self.config.layers - skip, jnp.arange(len(pictures))], pooled)
