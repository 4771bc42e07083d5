"""The training loop: steps, reports, samples and checkpoints, from the first step to the last, in one run or in many.

    OUT/config.json     the run's task, number of steps and configuration; a run that goes on must have the same
    OUT/checkpoints/    ldm.training.checkpoints
    OUT/metrics.jsonl, OUT/curve.png, OUT/samples/    ldm.training.reports

A run that was stopped at any moment, by a signal, a full disk or the plug, and goes on from its last checkpoint, ends
in the same parameters to the last bit as one that was not: step n is a function of the state, of the n-th batch and of
the seed, and a checkpoint holds the state and the place in the data.

Ctrl-C and SIGTERM end the run after the step under way, with a checkpoint; a second one ends it at once. With several
devices the batch is cut over all of them, and the state over ``fsdp`` of them. With several processes, ``out`` is one
folder for all, ``task.batches`` gives each its own rows, process 0 writes the reports, and signals end it at once.
"""

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from ldm.files import check_vacant, write_whole
from ldm.training import optimiser, reports
from ldm.training.checkpoints import Checkpoints, checkpoints
from ldm.training.config import TrainConfig, differences, plain
from ldm.training.sharding import make_mesh, replicate, shard_batch, shard_state
from ldm.training.step import Loss, State, make_step, start

FORMAT, VERSION = "ldm training run", 1
CACHE = "cache"  # in OUT: where a task may keep what it makes ready


class Batches(Protocol):
    """What the loop asks of data: an iterator of batches that can say where it is."""

    def __next__(self) -> dict[str, np.ndarray]: ...
    def state(self) -> Any: ...  # of JSON; a new iterator begun with it gives the next batch
    def close(self) -> None: ...


@dataclass(frozen=True)
class Task:
    """What is trained.

    name      for the record of the run
    params    what is trained, and begun from: {part: {name: array}}
    frozen    arrays that the loss needs and that stay as they are; any tree
    loss      see ``ldm.training.step.Loss``
    batches   from what ``state()`` of its batches gave before, or None, to batches
    sample    (averaged params, frozen) -> uint8 [N, H, W, 3]; None: there is nothing to look at
    finish    (averaged params, out) writes the trained weights; if an earlier call wrote them, it replaces them
    measure   (averaged params, frozen) -> figures of what has been learned, taken when samples are; None: none
    """

    name: str
    params: Any
    frozen: Any
    loss: Loss
    batches: Callable[[Any], Batches]
    sample: Callable[[Any, Any], np.ndarray] | None
    finish: Callable[[Any, Path], None]
    measure: Callable[[Any, Any], dict[str, float]] | None = None


def train(
    task: Task,
    config: TrainConfig,
    out: Path,
    steps: int,
    resume: bool = False,
    on_step: Callable[[State, dict[str, Any]], None] | None = None,
    until: int | None = None,
) -> State:
    """Trains ``task`` for ``steps`` steps and writes all that comes of it to ``out``; returns the last state.

    ``until``: ends after this many steps, as if they were all; the learning rate stays that of ``steps``.
    ``resume``: goes on from the newest good checkpoint in ``out``, or begins if there is none. Without it ``out`` must
    not exist or be empty. ``on_step`` is called after every step with the state and the step's metrics.

    Raises ValueError if ``out`` holds something else or a run with other settings, and when training has gone wrong for
    good; OSError if a checkpoint cannot be written; KeyboardInterrupt after a signal, once the checkpoint is written.
    """
    mesh = make_mesh(fsdp=config.fsdp) if jax.device_count() > 1 or config.fsdp > 1 else None
    place = (lambda function, tree: tree) if mesh is None else (lambda function, tree: function(mesh, tree))
    update, end = optimiser.make(config.optimiser, steps), steps if until is None else min(until, steps)
    numbers = {name: getattr(config, name) for name in ("seed", "accumulate", "ema", "dtype", "remat")}
    step = make_step(task.loss, update, mesh=mesh, **numbers)
    claim(out, record(task.name, steps, config), resume)
    state, frozen = place(shard_state, start(task.params, update)), place(replicate, task.frozen)
    with checkpoints(out / "checkpoints", config.keep) as kept, asked_to_stop() as stop:
        state, position = _newest(kept, state) if resume else (state, None)
        done = int(state.step)
        report, last = Reporter(task, config, out, steps, done), done >= end
        with contextlib.closing(task.batches(position)) as batches, _bar(done, steps) as bar:
            report.look(done, state)  # again: the process may have been killed before it was drawn
            report.curve(saves=done > 0)
            while not last:
                state, metrics = step(state, frozen, place(shard_batch, next(batches)))
                done += 1
                if on_step is not None:
                    on_step(state, metrics)
                last = done >= end or bool(stop)
                saves = last or done % config.checkpoint_every == 0
                report.tell(done, metrics, bar, saves, report.look(done, state))
                if saves:
                    kept.save(done, state, batches.state())
                report.curve(saves)
                kept.poll()
    average = whole(state.average)
    if done < end:
        say(f"stopped at step {done} of {steps}; the same command with --resume goes on from there")
        raise KeyboardInterrupt
    if jax.process_index() == 0:
        task.finish(average, out)
    return state


