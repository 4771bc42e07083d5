"""What a training run tells: a line of metrics now and then, a curve, and sheets of samples.

    metrics.jsonl            one JSON object a line, each the mean of the steps since the line before
    curve.png                the loss and the learning rate over the steps
    samples/step-000123.png  pictures drawn by the averaged parameters

A line has "step", "seconds" of training so far, "samples_per_second", and the means of the step's metrics; null stands
for a number that is not finite. A run that goes on from a checkpoint cuts the lines beyond it and counts on.
"""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation
from PIL import Image

from ldm.files import write_whole

GAP, PAPER = 2, 255  # pixels between samples, and their grey
MOST_POINTS = 2000  # of a curve
RAW, SMOOTH, RATE = "#b8cbe0", "#1f5fa8", "#c8692b"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Says which file it was that could not be written. Raises OSError."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror or error})") from None


class Metrics:
    """The file of metrics, and those of the steps since its last line. ``batch``: examples a step."""

    def __init__(self, path: Path, batch: int, done: int = 0):
        self.path, self.batch = path, batch
        self.lines = [line for line in read(path) if line["step"] <= done]
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        with naming(path):
            write_whole(path, lambda file: file.write(text.encode()))
        self._steps: list[dict[str, Any]] = []
        self._before = self.lines[-1]["seconds"] if self.lines else 0.0
        self._began = self._last = time.perf_counter()

    def add(self, metrics: dict[str, Any]) -> None:
        """Takes the metrics of one step, arrays []. Waits for those of the step before, so the host runs one ahead."""
        if self._steps:
            jax.block_until_ready(self._steps[-1])
        self._steps.append(metrics)

    def write(self, step: int, measured: dict[str, float] | None = None) -> dict[str, Any]:
        """Adds the line of ``step``, and returns it; ``measured``: figures taken at this step, as they are."""
        steps, self._steps = jax.device_get(self._steps), []
        now = time.perf_counter()
        means = {name: float(np.mean([one[name] for one in steps])) for name in steps[0]}
        speed = len(steps) * self.batch / (now - self._last)
        line = {"step": step, "seconds": round(self._before + now - self._began, 3), "samples_per_second": speed}
        line |= {name: value if math.isfinite(value) else None for name, value in means.items()}
        line |= {"measured": measured} if measured else {}
        self._last = now
        self.lines.append(line)
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return line


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of metrics, up to the first that is not whole; none if there is no file."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break  # the last line of a process that was killed
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def sheet(pictures: np.ndarray) -> Image.Image:
    """[N, H, W, 3] uint8 in rows of about sqrt(N), with a little paper between."""
    count, height, width, _ = pictures.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    paper = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), PAPER, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = (GAP + n * (size + GAP) for n, size in zip(divmod(i, columns), (height, width), strict=True))
        paper[y : y + height, x : x + width] = picture
    return Image.fromarray(paper)


def write_sheet(folder: Path, step: int, pictures: np.ndarray) -> None:
    """Writes the sheet of samples of ``step``."""
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"step-{step:06d}.png", lambda file: sheet(pictures).save(file, format="PNG"))


def smoothed(values: np.ndarray, span: float) -> np.ndarray:
    """Means over the neighbours of each value, whose weight falls by e every ``span`` places to both sides.

    [N] -> [N] float64. Values that are not finite have no weight.
    """
    before, after = _sums(values, span), _sums(values[::-1], span)[:, ::-1]
    total, weight = before + after
    return np.where(weight > 0, total / np.maximum(weight, 1e-300), math.nan)


def _sums(values: np.ndarray, span: float) -> np.ndarray:
    """[2, N]: the weighted sum of each value and those before it, and the sum of their weights."""
    sums, now = [], np.zeros(2)
    for value in values:
        now = math.exp(-1 / span) * now + ((value, 1.0) if np.isfinite(value) else 0.0)
        sums.append(now)
    return np.array(sums).reshape(-1, 2).T


class PlainLog(LogFormatterSciNotation):
    """Labels of a logarithmic axis as plain numbers: 0.5 rather than 5 x 10^-1."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:.3g}" if super().__call__(x, pos) else ""


def column(lines: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """One metric of all lines, [N] float64; nan where it is null or not there."""
    return np.array([math.nan if line.get(name) is None else line[name] for line in lines], np.float64)


def draw_curve(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes a PNG of the loss, as it is and smoothed, the learning rate and what was measured, over the steps."""
    steps, loss, rate = (column(lines, name) for name in ("step", "loss", "learning_rate"))
    thin = slice(None, None, max(1, len(steps) // MOST_POINTS))
    measured = {name: [] for line in lines for name in line.get("measured", ())}
    figure = Figure(figsize=(8, 5 + 2 * len(measured)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    top, *more, bottom = figure.subplots(2 + len(measured), 1, sharex=True, height_ratios=(3, *[2] * len(measured), 1))
    for axes, name in zip(more, measured, strict=True):
        found = [(line["step"], line["measured"][name]) for line in lines if name in line.get("measured", ())]
        axes.plot(*zip(*found, strict=True), color=SMOOTH, linewidth=1.5, marker="o", markersize=3)
        axes.set_ylabel(name)
    positive = bool(np.all(loss[np.isfinite(loss)] > 0))
    span = 1 + len(loss) / 50
    calm = np.exp(smoothed(np.log(loss), span)) if positive else smoothed(loss, span)
    top.plot(steps[thin], loss[thin], color=RAW, linewidth=1, label="loss")
    top.plot(steps[thin], calm[thin], color=SMOOTH, linewidth=2, label="smoothed")
    top.set_ylabel("loss")
    if positive:
        top.set_yscale("log")
        top.yaxis.set_major_formatter(PlainLog())
        top.yaxis.set_minor_formatter(PlainLog())
    top.legend(frameon=False)
    bottom.plot(steps[thin], rate[thin], color=RATE, linewidth=1.5)
    bottom.set_ylabel("learning rate")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("step")
    for axes in (top, *more, bottom):
        axes.grid(True, which="both", color="#eeeeee", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    with naming(path):
        write_whole(path, lambda file: figure.savefig(file, format="png"))
