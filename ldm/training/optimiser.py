"""The optimiser: AdamW or Muon; warm-up, a cosine learning rate with restarts, clipping, no decay of biases and norms.

Sources: AdamW, "Decoupled Weight Decay Regularization" (arXiv:1711.05101), algorithm 2; Muon at the size of AdamW's
steps, "Muon is Scalable for LLM Training" (arXiv:2502.16982), eq. (4); restarts, "SGDR: Stochastic Gradient Descent
with Warm Restarts" (arXiv:1608.03983), eq. (5); clipping by the norm of the whole gradient, "On the difficulty of
training recurrent neural networks" (arXiv:1211.5063), algorithm 1.

Everything about time is a fraction of the run, so that a run of any length has the same curve.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax import Array

from ldm.schedule import check_name

SCHEDULES = ("cosine", "constant")
METHODS = ("adamw", "muon")
ADAM_EPS = 1e-8
MUON_RMS = 0.2  # root mean square of Muon's steps, before the rate: about that of AdamW's


@dataclass(frozen=True)
class OptimiserConfig:
    """The numbers of an optimiser.

    learning_rate   the highest; reached at the end of the warm-up
    schedule        after it: "cosine", down to ``floor``, or "constant"
    warmup          fraction of the steps in which the rate rises in a line from near 0
    restarts        how many cosines of equal length; 1: one fall over the whole run
    floor           the lowest rate, as a fraction of the highest
    weight_decay    of arrays with two axes or more, times the rate
    clip            the greatest norm of the gradient; infinity: any
    b1, b2          decay of Adam's two moments
    method          "adamw"; or "muon": steps of kernels have all singular values alike, and AdamW does the rest
                    (embeddings, biases, scales). Small networks learn in far fewer steps by it
    """

    learning_rate: float = 3e-4
    schedule: str = "cosine"
    warmup: float = 0.02
    restarts: int = 1
    floor: float = 0.02
    weight_decay: float = 0.01
    clip: float = 1.0
    b1: float = 0.9
    b2: float = 0.99
    method: str = "adamw"

    def __post_init__(self):
        check_name("method of the optimiser", self.method, METHODS)
        check_name("learning-rate schedule", self.schedule, SCHEDULES)
        for name, least, most in LIMITS:
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name} of the optimiser must be between {least} and {most}, got {value!r}")
        if self.restarts != int(self.restarts):
            raise ValueError(f"restarts of the optimiser must be a whole number, got {self.restarts!r}")


NEARLY_ONE = 1 - 1e-9
LIMITS = (  # name, least, most
    ("learning_rate", 0.0, 10.0),
    ("warmup", 0.0, NEARLY_ONE),
    ("restarts", 1, 10_000),
    ("floor", 0.0, 1.0),
    ("weight_decay", 0.0, 10.0),
    ("clip", 1e-9, math.inf),
    ("b1", 0.0, NEARLY_ONE),
    ("b2", 0.0, NEARLY_ONE),
)


class RateState(NamedTuple):
    """Updates made, [] int32, and the learning rate of the last one, [] float32."""

    count: Array
    learning_rate: Array


def rate_at(config: OptimiserConfig, fraction: Array) -> Array:
    """The learning rate when ``fraction`` of the run is done, any shape, 0 to 1; float32.

    In the warm-up: fraction / warmup. After it, with the rest of the run cut into ``restarts`` parts and u, 0 to 1,
    the place in a part: floor + (1 - floor) (1 + cos(pi u)) / 2, SGDR's eq. (5). All times ``learning_rate``.
    """
    fraction = jnp.clip(jnp.asarray(fraction, jnp.float32), 0.0, 1.0)
    rest = (fraction - config.warmup) / (1 - config.warmup) * config.restarts
    place = jnp.where(fraction < 1, rest - jnp.floor(rest), 1.0)
    fall = 0.5 * (1 + jnp.cos(jnp.pi * place)) if config.schedule == "cosine" else jnp.ones_like(place)
    share = jnp.where(fraction < config.warmup, fraction / max(config.warmup, 1e-9), lerp(config.floor, 1.0, fall))
    return config.learning_rate * share


def lerp(a: float, b: float, share: Array) -> Array:
    """a where share is 0, b where it is 1, a line between."""
    return a + (b - a) * share


def make(config: OptimiserConfig, steps: int) -> optax.GradientTransformation:
    """AdamW or Muon for a run of ``steps`` updates. The n-th, from 1, has the rate at the fraction n / (steps + 1).

    So neither the first nor the last update is lost to a rate of 0. Raises ValueError if ``steps`` is not positive.
    """
    if steps < 1:
        raise ValueError(f"a run needs 1 step or more, got {steps}")
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        direction(config),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        scale_by_rate(lambda count: rate_at(config, (count + 1) / (steps + 1))),
    )


def direction(config: OptimiserConfig) -> optax.GradientTransformation:
    """Where to go, before decay and rate: Adam's m / sqrt(v), or for kernels Muon's, of the same mean square."""
    adam = optax.scale_by_adam(config.b1, config.b2, ADAM_EPS)
    if config.method == "adamw":
        return adam
    muon = optax.chain(optax.contrib.scale_by_muon(weight_dimension_numbers=as_matrices), optax.stateless(to_rms))
    return optax.partition({"muon": muon, "adam": adam}, kernels)


def kernels(params: Any) -> Any:
    """For each array the part of the optimiser that steps it: "muon" for kernels of two axes or more, else "adam"."""
    name = lambda path: str(getattr(path[-1], "key", "")).rsplit(".", 1)[-1]
    return jax.tree_util.tree_map_with_path(
        lambda path, p: "muon" if p.ndim > 1 and name(path) == "kernel" else "adam", params
    )


def as_matrices(params: Any) -> Any:
    """How Muon sees kernels [..., in, out]: as matrices, all axes but the last taken together."""
    return jax.tree.map(lambda p: optax.contrib.MuonDimensionNumbers(tuple(range(p.ndim - 1)), p.ndim - 1), params)


def to_rms(updates: Any, params: Any) -> Any:
    """Orthogonal steps scaled to a root mean square of ``MUON_RMS``. arXiv:2502.16982, eq. (4)."""
    return jax.tree.map(lambda u: MUON_RMS * max(u.size // u.shape[-1], u.shape[-1]) ** 0.5 * u, updates)


def decayed(params: Any) -> Any:
    """True for arrays that weight decay is for: matrices and kernels, not biases, scales of norms and scalars."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def scale_by_rate(rate: Callable[[Array], Array]) -> optax.GradientTransformation:
    """Times -rate(updates made so far), keeping the rate in its state, where reports find it as ``learning_rate``."""

    def init(params: Any) -> RateState:
        return RateState(jnp.zeros([], jnp.int32), jnp.zeros([], jnp.float32))

    def update(updates: Any, state: RateState, params: Any = None) -> tuple[Any, RateState]:
        now = jnp.asarray(rate(state.count), jnp.float32)
        return jax.tree.map(lambda u: -now * u, updates), RateState(state.count + 1, now)

    return optax.GradientTransformation(init, update)
