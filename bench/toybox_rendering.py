"""How many toybox pictures a second, drawn and told, at 64x64.

    python -m bench.toybox_rendering [--size 64] [--batch 64] [--rounds 9] [--save KIND]

Pictures with 1, 2 and 3 samples along each side of a pixel, and truths, are made in turn, round after round, so that a
busy moment of the machine hurts all of them alike; medians are reported. The scenes are drawn by lot before the clock
starts, afresh for each round. Compilations are counted by JAX's own events. One JSON line for each question, after one
for the machine; ``--save cpu-2-cores`` appends them to ``bench/results/cpu-2-cores.jsonl``.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import jax

from bench.machine import machine
from bench.report import keep
from bench.workers.protocol import timed
from ldm.toybox.dataset import Dataset, pictures
from ldm.toybox.sampling import random_scenes
from ldm.toybox.scene import Scene
from ldm.toybox.world import render, truths

SAMPLES = (1, 2, 3)
LIMIT = 60.0  # pictures a second with 2x2 samples on two cores: what training on a laptop needs
COMPILED = "/jax/core/compile/backend_compile_duration"


def seconds_of(run: Callable[[], object]) -> float:
    """Seconds of one call, until its result is there."""
    return timed(lambda: jax.block_until_ready(run()))[1]


def makers(size: int) -> dict[str, Callable[[Scene], object]]:
    """What is timed, by name: each makes something of a batch of scenes."""
    drawn = {f"{s}x{s}": lambda scenes, s=s: render(scenes, size, s) for s in SAMPLES}
    return {**drawn, "truths": lambda scenes: truths(scenes, size)}


def measure(size: int, batch: int, rounds: int) -> list[dict]:
    """One row for each question."""
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    seconds: dict[str, list[float]] = {name: [] for name in makers(size)}
    compiles = dict.fromkeys(seconds, 0)
    for r in range(rounds + 1):
        scenes = random_scenes(range(r * batch, (r + 1) * batch))
        for name, make in makers(size).items():
            before = compiled.count(COMPILED)
            seconds[name].append(seconds_of(partial(make, scenes)))
            compiles[name] += compiled.count(COMPILED) - before
    shape = {"size": size, "batch": batch, "rounds": rounds}
    rows = [question(name, times, batch) | {"compiles": compiles[name]} | shape for name, times in seconds.items()]
    one, two = (statistics.median(seconds[name][1:]) for name in ("1x1", "2x2"))
    ratio = {"question": "time of 2x2 samples over 1x1", "ratio": round(two / one, 2), **shape}
    return [*rows, ratio, {"question": "whole examples a second", "per_second": whole(**shape), **shape}]


def question(name: str, times: list[float], batch: int) -> dict:
    """The row of one maker; the first of its times has the compilation in it."""
    usual = statistics.median(times[1:])
    row = {"question": "truths a second"} if name == "truths" else {"question": "pictures a second", "samples": name}
    row |= {"per_second": round(batch / usual, 1), "slowest": round(batch / max(times[1:]), 1)}
    row |= {"fastest": round(batch / min(times[1:]), 1), "compile_s": round(times[0] - usual, 2)}
    return row | ({"limit": LIMIT, "within": batch / usual >= LIMIT} if name == "2x2" else {})


def whole(size: int, batch: int, rounds: int) -> float:
    """Examples a second with all that a batch for training needs: scenes drawn by lot, captions, 2x2 pictures."""
    data = Dataset(seed=1, size=size)
    times = [
        seconds_of(lambda r=r: pictures(range(r * batch, (r + 1) * batch), data)["picture"]) for r in range(rounds)
    ]
    return round(batch / statistics.median(times), 1)


def main() -> None:
    """Measures, prints, and appends to the results on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--save", metavar="KIND", help="append to bench/results/KIND.jsonl; a kind is cpu-2-cores")
    args = parser.parse_args()
    device = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    for row in (machine({"ldm": device}), *measure(args.size, args.batch, args.rounds)):
        keep(row, args.save)


if __name__ == "__main__":
    main()
