"""Claims of papers and articles, measured: a number over several seeds, the range that the claim means, and a floor."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

import numpy as np

RESULTS = "LDM_RESULTS"  # the environment variable that names the file to which claims are added


def fast() -> bool:
    """Whether a lesson runs to show that it runs (``LDM_FAST=1``): with fewer steps, and figures that mean nothing."""
    return os.environ.get("LDM_FAST", "") not in ("", "0")


@dataclass(frozen=True)
class Claim:
    """What was measured. ``row``: its number in the table of claims; ``floor``: what no effect at all would give."""

    row: int | None
    text: str
    measured: tuple[float, ...]
    low: float
    high: float
    floor: float | None
    unit: str
    source: str
    reason: str

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.measured))

    @property
    def holds(self) -> bool:
        """Every seed lies in the range."""
        return all(self.low <= value <= self.high for value in self.measured)

    def __str__(self) -> str:
        half = (max(self.measured) - min(self.measured)) / 2
        floor = "" if self.floor is None else f", floor {figure(self.floor)}"
        limits = f"[{figure(self.low)}, {figure(self.high)}]"
        measured = f"{figure(self.mean)} ± {figure(half)} {self.unit}".rstrip()
        status = "holds" if self.holds else f"does not hold: {self.reason}"
        over = f"over {len(self.measured)} seeds, expected {limits}{floor}"
        return f"{self.text}: {measured} {over}; {status} ({self.source})"

    def _repr_html_(self) -> str:
        """A card for notebooks."""
        colour = "#2f855a" if self.holds else "#c53030"
        style = f"border-left:6px solid {colour};padding:.6em 1em;margin:.6em 0;background:rgba(128,128,128,.08)"
        return f'<div style="{style}"><b>{"✓" if self.holds else "✗"} Claim</b><br>{escape(str(self))}</div>'


def figure(value: float) -> str:
    """Three digits."""
    return "∞" if np.isinf(value) else f"{value:.3g}"


def claim(
    text: str,
    measured: Sequence[float],
    low: float = -np.inf,
    high: float = np.inf,
    *,
    source: str,
    floor: float | None = None,
    unit: str = "",
    row: int | None = None,
    reason: str = "",
) -> Claim:
    """Records a claim measured over three seeds or more; AssertionError if it does not hold and no reason is given.

    In a fast run (:func:`fast`) the range is not asserted and nothing is recorded.
    """
    made = Claim(row, text, tuple(float(v) for v in measured), float(low), float(high), floor, unit, source, reason)
    if len(made.measured) < 3 or not np.isfinite(made.measured).all():
        raise AssertionError(f"a claim wants three seeds or more, all finite, got {made.measured}")
    if fast():
        return made
    if not made.holds and not reason:
        raise AssertionError(str(made))
    if RESULTS in os.environ:
        path = Path(os.environ[RESULTS])
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        line = asdict(made) | {"holds": made.holds, "low": _finite(made.low), "high": _finite(made.high)}
        path.write_text(json.dumps([*earlier, line], ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return made


def _finite(value: float) -> float | None:
    """None for infinity, which JSON lacks."""
    return value if np.isfinite(value) else None
