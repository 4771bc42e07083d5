"""Two workers asked in turn, A B A B, and what follows from their times.

One peer at a time is put beside this project: two float32 models of Stable Diffusion's size fill a small machine. What
happens to the machine meanwhile happens to both, so ratios are worth more than seconds.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.peers import OURS, PEERS
from bench.questions import QUESTIONS, Options, asks, with_files
from bench.report import keep

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]


class Failed(Exception):
    """A peer could not answer; the message is its sentence."""


class Worker:
    """One process of a peer; ``compiled`` is the folder in which it may keep compiled programs."""

    def __init__(self, peer: str, pythons: Mapping[str, str], compiled: Path):
        self.peer, self.began = peer, time.perf_counter()
        environment = os.environ | {
            "XDG_CACHE_HOME": str(compiled),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # two programs share a GPU
            "JAX_COMPILATION_CACHE_DIR": str(compiled / "jax"),
            "TORCHINDUCTOR_CACHE_DIR": str(compiled / "inductor"),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [pythons.get(peer, sys.executable), *PEERS[peer].command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.errors.close()

    def tell(self, do: str, ask: Row | None = None) -> Row:
        """One message and its answer. Raises Failed."""
        try:
            print(json.dumps({"do": do, "ask": ask}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.errors.seek(0)
            said = [text for text in self.errors.read().splitlines() if text.strip()]
            raise Failed(f"the process ended with status {self.process.wait()}: {(said or ['silent'])[-1][:200]}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def prepare(self, ask: Row) -> Row:
        """Gets a question ready, with the files that this peer reads."""
        return self.tell("prepare", with_files(ask, PEERS[self.peer].single_file))

    def lived(self) -> float:
        """Seconds since the process was started."""
        return round(time.perf_counter() - self.began, 3)


def summary(values: list[float]) -> Row:
    """Median, least and greatest."""
    return {"median": round(statistics.median(values), 4), "min": min(values), "max": max(values)}


def compared(ours: list[float], theirs: list[float]) -> Row:
    """The ratio ours / theirs of the medians, and of each round with the one after it."""
    paired = [a / b for a, b in zip(ours, theirs, strict=True)]
    ratio = round(statistics.median(ours) / statistics.median(theirs), 3)
    return {"ratio": ratio, "ratio_paired": {k: round(v, 3) for k, v in summary(paired).items()}}


def calls(names: tuple[str, str], ask: Row, rounds: int, pythons: Mapping[str, str], cache: Path) -> Row:
    """Both made ready, then run in turn."""
    with Worker(names[0], pythons, cache) as first, Worker(names[1], pythons, cache) as second:
        notes = [worker.prepare(ask) for worker in (first, second)]
        seconds: tuple[list, list] = ([], [])
        for _ in range(rounds):
            for worker, times in zip((first, second), seconds, strict=True):
                times.append((last := worker.tell("run"))["seconds"])
                notes[worker is second] |= {k: v for k, v in last.items() if k != "seconds"}
    sides = [{"seconds": summary(s), **n} for s, n in zip(seconds, notes, strict=True)]
    return {"ours": sides[0], "theirs": sides[1], **compared(*seconds)}


def processes(names: tuple[str, str], ask: Row, rounds: int, pythons: Mapping[str, str], cache: Path) -> Row:
    """Fresh processes in turn, each asked the same; which figure is compared is the question's matter."""
    one = {"load": loading, "start": starting, "memory": drawing}[ask["question"]]
    figure = {"load": "load_s", "start": "warm_s", "memory": "peak_mb"}[ask["question"]]
    places = [Path(tempfile.mkdtemp(prefix="compiled-", dir=cache)) for _ in names]
    try:
        answers = [[one(name, ask, pythons, place) for name, place in zip(names, places, strict=True)]]
        answers += [[one(n, ask, pythons, p) for n, p in zip(names, places, strict=True)] for _ in range(rounds - 1)]
    finally:
        for place in places:
            shutil.rmtree(place, ignore_errors=True)
    sides = list(zip(*answers, strict=True))
    row = compared(*([answer[figure] for answer in side] for side in sides))
    return {"ours": merged(sides[0], figure), "theirs": merged(sides[1], figure), "compared": figure, **row}


def merged(side: tuple[Row, ...], figure: str) -> Row:
    """The first process's figures (the only cold one), with the summary of all for the one that is compared."""
    return {**side[0], "peak_mb": max(s["peak_mb"] for s in side), "all": summary([s[figure] for s in side])}


