"""What a worker is: a process that reads a question as a line of JSON and answers it by a line of JSON.

    {"do": "about"}                       -> {"peer": …, versions …}
    {"do": "prepare", "ask": {…}}         -> {"prepare_s": …, "first_s": …, notes …}     loads, compiles, runs once
    {"do": "run"}                         -> {"seconds": …}                              what was prepared, once more
    {"do": "load", "ask": {…}}            -> {"load_s": …}                               the whole model, nothing run

Every answer also has ``peak_mb``, the most memory that the process has had resident (MB of 10^6 bytes), and what the
worker's ``counters`` say. A peer that cannot answer says why: {"error": "one sentence"}.

This file imports the standard library only: it runs in every peer's own environment.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Ask = Mapping[str, Any]  # see bench.questions.ask


@dataclass(frozen=True)
class Prepared:
    """``run`` does the work once and returns when it is done; ``notes`` are figures of it, such as temporaries.

    Where it returns a float, that is the seconds that count, and not those of the whole call.
    """

    run: Callable[[], Any]
    notes: dict[str, Any] = field(default_factory=dict)


class Peer(Protocol):
    """The functions that a worker hands to :func:`serve`."""

    def about(self) -> dict[str, str]:
        """Versions of what does the work."""

    def load(self, ask: Ask) -> Any:
        """Reads the whole model of a question."""

    def prepare(self, ask: Ask) -> Prepared:
        """Gets a question ready. Raises for one that the peer cannot answer."""

    def counters(self) -> dict[str, Any]:
        """Figures of the process so far, such as compilations."""


def peak_mb() -> float:
    """The most memory that this process has had resident. Mapped files count as far as they have been read."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    unit = 1 if sys.platform == "darwin" else 1024
    return round((found or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit])[0] / 1e6, 1)


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What ``run`` returns, and its seconds."""
    start = time.perf_counter()
    result = run()
    return result, round(result if isinstance(result, float) else time.perf_counter() - start, 4)


def one_sentence(error: BaseException) -> str:
    """The kind and the first line of an exception."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return f"{type(error).__name__}: {first}"[:300]


def answers(peer: Peer) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """The function from a message to its answer; what was prepared last is kept between messages."""
    prepared: list[Prepared] = []

    def prepare(message: Mapping[str, Any]) -> dict[str, Any]:
        prepared.clear()  # what went before may be freed
        made, seconds = timed(lambda: peer.prepare(message["ask"]))
        prepared.append(made)
        return {"prepare_s": seconds, "first_s": timed(made.run)[1], **made.notes}

    def load(message: Mapping[str, Any]) -> dict[str, Any]:
        peer.about()  # imports, whose time is not that of loading
        kept, seconds = timed(lambda: peer.load(message["ask"]))
        return {"load_s": seconds, "loaded": kept is not None}

    known = {
        "about": lambda message: peer.about(),
        "prepare": prepare,
        "load": load,
        "run": lambda message: {"seconds": timed(prepared[0].run)[1]},
    }

    def answer(message: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return known[message["do"]](message) | {"peak_mb": peak_mb()} | peer.counters()
        except Exception as error:
            return {"error": one_sentence(error), "peak_mb": peak_mb()}

    return answer


def serve(peer: Any) -> None:
    """Answers until the input ends. What libraries print goes to the error stream, and answers alone to the output."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    answer = answers(peer)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=out, flush=True)
