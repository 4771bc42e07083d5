"""Checkpoints: what is read is what was written, bit for bit, and damage is noticed and passed over."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.training import checkpoints as module
from ldm.training.checkpoints import checked, checkpoints


class Inner(NamedTuple):
    count: Any
    moments: Any


def state(value: float = 1.0) -> dict:
    """A tree with all sorts of leaves; ``value`` is in all of them."""
    net = {"conv_in.kernel": jnp.full((3, 3, 4, 8), float(value)), "norm.scale": jnp.arange(8.0) * value}
    odd = [jnp.full((2, 3), value, dtype) for dtype in (jnp.bfloat16, jnp.float16, jnp.int32, jnp.uint8)]
    return {
        "params": {"net": net},
        "inner": Inner(jnp.int32(value), (odd, None)),
        "empty": jnp.zeros((0, 3)),
        "one": jnp.float32(value),
    }


def same(a: Any, b: Any) -> bool:
    """Whether two trees have one structure, and leaves of the same bits."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    alike = all(x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)
    return alike and jax.tree.structure(a) == jax.tree.structure(b)


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """Checkpoints of the steps 10, 20 and 30, with the states state(10), …; tests that harm it copy it first."""
    folder = tmp_path_factory.mktemp("three") / "checkpoints"
    with checkpoints(folder, keep=3) as kept:
        for step in (10, 20, 30):
            kept.save(step, state(step), {"batches": step})
    return folder


# ---- what is read is what was written ----


def test_a_state_comes_back_in_its_structure_and_to_the_last_bit(three: Path):
    with checkpoints(three, keep=3) as kept:
        found, data = kept.newest(state(0))
    assert same(found, state(30)) and data == {"batches": 30}


shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
dtypes = st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32, jnp.uint32])
names = st.text(st.characters(codec="ascii", categories=("L", "N"), include_characters="._-"), min_size=1, max_size=9)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.dictionaries(names, st.tuples(shapes, dtypes), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_any_bits_come_back(tmp_path_factory, kinds: dict, seed: int):
    """Also those of numbers that are not numbers."""
    bits = np.random.default_rng(seed)
    make = lambda shape, dtype: bits.bytes(int(np.prod(shape)) * jnp.dtype(dtype).itemsize)
    arrays = {n: np.frombuffer(make(shape, dtype), dtype).reshape(shape) for n, (shape, dtype) in kinds.items()}
    tree = {"step": jnp.int32(1), "x": jax.tree.map(jnp.asarray, arrays)}
    with checkpoints(tmp_path_factory.mktemp("bits"), keep=1) as kept:
        kept.save(1, tree, None)
        assert same(kept.newest(tree)[0], tree)


def test_a_state_may_be_given_away_while_it_is_written(tmp_path: Path):
    """The next step writes over the memory of the state before."""
    tree = {f"a{i}": jnp.full((300, 300), float(i)) for i in range(20)}
    wanted = jax.tree.map(lambda x: np.array(x, copy=True), tree)
    forward = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    with checkpoints(tmp_path, keep=1) as kept:
        kept.save(1, tree, None)
        for _ in range(20):
            tree = forward(tree)
        assert same(kept.newest(tree)[0], wanted)


def test_only_the_newest_are_kept(tmp_path: Path):
    with checkpoints(tmp_path, keep=2) as kept:
        for step in (5, 10, 15, 20):
            kept.save(step, state(step), None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000015", "step-00000020"]


def test_a_run_that_went_back_replaces_what_lay_ahead(three: Path, tmp_path: Path):
    folder = shutil.copytree(three, tmp_path / "c")
    with checkpoints(folder, keep=3) as kept:
        kept.save(20, state(7), {"batches": 7})
        kept.wait()
        assert sorted(path.name for path in folder.iterdir()) == ["step-00000010", "step-00000020"]
        found, data = kept.newest(state(0))
    assert same(found, state(7)) and data == {"batches": 7}


# ---- damage ----


def cut(path: Path) -> None:
    """Takes the second half of a file away."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path: Path) -> None:
    """Changes one bit in the middle of a file."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


FILES = ("seal", "arrays/manifest.ocdbt", "arrays/_METADATA", "arrays/d/*", "arrays/ocdbt.process_0/d/*")


@pytest.mark.parametrize("harm", [cut, garble, Path.unlink])
@pytest.mark.parametrize("pattern", FILES)
def test_a_damaged_checkpoint_is_passed_over(three: Path, tmp_path: Path, harm, pattern: str):
    folder = shutil.copytree(three, tmp_path / "c")
    harm(next((folder / "step-00000030").glob(pattern)))
    with checkpoints(folder, keep=3) as kept, pytest.warns(UserWarning, match="step-00000030 (is damaged|was never)"):
        found, data = kept.newest(state(0))
    assert same(found, state(20)) and data == {"batches": 20}


def test_every_bit_of_a_checkpoint_is_under_seal(three: Path, tmp_path: Path):
    folder = shutil.copytree(three / "step-00000030", tmp_path / "c")
    assert checked(folder)["step"] == 30
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 5
    for path in files:
        before = path.read_bytes()
        garble(path)
        with pytest.raises(ValueError, match="is not as it was written"):
            checked(folder)
        path.write_bytes(before)
    assert checked(folder)["step"] == 30


def test_a_checkpoint_that_was_cut_short_is_passed_over_and_then_removed(three: Path, tmp_path: Path):
    folder = shutil.copytree(three, tmp_path / "c")
    (folder / "step-00000030" / "seal").unlink()
    (folder / "step-00000040" / "arrays.orbax-checkpoint-tmp").mkdir(parents=True)
    with checkpoints(folder, keep=2) as kept:
        with pytest.warns(UserWarning) as told:
            assert kept.newest(state(0))[1] == {"batches": 20}
        kept.save(25, state(25), None)
    words = "was never finished; looking for an older checkpoint"
    assert [str(one.message) for one in told] == [
        f"{folder / name} {words}" for name in ("step-00000040", "step-00000030")
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000020", "step-00000025"]


def test_nothing_whole_is_nothing_at_all(three: Path, tmp_path: Path):
    with checkpoints(tmp_path / "none", keep=3) as kept:
        assert kept.newest(state(0)) is None
    folder = shutil.copytree(three, tmp_path / "c")
    for path in folder.glob("*/seal"):
        cut(path)
    with checkpoints(folder, keep=3) as kept, pytest.warns(UserWarning, match="damaged"):
        assert kept.newest(state(0)) is None


# ---- another model ----


def without(tree: dict) -> dict:
    del tree["params"]["net"]["norm.scale"]
    return tree


def wider(tree: dict) -> dict:
    tree["params"]["net"]["conv_in.kernel"] = jnp.zeros((3, 3, 4, 16))
    return tree


def halved(tree: dict) -> dict:
    tree["one"] = jnp.float16(0)
    return tree


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without, "1 of 9 arrays differ, such as params/net/norm.scale, float32[8] there and absent here"),
        (wider, "such as params/net/conv_in.kernel, float32[3, 3, 4, 8] there and float32[3, 3, 4, 16] here"),
        (halved, "such as one, float32[] there and float16[] here"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_name(three: Path, change, words: str):
    with checkpoints(three, keep=3) as kept, pytest.raises(ValueError, match="of another model") as error:
        kept.newest(change(state(0)))
    assert words in str(error.value) and "step-00000030" in str(error.value)


# ---- a disk that is full ----


def test_a_disk_without_room_is_noticed_before_anything_is_written(three: Path, tmp_path: Path, monkeypatch):
    folder = shutil.copytree(three, tmp_path / "c")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with checkpoints(folder, keep=3) as kept:
        with pytest.raises(
            OSError, match=r"step 40 \(it takes 0.0 MB, and 0.0 MB are free\); that of step 30 is still"
        ):
            kept.save(40, state(40), None)
        assert same(kept.newest(state(0))[0], state(30))
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("when", ["checksum", "_prune"])
def test_an_error_in_the_background_is_raised_at_the_next_chance(three: Path, tmp_path: Path, monkeypatch, when: str):
    folder = shutil.copytree(three, tmp_path / "c")

    def fail(*_):
        raise OSError(28, "No space left on device")

    with checkpoints(folder, keep=3) as kept:
        with monkeypatch.context() as patch:
            patch.setattr(module, when, fail)
            kept.save(40, state(40), None)
            words = r"step 40 \(No space left on device\); that of step 30 is still there"
            with pytest.raises(OSError, match=words):
                while True:
                    kept.poll()
        kept.poll()  # it is told once
        assert same(kept.newest(state(0))[0], state(30))


def test_an_error_in_the_background_ends_the_with(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "_seal", lambda *_: 1 / 0)
    with pytest.raises(OSError, match="ZeroDivisionError"), checkpoints(tmp_path, keep=3) as kept:
        kept.save(1, state(), None)
    with pytest.raises(KeyError, match="mine"), checkpoints(tmp_path, keep=3) as kept:
        kept.save(1, state(), None)
        raise KeyError("mine")
