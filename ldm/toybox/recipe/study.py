"""What studies of adapters have in common: the command, runs of ``ldm train`` that are not done twice, rows of JSON."""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ldm.files import write_whole
from ldm.toybox.scene import Scene
from ldm.training import config, loop

ROWS, MINUTES = "measured.jsonl", "minutes.json"
COMMON = {"batch": 8, "ema": 0.0, "log_every": 50, "sample_every": 0, "base": "toybox"}
NOISE = {"timesteps": "logit_normal", "shift": 2.0}
SAMPLING = {"sampler": "dpmpp_2m", "steps": 12, "spacing": "trailing", "progress": False}  # of what is judged

Row = dict[str, Any]
Measures = Mapping[str, Callable[[Path, int], Iterable[Row]]]  # (folder of the runs, seed) to rows


def trained(make: Callable[[config.TrainConfig, Path], Any], out: Path, steps: int, rate: float, **said: Any) -> float:
    """Runs ``ldm train`` with the settings ``said`` into a folder: minutes. A run that is there already is not done
    again, one that was cut short goes on from its checkpoint; its minutes are those of the last sitting.

    Args:
        make: a task of ``ldm.training``
        rate: of learning
    """
    settings = COMMON | {"checkpoint_every": steps} | said | {"optimiser": {"learning_rate": rate}}
    read_back = config.read(config.TrainConfig, settings)
    took, start = out / MINUTES, time.perf_counter()
    if not took.exists():
        loop.train(make(read_back, out), read_back, out, steps, resume=out.exists())
        minutes = json.dumps((time.perf_counter() - start) / 60)
        write_whole(took, lambda file: file.write(minutes.encode()))
    return json.loads(took.read_text(encoding="utf-8"))


def with_first(scenes: Scene, **values: np.ndarray) -> Scene:
    """Scenes [N] with their first toy changed: values [N, ...] by the names of its arrays."""
    changed = {name: getattr(scenes, name).copy() for name in values}
    for name, value in values.items():
        changed[name][:, 0] = value
    return replace(scenes, **changed)


def kept(out: Path, row: Row) -> None:
    """Prints a row and adds it to the folder's."""
    line = json.dumps(row)
    print(line, flush=True)
    with (out / ROWS).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def measure(what: str, names: Measures, seeds: Sequence[int]) -> None:
    """The command of a study: OUT [NAMES…] [--seeds …] runs what is named, and keeps its rows."""
    parser = argparse.ArgumentParser(description=what.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all if none is named")
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    args = parser.parse_args()
    for name in args.names:
        if name not in names:
            parser.error(f"no measurement {name!r}; there are {', '.join(names)}")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names or names:
        for seed in args.seeds:
            for row in names[name](args.out, seed):
                kept(args.out, {"seed": seed, **row})
