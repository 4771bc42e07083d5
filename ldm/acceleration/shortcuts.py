"""Which shortcuts a run takes, as one value, and the call of the U-Net that takes them.

B batch of pairs: negative prompts, then prompts; H W latent size, C channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from ldm.acceleration.cached_features import cached, entrance, no_features
from ldm.acceleration.token_merging import finest_grid, merging
from ldm.guidance import positive_alone
from ldm.hooks import Hooks
from ldm.models.unet import UNetConfig

Call = Callable[[Array, Hooks], Array]  # the U-Net: (x [B or B/2,H,W,C], hooks) -> its answer


@dataclass(frozen=True)
class Shortcuts:
    """What a run leaves out. The defaults leave out nothing. All is compiled in, so that it costs nothing when off.

    skip_negative  the negative prompt's half of the batch where it has no weight: outside of the guidance interval, and
                   at scale 1. Changes nothing but rounding
    every          the whole U-Net is computed in every n-th step, in those between only its outermost blocks:
                   ``ldm.acceleration.cached_features``. 1: in all
    blocks         how many of the decoder's last residual blocks are computed in the steps between
    merge          share of the tokens merged, 0..0.75, in self-attention of the finest level that has any:
                   ``ldm.acceleration.token_merging``

    Raises ValueError for numbers out of range.
    """

    skip_negative: bool = False
    every: int = 1
    blocks: int = 2
    merge: float = 0.0

    def __post_init__(self):
        if self.every < 1 or self.every != int(self.every):
            raise ValueError(f"every must be a whole number of steps, 1 or more, got {self.every!r}")
        if not 0 <= self.merge <= 0.75:
            raise ValueError(f"merge must be between 0 and 0.75, since a token of each four stays, got {self.merge!r}")

    def hooks(self, config: UNetConfig, size: tuple[int, int]) -> Hooks:
        """The hooks of the U-Net for latents of ``size`` (rows, columns)."""
        own = Hooks()
        return own._replace(attend=merging(own.attend, finest_grid(config, size), self.merge)) if self.merge else own

    def memory(self, config: UNetConfig, batch: int, size: tuple[int, int], dtype: Any) -> Any:
        """What is remembered before the first step, for inputs [batch, *size, C]; None where nothing ever is."""
        return None if self.every == 1 else no_features(config, self.blocks, batch, size, dtype)

    def run(
        self, call: Call, config: UNetConfig, x: Array, step: Array, memory: Any, needed: Array | None
    ) -> tuple[Array, Any]:
        """The U-Net's answer to ``x`` in this step, and the memory for the next.

        needed [] bool: whether the negative half counts; None: there is none.
        """
        hooks = self.hooks(config, x.shape[1:3])

        def one(x: Array, memory: Any) -> tuple[Array, Any]:
            if self.every == 1:
                return call(x, hooks), memory
            whole = jnp.asarray(step) % self.every == 0
            return cached(lambda hooks: call(x, hooks), entrance(config, self.blocks), hooks, memory, whole)

        skips = self.skip_negative and needed is not None
        return positive_alone(one, x, memory, needed) if skips else one(x, memory)


NO_SHORTCUTS = Shortcuts()
