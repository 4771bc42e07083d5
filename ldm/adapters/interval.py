"""When a control or an image prompt counts: a share of the steps, as noise levels."""

from typing import Any

import numpy as np

from ldm.samplers import Plan


def number(name: str, value: Any) -> float:
    """A finite number. Raises ValueError naming what it is of."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not np.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def interval(what: str, start: Any, end: Any, plan: Plan) -> tuple[np.float32, np.float32]:
    """(high, low): from ``start`` up to ``end`` of the steps, 0..1, is at noise levels in (low, high].

    Raises ValueError.
    """
    start, end = number(f"start of {what}", start), number(f"end of {what}", end)
    if not 0 <= start < end <= 1:
        raise ValueError(f"{what} counts from start to end, 0 <= start < end <= 1, got {start:g} and {end:g}")
    first, last = int(plan.first), int(plan.steps)
    count, levels = last - first, np.asarray(plan.levels)
    on = [first + i for i in range(count) if i / count >= start and (i + 1) / count <= end]
    high, low = (levels[on[0]], levels[on[-1] + 1]) if on else (-1.0, -1.0)
    low = -1.0 if on and on[-1] + 1 == last else low  # to the very end, wherever that is
    return np.float32(high), np.float32(low)
