"""Laws of the batches that training reads: what they depend on, going on from a state, hosts and workers."""

import json
import pickle
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.tokenizer import Tokenizer
from ldm.training.data import Batches, Tokens
from ldm.training.toybox_data import ToyboxData, ToyboxSource, keep_scenes

DATA = ToyboxData(count=70, size=8, samples=1)
TOKENS = Tokens(Tokenizer.clip(), 40)


class Numbers:
    """A source whose rows are their own indices and positions."""

    def __init__(self, count: int):
        self.count = count

    def rows(self, seed: int, positions: np.ndarray, indices: np.ndarray) -> dict:
        return {"index": indices, "position": positions, "seed": np.full(len(indices), seed)}

    def finish(self, rows: dict) -> dict:
        return rows


def first(n: int, source, batch: int, **options) -> dict:
    """The first ``n`` batches, joined."""
    with Batches(source, batch, **options) as batches:
        return joined(list(islice(batches, n)))


def joined(batches: list[dict]) -> dict:
    return {name: np.concatenate([one[name] for one in batches]) for name in batches[0]}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return keep_scenes(DATA, tmp_path_factory.mktemp("scenes"))


# ---- the order of examples ----


@given(st.integers(1, 25), st.integers(0, 2**32 - 1))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_an_epoch_has_every_example_once(count: int, seed: int):
    rows = first(3 * count, Numbers(count), 2, seed=seed)
    assert rows["position"].tolist() == list(range(6 * count)) and set(rows["seed"]) == {seed}
    for epoch in rows["index"].reshape(6, count):
        assert sorted(epoch) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own_and_no_seed_has_two():
    orders = [first(2, Numbers(50), 50, seed=seed)["index"].reshape(2, 50) for seed in (0, 1, 2)]
    flat = [tuple(epoch) for order in orders for epoch in order]
    assert len(set(flat)) == 6
    assert same(first(5, Numbers(50), 7, seed=3), first(5, Numbers(50), 7, seed=3))


def test_examples_without_end_come_in_their_own_order():
    rows = first(4, Numbers(0), 5, seed=9)
    assert rows["index"].tolist() == rows["position"].tolist() == list(range(20))


@given(st.integers(0, 30), st.integers(1, 4), st.integers(1, 3), st.integers(0, 9))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_the_batches_of_hosts_one_after_the_other_are_the_batch_of_one(count: int, rows: int, hosts: int, skip: int):
    state = {"batches": skip, "batch": rows * hosts, "seed": 4, "examples": count}
    options = {"batch": rows * hosts, "seed": 4, "start_state": state}
    each = [Batches(Numbers(count), shard=(host, hosts), **options) for host in range(hosts)]
    whole = Batches(Numbers(count), **options)
    for _ in range(3):
        assert same(joined([next(batches) for batches in each]), next(whole))
    assert {json.dumps(batches.state()) for batches in each} == {json.dumps(whole.state())}
    for batches in (*each, whole):
        batches.close()


@given(st.integers(0, 12), st.integers(1, 6))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_a_saved_state_goes_on_with_the_next_batch(before: int, after: int):
    with Batches(Numbers(11), 4, seed=1) as batches:
        list(islice(batches, before))
        state = json.loads(json.dumps(batches.state()))
        expected = joined(list(islice(batches, after)))
        batches.restore(state)  # back, in the same iterator
        assert same(joined(list(islice(batches, after))), expected)
    assert same(first(after, Numbers(11), 4, seed=1, start_state=state), expected)


def test_a_row_does_not_depend_on_its_batch(scenes: Path):
    source = ToyboxSource(DATA, scenes, tokens=TOKENS, hard=2)
    assert same(first(2, source, 12, seed=5), first(6, source, 4, seed=5))


def test_workers_change_nothing(scenes: Path):
    """Both kinds of rows: read from files, and scenes that the main process draws."""
    source = ToyboxSource(DATA, scenes, tokens=TOKENS, hard=1)
    assert same(first(5, source, 6, seed=2, workers=2), first(5, source, 6, seed=2))
    endless = ToyboxSource(replace(DATA, count=0), tokens=TOKENS)
    state = {"batches": 3, "batch": 64, "seed": 2, "examples": 0}
    alone = first(1, endless, 64, seed=2, start_state=state)
    assert same(first(1, endless, 64, seed=2, start_state=state, workers=1), alone)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 0}, "a batch of 0 cannot be shared by 1 hosts"),
        ({"batch": 5, "shard": (0, 2)}, "must be a multiple of 2"),
        ({"batch": 4, "shard": (2, 2)}, "hosts counted from 0, got"),
        ({"batch": 4, "seed": -1}, "a seed of the data lies in 0 to"),
        ({"batch": 4, "workers": -1}, "the number of worker processes is 0 or more, got -1"),
        ({"batch": 4, "start_state": {"batches": 1, "batch": 8, "seed": 0, "examples": 5}}, "cannot go on from"),
        ({"batch": 4, "start_state": {"batches": 1, "batch": 4, "seed": 0, "examples": 6}}, "cannot go on from"),
        ({"batch": 4, "start_state": {"batches": -1, "batch": 4, "seed": 0, "examples": 5}}, "cannot go on from"),
        ({"batch": 4, "start_state": {}}, "cannot go on from"),
    ],
)
def test_numbers_that_cannot_be_are_refused(options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        Batches(Numbers(5), **options)


def test_tokens_are_the_same_after_a_journey_to_another_process():
    texts = ["a red cube", "a blue sphere and a shiny cone"]
    again = pickle.loads(pickle.dumps(TOKENS))
    assert np.array_equal(again(texts), TOKENS(texts)) and again(texts).shape == (2, 40)
