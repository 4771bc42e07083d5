"""One training step: from a state and a batch to the next state, as one jitted program for one device or a mesh.

B examples of a batch, A microbatches, n steps made so far.

    gradient = mean over microbatches of d loss(params) / d params
    params   <- params + update(gradient)                       optax
    average  <- d average + (1 - d) params                      d = min(ema, (1 + n) / (10 + n))       eq. (1)

Randomness belongs to the example: example i of step n has the key fold_in(fold_in(key(seed), n), i). So a step is the
same however the batch is cut, into microbatches or over devices, and a run that resumes draws what it would have drawn.

Sources: averaging of weights for evaluation, "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239), appendix B;
the warm-up of eq. (1) is the one of TensorFlow's `ExponentialMovingAverage`; masters in float32 beside weights of half
precision, "Mixed Precision Training" (arXiv:1710.03740), section 3.1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.sharding import Mesh

from ldm.schedule import check_name
from ldm.training.sharding import keep_rows, keep_state, keep_whole

Metrics = dict[str, Array]
Loss = Callable[[Any, Any, Any, Array], tuple[Array, Metrics]]
"""(params, frozen, batch, keys [B]) -> loss [], a mean over the batch, and metrics [], means too. One key an example:
``jax.vmap`` over them, as the functions of ``ldm.training.losses`` do."""

DTYPES = ("float32", "bfloat16")
BLOCK = "block"
"""The name, by ``jax.ad_checkpoint.checkpoint_name``, of what leaves a block of a network."""


def products_with_weights(operation: Any, *operands: Any, **numbers: Any) -> bool:
    """A policy of ``jax.checkpoint``: keeps what linear layers make of feature maps [B, L, C] or [B, H, W, C].

    A block of attention scores is a product of two matrices, and must not be kept: all blocks together are L * S.
    """
    product = jax.checkpoint_policies.dots_with_no_batch_dims_saveable(operation, *operands, **numbers)
    return product and operands[0].ndim > 2


REMAT = {
    "none": None,
    "blocks": jax.checkpoint_policies.save_only_these_names(BLOCK),
    "dots": products_with_weights,
}
"""What the way back keeps of the way there, by name: see :func:`make_step`."""


class State(NamedTuple):
    """All that changes in training: one pytree, which is what a checkpoint holds."""

    step: Array  # [] int32, steps made so far
    params: Any  # float32 masters of what is trained: {"unet": {name: array}}
    average: Any  # of params over time, eq. (1); the same tree
    optimiser: Any  # optax's own state


def start(params: Any, optimiser: optax.GradientTransformation) -> State:
    """The state before the first step, with copies of ``params`` in float32: a step destroys the state it is given."""
    masters, average = (jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params) for _ in range(2))
    return State(jnp.zeros([], jnp.int32), masters, average, optimiser.init(masters))


def make_step(
    loss: Loss,
    optimiser: optax.GradientTransformation,
    *,
    seed: int,
    accumulate: int = 1,
    ema: float = 0.999,
    dtype: str = "float32",
    remat: str = "none",
    mesh: Mesh | None = None,
) -> Callable[[State, Any, Any], tuple[State, Metrics]]:
    """The jitted function (state, frozen, batch) -> (state, metrics). It compiles once for each shape of batch.

    loss        see ``Loss``; "loss" among the metrics is its value
    seed        of all randomness
    accumulate  A: the batch is cut into A microbatches, and their gradients averaged. The result is that of A = 1 for
                every loss whose examples do not see one another; a contrastive loss sees those of a microbatch
    ema         d in eq. (1); 0: the average is the parameters themselves
    dtype       of the weights that the loss is given: "float32", or "bfloat16". Masters, gradients, sums over
                microbatches and scalars among the parameters stay float32. ``frozen`` is handed over as it is
    remat       what is kept of the way there for the way back, the rest being computed again (Chen et al. 2016,
                arXiv:1604.06174): "none" recomputes nothing; "blocks" keeps what leaves each block of the U-Net; "dots"
                what linear layers make, and neither convolutions nor attention. Gradients are the same but for rounding
    mesh        of ``ldm.training.sharding.make_mesh``: the state is laid out, and the batch cut, as told there

    The state that is given is destroyed: its memory becomes the new one's. ``batch`` is a tree of arrays [B, ...], B
    divisible by A times the number of devices, else ValueError.

    Metrics are float32 []: those of the loss; loss; grad_norm, before clipping; learning_rate, where the optimiser
    tells it (that of ``ldm.training.optimiser`` does); skipped, 1 if the gradient was not finite. Then only ``step``
    counts on, and everything else is as before.
    """
    _check(accumulate, ema, dtype)
    loss = rematerialised(loss, remat)

    def gradient(weights: Any, frozen: Any, batch: Any, keys: Array) -> tuple[Any, Metrics]:
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(weights, frozen, batch, keys)
        single = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
        return keep_state(mesh, single(grads)), single({**metrics, "loss": value})

    def step(state: State, frozen: Any, batch: Any) -> tuple[State, Metrics]:
        size = _batch_size(batch, accumulate, 1 if mesh is None else mesh.size)
        examples = keep_rows(mesh, (batch, example_keys(seed, state.step, size)))
        weights = keep_whole(mesh, lowered(state.params, dtype))
        one = lambda part: gradient(weights, frozen, *keep_rows(mesh, part))
        grads, metrics = _mean(one, examples, accumulate)
        norm = optax.tree.norm(grads)
        fine = jnp.isfinite(norm)
        moved = _updated(state, grads, optimiser, ema)
        state = State(state.step + 1, *jax.tree.map(lambda new, old: jnp.where(fine, new, old), moved[1:], state[1:]))
        metrics |= {"grad_norm": norm, "skipped": (~fine).astype(jnp.float32), **_rate(state)}
        return keep_state(mesh, state), keep_whole(mesh, metrics)

    return jax.jit(step, donate_argnums=0)


def rematerialised(loss: Loss, remat: str) -> Loss:
    """``loss``, which keeps for its gradient what ``remat`` of ``REMAT`` says. Raises ValueError for another name."""
    policy = REMAT[check_name("remat", remat, REMAT)]
    return loss if policy is None else jax.checkpoint(loss, policy=policy)


def example_keys(seed: int, step: Array, count: int) -> Array:
    """The keys [count] of the examples of a step: fold_in(fold_in(key(seed), step), index)."""
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(count))


def lowered(params: Any, dtype: str) -> Any:
    """Parameters as the loss sees them: arrays of floating numbers in ``dtype``, scalars as they are."""
    small = lambda p: p.ndim > 0 and jnp.issubdtype(p.dtype, jnp.floating)
    return jax.tree.map(lambda p: p.astype(dtype) if small(p) else p, params)


def _updated(state: State, grads: Any, optimiser: optax.GradientTransformation, ema: float) -> State:
    updates, optimiser_state = optimiser.update(grads, state.optimiser, state.params)
    params = optax.apply_updates(state.params, updates)
    n = state.step.astype(jnp.float32)
    d = jnp.minimum(ema, (1 + n) / (10 + n))  # eq. (1)
    average = jax.tree.map(lambda old, new: d * old + (1 - d) * new, state.average, params)
    return State(state.step, params, average, optimiser_state)


def _mean(one: Callable[[Any], Any], examples: Any, count: int) -> Any:
    """The mean of ``one`` over ``count`` equal parts of a batch: every count-th example, so that no device's rows have
    to move to another."""
    if count == 1:
        return one(examples)
    cut = lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)  # [A, B / A, ...]
    parts = jax.tree.map(cut, examples)
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, one(part)), None), zero, parts)
    return jax.tree.map(lambda x: x / count, total)


def _rate(state: State) -> Metrics:
    rate = optax.tree_utils.tree_get(state.optimiser, "learning_rate")
    return {} if rate is None else {"learning_rate": rate}


def _batch_size(batch: Any, accumulate: int, devices: int) -> int:
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
    sizes = {shape[0] if shape else None for shape in shapes}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(f"every array of a batch needs the same first axis, got the shapes {shapes}"[:300])
    (size,) = sizes
    if size == 0 or size % (accumulate * devices):
        raise ValueError(
            f"a batch of {size} cannot be cut into {accumulate} microbatches on {devices} devices: "
            f"take a multiple of {accumulate * devices}"
        )
    return size


def _check(accumulate: int, ema: float, dtype: str) -> None:
    if accumulate < 1 or accumulate != int(accumulate):
        raise ValueError(f"accumulate must be a whole number of 1 or more, got {accumulate!r}")
    if not 0 <= ema < 1:
        raise ValueError(f"ema must be at least 0 and below 1, got {ema!r}")
    if dtype not in DTYPES:
        raise ValueError(f"training computes in {' or '.join(DTYPES)}, got dtype {dtype!r}")
