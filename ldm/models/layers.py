"""The layers that the models share, and the bridge between Flax modules and plain dictionaries of arrays.

Shapes: B batch, H W height and width, L tokens, N heads, D head width, C channels. Pictures are NHWC everywhere.

A model here is a class and a frozen configuration; its parameters are ONE flat dictionary from the dotted path of each
array to the array: ``{"encoder.down.0.res.1.conv1.kernel": …}``. Converters, LoRA and files work on that dictionary;
:func:`bind` turns it back into a Flax module inside a jitted function.

Sources: "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239), appendix B, for the residual block; "Learning
Transferable Visual Models From Natural Language Supervision" (arXiv:2103.00020), section 2.4, for the transformer's.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from ldm.convolution import conv3x3
from ldm.hooks import Hooks

Params = dict[str, Array]


def dtype_of(params: Params) -> np.dtype:
    """The dtype of a model's parameters, which is the one that it computes in."""
    return next(iter(params.values())).dtype


def array_of(leaf: Any) -> Array:
    """The array, where ``leaf`` is a recipe for one: anything with ``whole() -> Array`` and ``dtype``.

    Such are kernels in eight bits (``ldm.acceleration.int8``) and those that a LoRA changes (``ldm.adapters.lora``).
    """
    return leaf.whole() if hasattr(leaf, "whole") else leaf


def whole(params: Params) -> Params:
    """The parameters as arrays: see :func:`array_of`. Inside jit, each is then made where it is used."""
    return {name: array_of(leaf) for name, leaf in params.items()}


class Keys:
    """Random keys for ``rngs=``: the n-th key is ``fold_in(key, n)``. (``nnx.Rngs`` is quadratic under tracing.)"""

    def __init__(self, seed: int | Array):
        self.key = jax.random.key(seed) if isinstance(seed, int) else seed
        self.count = 0

    def params(self) -> Array:
        """The next key."""
        self.count += 1
        return jax.random.fold_in(self.key, self.count)


@functools.cache
def _skeleton(model: type[nnx.Module], config: Any):
    graphdef, state = nnx.split(nnx.eval_shape(lambda: model(config, Keys(0))))
    return graphdef, {".".join(map(str, path)): (path, value) for path, value in nnx.to_flat_state(state)}