def loading(name: str, ask: Row, pythons: Mapping[str, str], compiled: Path) -> Row:
    """A process that imports and loads."""
    with Worker(name, pythons, compiled) as worker:
        answer = worker.tell("load", with_files(ask, PEERS[name].single_file))
        return answer | {"process_s": worker.lived()}


def starting(name: str, ask: Row, pythons: Mapping[str, str], compiled: Path) -> Row:
    """A process with whatever earlier ones compiled: cold where there is nothing, and then once more, warm.

    In the first, a second picture says what of the time was drawing, and one of another shape what a new shape costs.
    """
    width, height = ask["size"]
    row: Row = {}
    if not any(compiled.iterdir()):
        with Worker(name, pythons, compiled) as worker:
            worker.prepare(ask)
            row["cold_s"] = worker.lived()
            row["again_s"] = worker.tell("run")["seconds"]
            shape = worker.prepare({**ask, "size": [width, height // 2]})
            row["other_shape_s"] = round(shape["prepare_s"] + shape["first_s"], 3)
        (compiled / "used").touch()
    with Worker(name, pythons, compiled) as worker:
        answer = worker.prepare(ask)
        return answer | row | {"warm_s": worker.lived()}


def drawing(name: str, ask: Row, pythons: Mapping[str, str], compiled: Path) -> Row:
    """A process that draws one picture."""
    with Worker(name, pythons, compiled) as worker:
        return worker.prepare(ask)


def alone(ask: Row, pythons: Mapping[str, str], cache: Path, rounds: int) -> Row:
    """A question that only this project answers."""
    with Worker(OURS, pythons, cache) as worker:
        notes = worker.prepare(ask)
        times = [worker.tell("run") for _ in range(rounds)]
    last = {name: value for name, value in times[-1].items() if name != "seconds"}
    executed = {"seconds": summary([t["seconds"] for t in times])} if notes["executed"] else {}
    return {"ours": {**notes, **last, **executed}}


def refused(name: str, ask: Row, options: Options) -> str | None:
    """Why a peer is not asked a question, or None."""
    peer = PEERS[name]
    if ask["question"] in peer.without:
        return f"{name} is left out of {ask['question']}: it has no such thing apart"
    if options.small and not peer.small:
        return f"{name} is left out: it knows the public sizes only"
    if ask["dtype"] not in peer.dtypes:
        return f"{name} is left out: it does not compute in {ask['dtype']}"
    return None


def rows(name: str, peers: list[str], options: Options, pythons: Mapping[str, str]) -> Iterator[Row | str]:
    """The rows of one question, and sentences (str) about what is left out, as they come."""
    question = QUESTIONS[name]
    compiled = options.cache / "compiled"
    compiled.mkdir(parents=True, exist_ok=True)
    rounds = options.rounds or question.rounds
    for ask in asks(name, options):
        head = {k: v for k, v in ask.items() if k not in ("prompt", "cache")} | {"rounds": rounds}
        if question.kind == "own":
            yield {**head, "peer": OURS, **alone(ask, pythons, compiled, rounds)}
            continue
        for peer in peers:
            if sentence := refused(peer, ask, options):
                yield sentence
                continue
            measure = calls if question.kind == "call" else processes
            load = round(os.getloadavg()[0], 2)
            try:
                yield {**head, "peer": peer, "load": load, **measure((OURS, peer), ask, rounds, pythons, compiled)}
            except Failed as error:
                yield f"{name}, {peer}: {error}"


def installed(names: list[str], pythons: Mapping[str, str], cache: Path) -> dict[str, dict[str, str]]:
    """What each peer says of itself; those that are not there are left out with a sentence."""
    found = {}
    cache.mkdir(parents=True, exist_ok=True)
    for name in names:
        try:
            with Worker(name, pythons, cache) as worker:
                found[name] = {k: v for k, v in worker.tell("about").items() if isinstance(v, str)}
        except (Failed, OSError) as error:
            print(f"{name} is left out: {error}; {PEERS[name].install}", file=sys.stderr)
    return found


def kept(found: Iterable[Row | str], save: str | None) -> None:
    """Prints and keeps rows as they come; sentences go to the error stream."""
    for row in found:
        if isinstance(row, str):
            print(row, file=sys.stderr, flush=True)
        else:
            keep(row, save)
