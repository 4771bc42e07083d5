"""Control: pictures that steer a run, through ControlNets and T2I-Adapters, as many at once as one likes.

Shapes: N pictures, H W their size; B rows of one call of the U-Net, negative prompts first; n residuals of a net.

How strong a net is may differ from residual to residual, finest first, the middle last, and from one half of a guided
batch to the other ("Adding Conditional Control to Text-to-Image Diffusion Models", arXiv:2302.05543, section 3.4):

    uniform      1
    resolution   64 / h, h the side of a 512 x 512 picture's features: the paper's "CFG resolution weighting"
    guess        0.825^(n - 1 - i): the published program's guess mode
    log          10^(i / (n - 1) - 1): another library's
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from PIL import Image

from ldm.acceleration.int8 import tied
from ldm.adapters.controlnet import ControlNet, ControlNetConfig, Net
from ldm.adapters.interval import interval, number
from ldm.adapters.t2i_adapter import T2IAdapter, T2IAdapterConfig, check_fit, with_features
from ldm.conditioning import Conditioning
from ldm.hints import hint_picture
from ldm.hooks import Hooks
from ldm.models.layers import bind, whole
from ldm.models.unet import Features, UNetConfig
from ldm.samplers import Plan
from ldm.schedule import check_name


@dataclass(frozen=True)
class Control:
    """One net and what it sees; all but the net are run-time values.

    hint          [H, W, 3] or [N, H, W, 3] uint8; one of another size than the pictures is resized, with a warning
    scale         0: as if it were not there
    start, end    the share of the steps, 0..1, from which and up to which it steers
    rule          "uniform", "resolution", "guess" or "log"
    prompts_only  leave the negative prompts' half of the batch alone: guidance then amplifies the hint too
    """

    net: Net
    hint: Any
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    rule: str = "uniform"
    prompts_only: bool = False


class Steering(NamedTuple):
    """The run-time numbers of one control. It steers at noise levels in (low, high]."""

    weights: Array  # [n] float32
    negative: Array  # [] float32: 1, or 0 where the negative prompts' half is left alone
    high: Array  # []
    low: Array  # []


# ---------------------------------------------------------------------------------------------------------------------
# How strong, where


def uniform(levels: Sequence[int]) -> np.ndarray:
    """The same for every residual. ``levels`` [n] are the U-Net's levels that they are of, 0 the finest."""
    return np.ones(len(levels), np.float32)


def resolution(levels: Sequence[int]) -> np.ndarray:
    """64 / h, that is 2^level: 1 1 1 2 2 2 4 4 4 8 8 8 8 for Stable Diffusion."""
    return np.float32(2.0) ** np.asarray(levels, np.float32)


def guess(levels: Sequence[int]) -> np.ndarray:
    """0.825^(n - 1 - i): 0.0994 .. 1 for Stable Diffusion's 13."""
    return np.float32(0.825) ** np.arange(len(levels) - 1, -1, -1, dtype=np.float32)


def log(levels: Sequence[int]) -> np.ndarray:
    """From 0.1 to 1 in equal ratios."""
    return np.logspace(-1, 0, len(levels), dtype=np.float32)


RULES = {"uniform": uniform, "resolution": resolution, "guess": guess, "log": log}


def levels_of(unet: UNetConfig) -> list[int]:
    """The level of each skip, and of the middle: 0 0 0 1 1 1 2 2 2 3 3 3 3 for Stable Diffusion."""
    last = len(unet.channels) - 1
    blocks = [[level] * unet.blocks + [level + 1] * (level < last) for level in range(last + 1)]
    return [0, *(level for own in blocks for level in own), last]


# ---------------------------------------------------------------------------------------------------------------------
# What a call asks for, on the host


def steering_of(control: Control, plan: Plan) -> Steering:
    """The numbers of a control for a run of ``plan``. Raises ValueError."""
    scale = number("scale of a control", control.scale)
    high, low = interval("a control", control.start, control.end, plan)
    check_name("rule", control.rule, RULES)
    config = control.net.config
    if isinstance(config, T2IAdapterConfig):
        if control.rule != "uniform":
            raise ValueError(f"rule {control.rule!r} is for ControlNets; a T2I-Adapter knows only 'uniform'")
        weights = np.ones(len(config.sites), np.float32)
    else:
        weights = RULES[control.rule](levels_of(config.unet))
    return Steering(np.float32(scale) * weights, np.float32(not control.prompts_only), high, low)