def shapes(model: type[nnx.Module], config: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Name, shape and dtype of every parameter of ``model(config)``, without making one of them."""
    return {name: jax.ShapeDtypeStruct(var.shape, var.dtype) for name, (_, var) in _skeleton(model, config)[1].items()}


def bind(model: type[nnx.Module], config: Any, params: Params) -> Any:
    """The module ``model(config)`` with the arrays of ``params`` in it. Call it inside jit: it is free there.

    Raises KeyError if a parameter is missing; names beyond the model's own are ignored.
    """
    graphdef, entries = _skeleton(model, config)
    return nnx.merge(
        graphdef, nnx.from_flat_state((path, nnx.Param(params[name])) for name, (path, _) in entries.items())
    )


def init(model: type[nnx.Module], config: Any, seed: int | Array) -> Params:
    """Random parameters for training ``model(config)`` from scratch."""
    _, state = nnx.split(model(config, Keys(seed)))
    return {".".join(map(str, path)): var[...] for path, var in nnx.to_flat_state(state)}


def normal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Unit Gaussian numbers from NumPy, for fresh parameters: JAX would compile a program for each shape, which takes
    ten seconds for a model that is small. Under a trace, where only shapes matter, they are JAX's own."""
    if isinstance(key, jax.core.Tracer):
        return jax.random.normal(key, shape, dtype)
    generator = np.random.Generator(np.random.Philox(key=np.asarray(jax.random.key_data(key)).astype(np.uint64)))
    return jax.device_put(generator.standard_normal(shape, np.float32).astype(dtype))


def lecun_normal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Gaussian numbers of variance 1 / fan-in, for a kernel whose last axis is its output."""
    return normal(key, shape, dtype) * np.asarray(math.prod(shape[:-1]) ** -0.5, dtype)


def linear(c_in: int, c_out: int, keys: Keys, bias: bool = True) -> nnx.Linear:
    """x @ kernel + bias over the last axis; on NHWC features this is a 1x1 convolution."""
    return nnx.Linear(c_in, c_out, use_bias=bias, kernel_init=lecun_normal, rngs=keys)


def zero_linear(c_in: int, c_out: int, keys: Keys) -> nnx.Linear:
    """A linear layer that begins at zero: it adds nothing until it has learned something."""
    return nnx.Linear(c_in, c_out, kernel_init=nnx.initializers.zeros_init(), rngs=keys)


class Conv3x3(nnx.Conv):
    """A 3x3 convolution, kernel HWIO, that chooses its form: see ``ldm.convolution``."""

    def __call__(self, x: Array) -> Array:
        if self.strides != 1 or self.padding != 1:
            return super().__call__(x)
        y = conv3x3(x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...]


def conv(
    c_in: int, c_out: int, keys: Keys, stride: int = 1, padding: Any = 1, bias: bool = True, zero: bool = False
) -> Conv3x3:
    """A 3x3 convolution, kernel HWIO, padded by a pixel on every side unless told otherwise; ``zero``: begins at 0."""
    start = nnx.initializers.zeros_init() if zero else lecun_normal
    return Conv3x3(c_in, c_out, (3, 3), strides=stride, padding=padding, use_bias=bias, kernel_init=start, rngs=keys)


def group_norm(channels: int, groups: int, eps: float, keys: Keys) -> nnx.GroupNorm:
    """Group normalisation with statistics in float32; the two-pass variance keeps public weights exact."""
    return nnx.GroupNorm(channels, groups, epsilon=eps, use_fast_variance=False, rngs=keys)


def layer_norm(width: int, keys: Keys, eps: float = 1e-5) -> nnx.LayerNorm:
    """Layer normalisation over the last axis, statistics in float32."""
    return nnx.LayerNorm(width, epsilon=eps, use_fast_variance=False, rngs=keys)


def quick_gelu(x: Array) -> Array:
    """x * sigmoid(1.702 x): the approximation that OpenAI's CLIP was trained with."""
    return x * nnx.sigmoid(1.702 * x)


def exact_gelu(x: Array) -> Array:
    """x * Phi(x), by the error function: what OpenCLIP's towers were trained with."""
    return nnx.gelu(x, approximate=False)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": exact_gelu}


def upsample_nearest(h: Array) -> Array:
    """[B, H, W, C] -> [B, 2H, 2W, C]: each pixel becomes a 2x2 block."""
    B, H, W, C = h.shape
    return jnp.broadcast_to(h[:, :, None, :, None, :], (B, H, 2, W, 2, C)).reshape(B, 2 * H, 2 * W, C)


class ResBlock(nnx.Module):
    """Two 3x3 convolutions around a shortcut; with ``c_time``, the time embedding is added between them."""

    def __init__(self, c_in: int, c_out: int, groups: int, eps: float, keys: Keys, c_time: int = 0):
        self.norm1 = group_norm(c_in, groups, eps, keys)
        self.conv1 = conv(c_in, c_out, keys)
        self.time = linear(c_time, c_out, keys) if c_time else None
        self.norm2 = group_norm(c_out, groups, eps, keys)
        self.conv2 = conv(c_out, c_out, keys)
        self.skip = linear(c_in, c_out, keys) if c_in != c_out else None

    def __call__(self, x: Array, emb: Array | None = None) -> Array:
        h = self.conv1(nnx.silu(self.norm1(x)))  # [B, H, W, c_out]
        if self.time is not None:
            h = h + self.time(nnx.silu(emb))[:, None, None, :]
        h = self.conv2(nnx.silu(self.norm2(h)))
        return h + (x if self.skip is None else self.skip(x))


class Attention(nnx.Module):
    """Multi-head attention from ``x`` [B, L, C] to ``context`` [B, S, E] (or itself), through the attend hook."""

    def __init__(self, width: int, c_context: int, heads: int, keys: Keys, site: str, qkv_bias: bool = False):
        self.q = linear(width, width, keys, qkv_bias)
        self.k = linear(c_context, width, keys, qkv_bias)
        self.v = linear(c_context, width, keys, qkv_bias)
        self.out = linear(width, width, keys)
        self.heads, self.site = heads, site

    def __call__(self, x: Array, context: Array | None, hooks: Hooks) -> Array:
        context = x if context is None else context
        split = lambda y: y.reshape(*y.shape[:2], self.heads, -1)  # [B, L, N, D]
        y = hooks.attend(self.site, split(self.q(x)), split(self.k(context)), split(self.v(context)))
        return self.out(y.reshape(x.shape))


class TransformerLayer(nnx.Module):
    """Self-attention and a two-layer MLP, each after a norm and around a shortcut: [B, L, width] -> the same.

    ``activation`` is one of ``ACTIVATIONS``; who may attend to whom is the attend hook's choice.
    """

    def __init__(self, width: int, mlp_width: int, heads: int, activation: str, keys: Keys, site: str):
        self.norm1, self.norm2 = layer_norm(width, keys), layer_norm(width, keys)
        self.attn = Attention(width, width, heads, keys, site, qkv_bias=True)
        self.fc1, self.fc2 = linear(width, mlp_width, keys), linear(mlp_width, width, keys)
        self.activation = activation

    def __call__(self, h: Array, hooks: Hooks) -> Array:
        h = h + self.attn(self.norm1(h), None, hooks)
        return h + self.fc2(ACTIVATIONS[self.activation](self.fc1(self.norm2(h))))
