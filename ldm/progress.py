"""A progress bar for a run whose steps a compiled program makes.

The bar stays outside of the program: one that calls back to the host can be kept neither in a compilation cache nor as
an export. Where a bar is seen, the program is called once for each step; elsewhere once for all of them.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tqdm import tqdm


def watched(go: Callable[[Any, Any, Any], tuple[Any, jax.Array]], state: Any, first: Any, last: Any, show: bool) -> Any:
    """A run from step ``first`` to ``last`` by ``go(state, first, stop) -> (state, a sign that it is done)``.

    With ``show``, and where the output is a terminal, a bar moves as steps are done. The program of the next step is
    handed to the device before the last one is waited for, so that the device never waits for the bar.
    """
    if not (show and sys.stderr.isatty()):
        return go(state, first, last)[0]
    signs = []
    with tqdm(total=int(last) - int(first), unit="step", leave=False) as bar:
        for stop in range(int(first) + 1, int(last) + 1):
            state, sign = go(state, np.int32(stop - 1), np.int32(stop))
            signs.append(sign)
            if len(signs) > 1:
                signs[-2].block_until_ready()
                bar.update()
        jax.block_until_ready(signs)
        bar.update(1)
    return state