def hints_of(control: Control, count: int, size: tuple[int, int]) -> np.ndarray:
    """[N, H, W, C] float32 in [0, 1], C as the net sees: the hint of each picture of ``size`` (width, height).

    Raises ValueError for what is no picture, and for another number of them.
    """
    given = np.asarray(control.hint)
    many = list(given) if given.ndim == 4 else [given]
    if len(many) not in (1, count):
        raise ValueError(f"there are {len(many)} hints for {count} pictures: give one for all, or one for each")
    fitted = np.stack([hint_picture(one, size) for one in many])
    if hint_channels(control.net.config) == 1:
        fitted = np.stack([np.asarray(Image.fromarray(one).convert("L"))[..., None] for one in fitted])
    return np.broadcast_to(fitted, (count, *fitted.shape[1:])).astype(np.float32) / 255


def hint_channels(config: ControlNetConfig | T2IAdapterConfig) -> int:
    """Of the hint that a net sees."""
    return config.hint_channels if isinstance(config, ControlNetConfig) else config.in_channels


def check_net(net: Net, unet: UNetConfig, factor: int) -> None:
    """Raises ValueError unless a net is for this U-Net, and sees pictures, for an autoencoder of this factor."""
    channels = hint_channels(net.config)
    if channels not in (1, 3):
        raise ValueError(f"the net sees hints of {channels} channels, and pictures have 3, or 1 where they are grey")
    if isinstance(net.config, T2IAdapterConfig):
        check_fit(net.config, unet, factor)
        return
    own = net.config.unet
    if own.in_channels != unet.out_channels:
        raise ValueError(
            f"the ControlNet sees {own.in_channels} channels, and the model's latents have {unet.out_channels}"
        )
    for what in ("context_dim", "channels", "blocks"):
        theirs, ours = getattr(own, what), getattr(unet, what)
        if theirs != ours:
            raise ValueError(f"the ControlNet is for a U-Net with {what} {theirs}, and the model's has {ours}")
    smaller = 2 ** (len(net.config.widths) - 1)
    if smaller != factor:
        raise ValueError(
            f"the ControlNet makes hints {smaller} times smaller, and the model makes pictures {factor} times"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Inside the compiled program


Steer = Callable[[Array, Array, Array, Array, Hooks], tuple[Features | None, Hooks]]


def steered(configs: Sequence[Any], params: Any, hints: Sequence[Array], steering: Sequence[Steering]) -> Steer:
    """(x [B,H,W,C], t, sigma, context [B,S,E], hooks) -> what the U-Net takes as ``control=`` and ``hooks=``.

    The hints are looked at here, once; ControlNets run in every call in which they steer.
    """
    seen = [_look(config, own, hint) for config, own, hint in zip(configs, params, hints, strict=True)]

    def steer(x: Array, t: Array, sigma: Array, context: Array, hooks: Hooks) -> tuple[Features | None, Hooks]:
        total = None
        for config, own, features, how in zip(configs, params, seen, steering, strict=True):
            on = (sigma <= how.high) & (sigma > how.low)
            rows = _share(how, len(x), len(hints[0]))
            features = jax.tree.map(lambda a: _rows(a, len(x)), features)
            if isinstance(config, T2IAdapterConfig):
                weighed = {s: on * how.weights[i] * rows * a for i, (s, a) in enumerate(features.items())}
                hooks = with_features(weighed, hooks)
            else:
                net = partial(_control, config, own, features)
                found = _weighed(lax.cond(on, net, partial(_nothing, net), x, t, context), how.weights, rows)
                total = found if total is None else jax.tree.map(jnp.add, total, found)
        return total, hooks

    return steer


def _control(config: ControlNetConfig, params: Any, seen: Array, x: Array, t: Array, context: Array) -> Features:
    return _module(config, tied(params, x)).control(x, t, Conditioning(context), seen)


def _nothing(net: Callable[..., Features], *given: Array) -> Features:
    """Zeros in place of what a net makes of ``given``, for noise levels at which it does not steer."""
    return jax.tree.map(lambda made: jnp.zeros(made.shape, made.dtype), jax.eval_shape(net, *given))


def _look(config: Any, params: Any, hint: Array) -> Any:
    net = _module(config, params)
    return net(hint) if isinstance(config, T2IAdapterConfig) else net.see(hint)


def _module(config: Any, params: Any) -> ControlNet | T2IAdapter:
    return bind(T2IAdapter if isinstance(config, T2IAdapterConfig) else ControlNet, config, whole(params))


def _rows(array: Array, batch: int) -> Array:
    """[N, ...] of the pictures -> [B, ...] of a guided call, or of its second half alone."""
    return jnp.concatenate([array] * (batch // len(array)))


def _share(how: Steering, batch: int, count: int) -> Array:
    """[B, 1, 1, 1]: how much each row is steered."""
    negative = jnp.full(batch - count, how.negative)
    return jnp.concatenate([negative, jnp.ones(count)])[:, None, None, None]


def _weighed(found: Features, weights: Array, rows: Array) -> Features:
    scale = lambda i, a: (weights[i] * rows * a).astype(a.dtype)
    skips = tuple(scale(i, skip) for i, skip in enumerate(found.skips))
    return Features(skips, scale(len(skips), found.middle))
