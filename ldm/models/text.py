"""The CLIP text towers: ViT-L/14 (Stable Diffusion 1.x), OpenCLIP ViT-H/14 (2.x); ViT-bigG/14 by its numbers.

Shapes: B batch, S tokens (77), E width, P width of the joint text-image space.

Source: "Learning Transferable Visual Models From Natural Language Supervision" (arXiv:2103.00020), section 2.4: a
transformer with causal masking, norms first, whose state at the end-of-text token is projected into the joint space.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array

from ldm.attention import attention
from ldm.hooks import Hooks
from ldm.models.layers import Keys, TransformerLayer, layer_norm, linear, normal


@dataclass(frozen=True)
class TextConfig:
    """The numbers of a text tower; the defaults are CLIP ViT-L/14."""

    vocabulary: int = 49408
    length: int = 77
    width: int = 768
    mlp_width: int = 3072
    layers: int = 12  # Stable Diffusion 2.x: 23 of ViT-H's 24, since it was trained on the penultimate layer
    heads: int = 12
    activation: str = "quick_gelu"  # or "gelu"
    projection: int = 0  # P; 0: no projection, the pooled state stays E wide
    end_id: int = 49407


class TextFeatures(NamedTuple):
    """``context`` [B, S, E], a state per token after the final norm; ``pooled`` [B, P], the text as one vector."""

    context: Array
    pooled: Array


def causal_attention(site: str, q: Array, k: Array, v: Array) -> Array:
    """Attention in which token i sees tokens 0..i only. Shapes as in ``ldm.attention.attention``."""
    causal = jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))
    return attention(q, k, v, mask=causal)


def small(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Fresh embeddings, of standard deviation 0.02 as CLIP's were."""
    return 0.02 * normal(key, shape, dtype)


class TextTower(nnx.Module):
    """Token ids [B, S] -> :class:`TextFeatures`."""

    def __init__(self, config: TextConfig, keys: Keys):
        self.config = config
        self.token_embedding = nnx.Embed(config.vocabulary, config.width, embedding_init=small, rngs=keys)
        self.position_embedding = nnx.Param(0.01 * normal(keys.params(), (config.length, config.width)))
        numbers = config.width, config.mlp_width, config.heads, config.activation, keys
        self.layers = nnx.List([TransformerLayer(*numbers, f"layers.{i}.attn") for i in range(config.layers)])
        self.final_norm = layer_norm(config.width, keys)
        self.projection = linear(config.width, config.projection, keys, bias=False) if config.projection else None

    def hidden_states(self, ids: Array) -> Array:
        """[layers + 1, B, S, E]: the embedding, then the state after each layer, before the final norm."""
        h = self.token_embedding(ids) + self.position_embedding[: ids.shape[1]]
        states = [h]
        for layer in self.layers:
            states.append(layer(states[-1], Hooks(attend=causal_attention)))
        return jnp.stack(states)

    def __call__(self, ids: Array, skip: Array | int = 0) -> TextFeatures:
        """Encodes ``ids`` int32 [B, S].

        ``skip``, [] or one per text [B] (may be traced), is how many of the last layers ``context`` leaves out: 0 none,
        1 gives the penultimate layer. The final norm is applied all the same, as in the public pipelines. ``pooled``
        is always of the last layer, at the first end-of-text token.
        """
        states = self.hidden_states(ids)
        last = self.final_norm(states[-1])  # [B, S, E]
        end = jnp.argmax(ids == self.config.end_id, axis=-1)  # [B]
        pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
        pooled = pooled if self.projection is None else self.projection(pooled)
        batch = jnp.arange(ids.shape[0])
        return TextFeatures(self.final_norm(states[self.config.layers - skip, batch]), pooled)
