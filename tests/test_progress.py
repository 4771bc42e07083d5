"""The bar: a run in steps where it is seen, one call where it is not."""

import sys

import jax
import numpy as np
import pytest

from ldm.progress import watched


@pytest.fixture
def calls():
    """A run that counts, and the (first, stop) of its calls."""
    made = []

    def go(state, first, stop):
        made.append((int(first), int(stop)))
        return state + int(stop) - int(first), jax.device_put(np.int32(stop))

    return go, made


def test_one_call_where_no_bar_is_seen(calls, capsys):
    go, made = calls
    assert watched(go, 0, 2, 5, show=True) == watched(go, 0, 2, 5, show=False) == 3
    assert made == [(2, 5)] * 2 and capsys.readouterr() == ("", "")


def test_a_call_for_each_step_on_a_terminal(calls, capsys, monkeypatch):
    go, made = calls
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert watched(go, 0, np.int32(2), np.int32(5), show=True) == 3
    assert made == [(2, 3), (3, 4), (4, 5)]
    assert "step" in capsys.readouterr().err
    assert watched(go, 0, 5, 5, show=True) == 0, "no steps to make"