class Reporter:
    """Writes what there is to tell after a step: in process 0; the others only take part in gathering the average.

    ``saves``, below: a checkpoint is written at this step. It has a line of metrics, where a run that goes on cuts.
    """

    def __init__(self, task: Task, config: TrainConfig, out: Path, steps: int, done: int):
        self.task, self.config, self.out, self.steps = task, config, out, steps
        self.writes = jax.process_index() == 0
        self.metrics = reports.Metrics(out / "metrics.jsonl", config.batch, done) if self.writes else None

    def tell(
        self, done: int, metrics: dict[str, Any], bar: tqdm, saves: bool, measured: dict[str, float] | None
    ) -> None:
        """Counts the step, and writes a line where one is due. Raises ValueError if training has come to nothing."""
        if not self.writes:
            return
        self.metrics.add(metrics)
        bar.update()
        if saves or measured or done % self.config.log_every == 0:
            line = self.metrics.write(done, measured)
            loss = "not finite" if line["loss"] is None else f"{line['loss']:.4g}"
            bar.set_postfix_str(f"loss {loss}, {line['samples_per_second']:.0f} samples/s")
            check_progress(line)

    def curve(self, saves: bool) -> None:
        """Draws the curve, where it is due."""
        if self.writes and saves:
            reports.draw_curve(self.metrics.lines, self.out / "curve.png")

    def look(self, done: int, state: State) -> dict[str, float] | None:
        """Draws the samples and measures, where that is due; returns what was measured."""
        every = self.config.sample_every
        samples = self.task.sample is not None and 0 < every <= done and (done % every == 0 or done == self.steps)
        average = whole(state.average) if samples else None
        if not (self.writes and samples):
            return None
        pictures = np.asarray(self.task.sample(average, self.task.frozen))
        reports.write_sheet(self.out / "samples", done, pictures)
        return None if self.task.measure is None else self.task.measure(average, self.task.frozen)


def check_progress(line: dict[str, Any]) -> None:
    """Raises ValueError if no step since the last line of metrics had a finite gradient."""
    if line["skipped"] == 1:
        raise ValueError(
            f"training has come to nothing: no gradient was finite in the steps up to {line['step']}; "
            f"try a lower learning rate, or dtype float32"
        )


def _bar(done: int, steps: int) -> tqdm:
    hidden = True if jax.process_index() else None  # None: shown where the output is a terminal
    return tqdm(total=steps, initial=done, unit="step", disable=hidden, dynamic_ncols=True)


def _newest(kept: Checkpoints, state: State) -> tuple[State, Any]:
    found = kept.newest(state)
    if found is None:
        say(f"no checkpoint to go on from in {kept.folder}: beginning at step 0")
        return state, None
    say(f"going on from the checkpoint of step {int(found[0].step)}")
    return found


def whole(tree: Any) -> Any:
    """The arrays of a tree in full: as they are on one device; as NumPy arrays, the same everywhere, on several."""
    return tree if jax.device_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


def say(text: str) -> None:
    """A line for whoever watches, beside the progress bar."""
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------------
# The folder, and being stopped


def record(name: str, steps: int, config: TrainConfig) -> dict[str, Any]:
    """What ``config.json`` says of a run of the task ``name``."""
    return {"format": FORMAT, "version": VERSION, "task": name, "steps": steps, "config": plain(config)}


def claim(out: Path, run: dict[str, Any], resume: bool) -> None:
    """Makes ``out`` the folder of a run, told by :func:`record`. Raises ValueError as :func:`check_out` does."""
    if jax.process_index() == 0:
        check_out(out, run, resume)
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "config.json", lambda file: file.write((json.dumps(run, indent=1) + "\n").encode()))


def check_out(out: Path, run: dict[str, Any], resume: bool) -> None:
    """Raises ValueError if ``out`` is not the place for a run: for a new one, unless it is vacant; with ``resume``,

    if it holds another run, or anything else. Data made ready in ``out/cache``, and hidden files that a killed process
    left, do not count.
    """
    path = out / "config.json"
    if not path.exists():
        if not out.is_dir() or any(entry.name != CACHE and entry.name[0] != "." for entry in out.iterdir()):
            check_vacant(out)
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if not isinstance(old, dict) or old.get("format") != FORMAT:
        raise ValueError(f"{out}: already holds something else than a training run; choose another --out")
    if not resume:
        raise ValueError(f"{out}: already holds a run; add --resume to go on with it, or choose another --out")
    odd = differences(old, run)
    if odd:
        hint = " (the learning rate depends on the number of steps)" if odd[-1].startswith("steps ") else ""
        raise ValueError(f"{out}: the run there has other settings: {'; '.join(odd)}{hint}")


@contextlib.contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """A list that gets the number of the first SIGINT or SIGTERM; a second one does what it did outside.

    In another thread than the main one, which signals belong to, and in one of several processes, which would stop at
    different steps, the list stays empty and signals do what they did.
    """
    got: list[int] = []
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield got
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        got.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
