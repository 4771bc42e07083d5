"""A progress bar for loops that run inside one jitted program.

The compiled program calls :func:`tick` on the host after each step. It is one function for all runs, so that a program
compiled once reports to whichever bar is open.
"""

import contextlib
from collections.abc import Iterator

import jax
from tqdm import tqdm

_open: list[tqdm] = []


def tick(done: int, steps: int) -> None:
    """Moves the open bar, if any, to ``done`` of ``steps``."""
    if _open:
        _open[-1].total = int(steps)
        _open[-1].update(max(int(done) - _open[-1].n, 0))


@contextlib.contextmanager
def bar(show: bool, steps: int) -> Iterator[None]:
    """Shows a bar for ``steps`` steps while the block runs, where the output is a terminal."""
    with tqdm(total=steps, unit="step", leave=False, disable=None if show else True) as shown:
        _open.append(shown)
        try:
            yield
            jax.effects_barrier()
        finally:
            _open.remove(shown)
