"""CLIP's pair of towers: how well a picture and a text fit, by the angle between their vectors.

Shapes: B pictures, K texts, P width of the joint space.

Source: "Learning Transferable Visual Models From Natural Language Supervision" (arXiv:2103.00020), figure 3 and section
2.5: the scale is learned as a logarithm, begins at 1 / 0.07, and is held to 100 or less.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

FIRST_LOG_SCALE, LARGEST_LOG_SCALE = math.log(1 / 0.07), math.log(100)
SHORTEST = 1e-6


def unit(vectors: Array) -> Array:
    """Vectors [..., P] at length 1, float32; what is shorter than ``SHORTEST`` stays shorter than 1."""
    vectors = vectors.astype(jnp.float32)
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.sum(vectors**2, axis=-1, keepdims=True), SHORTEST**2))


def similarity(text: Array, image: Array, log_scale: Array | float = 0.0) -> Array:
    """[B, K] float32: the cosine of each picture [B, P] and each text [K, P], times e^``log_scale`` (100 at most).

    With the learned scale these are logits: a softmax along a row says which text fits the picture, one down a column
    which picture fits the text. With 0 they are cosines.
    """
    scale = jnp.exp(jnp.minimum(jnp.asarray(log_scale, jnp.float32), LARGEST_LOG_SCALE))
    return scale * unit(image) @ unit(text).T
