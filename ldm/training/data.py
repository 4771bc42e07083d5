"""Batches for training, read ahead by grain: batch n is a function of n, and of nothing else.

A `Source` makes rows of examples; `Batches` says which, in which order, and hands them out. Epochs follow one another,
each shuffled anew, and a batch may reach from one into the next. Position p is the p-th example of the run: the source
draws its captions, crops and flips from (seed, p), so that they are fresh in every epoch.

That gives three laws, which are tested: a run that goes on from a saved state sees what it would have seen; the number
of worker processes changes nothing; the batches of several hosts, one after the other, are the batch of one host.

B examples in a batch, of all hosts together; b = B / hosts of them here; S tokens.
Sources: grain (https://google-grain.readthedocs.io), its MapDataset.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Protocol

import jax
import numpy as np

from ldm.tokenizer import Tokenizer

AHEAD = 2  # batches that are made ready while one is used, by each worker
ENDLESS = 2**62
Batch = dict[str, Any]


class Source(Protocol):
    """Where examples come from. It is sent to the worker processes, so it holds paths and numbers, not open files."""

    count: int
    """How many different examples there are; 0: no end of them, and example p is used once, at position p."""

    def rows(self, seed: int, positions: np.ndarray, indices: np.ndarray) -> Batch:
        """The examples ``indices`` [b] at the ``positions`` [b] of the run: arrays of b rows. Runs in a worker.

        A row depends on its own index and position, and on ``seed``, alone.
        """

    def finish(self, rows: Batch) -> Batch:
        """What is left to do in the process that trains, such as drawing pictures on its devices."""


class Batches:
    """The batches of a run, as an iterator without end: ``next(batches)`` is a dict of arrays of b rows.

    ``batch``: B. ``seed``: of the order and of all that the source draws. ``start_state``: what :meth:`state` gave
    after some batch; this iterator goes on with the next one. ``shard``: (this host, hosts); host i has rows i b to
    (i + 1) b. ``workers``: processes that make batches; 0: a thread of this one. Close it when done, or use ``with``.
    Raises ValueError for numbers that cannot be, for a state of another run, and for whatever a source finds wrong.
    """

    def __init__(
        self,
        source: Source,
        batch: int,
        seed: int = 0,
        start_state: dict[str, int] | None = None,
        shard: tuple[int, int] = (0, 1),
        workers: int = 0,
    ):
        _check(batch, seed, shard, workers)
        self.source, self.batch, self.seed, self.shard, self.workers = source, batch, seed, shard, workers
        self._run = {"batch": batch, "seed": seed, "examples": source.count}
        self._done, self._iterator = 0, None
        self.restore(self.state() if start_state is None else start_state)

    def state(self) -> dict[str, int]:
        """What :meth:`restore` needs to go on after the batches that were handed out: a few numbers, fit for JSON.

        It is the same for every host and every number of workers.
        """
        return {"batches": self._done, **self._run}

    def restore(self, state: dict[str, int]) -> None:
        """Goes on after the batches of ``state``. Raises ValueError for the state of another run."""
        other = [name for name, value in self._run.items() if state.get(name) != value]
        if other or type(state.get("batches")) is not int or state["batches"] < 0:
            raise ValueError(
                f"the data cannot go on from {state}, this run has {self._run}: take the run's own settings"
            )
        self.close()
        self._done = state["batches"]

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._open()
        made = self.source.finish(next(self._iterator))
        self._done += 1
        return made

    def close(self) -> None:
        """Ends the thread or the processes that read ahead. The next batch starts them again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(self) -> Any:
        grain = _grain()
        (host, hosts), count = self.shard, self.source.count
        order = grain.MapDataset.range(count or ENDLESS)
        order = order.seed(self.seed).shuffle().repeat(ENDLESS // count) if count else order
        every = order.batch(self.batch // hosts).map_with_index(partial(_rows, self.source, self.seed))
        mine = every[host::hosts][self._done :]
        read = mine.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD))
        copied = grain.experimental.DatasetOptions(min_shm_size=ENDLESS)  # shared memory is small in containers
        read = grain.experimental.WithOptionsIterDataset(read, copied)
        options = grain.MultiprocessingOptions(self.workers, per_worker_buffer_size=AHEAD)
        return iter(read.mp_prefetch(options, worker_init_fn=_begin_worker))


def _check(batch: int, seed: int, shard: tuple[int, int], workers: int) -> None:
    host, hosts = shard
    if not 0 <= host < hosts:
        raise ValueError(f"a shard is (host, hosts) with hosts counted from 0, got {shard}")
    if batch < 1 or batch % hosts:
        raise ValueError(f"a batch of {batch} cannot be shared by {hosts} hosts: it must be a multiple of {hosts}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"a seed of the data lies in 0 to 2^32 - 1, got {seed}")
    if workers < 0:
        raise ValueError(f"the number of worker processes is 0 or more, got {workers}")


def _grain() -> Any:
    """The module, imported where it is used: sampling does not need it."""
    try:
        import grain
        from absl import flags
    except ImportError:
        raise ValueError("training reads its data through grain, which is not installed: pip install grain") from None
    flags.FLAGS.mark_as_parsed()  # grain asks for flags of a command line that this program has not
    return grain


def _rows(source: Source, seed: int, number: int, indices: np.ndarray) -> Batch:
    """Part ``number`` of the run; the parts of the hosts take turns."""
    return source.rows(seed, number * len(indices) + np.arange(len(indices)), indices)


def _begin_worker(number: int, workers: int) -> None:
    """Keeps a worker off the accelerators, which belong to the process that trains."""
    jax.config.update("jax_platforms", "cpu")


# ---------------------------------------------------------------------------------------------------------------------
# Texts.


@dataclass(frozen=True)
class Tokens:
    """Texts to rows of ids: int32 [n, S], with S = ``length``, or the tokenizer's own.

    It can be sent to a worker process, which a `Tokenizer` with its caches cannot.
    """

    tokenizer: Tokenizer
    length: int | None = None

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return self.tokenizer(texts, self.length)

    def __reduce__(self) -> tuple:
        kept = {field.name: getattr(self.tokenizer, field.name) for field in fields(self.tokenizer)}
        return _tokens, (kept, self.length)


def _tokens(kept: dict[str, Any], length: int | None) -> Tokens:
    return Tokens(Tokenizer(**kept), length)
