"""Programs that are kept and made ready: the same numbers as when they are called, and nothing done twice."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ldm
import weights_convert
from ldm import ready, startup
from ldm.ahead import compile_ahead
from ldm.bundle import Configs
from ldm.ready import Program, call

DRAW = {"steps": 2, "output": "latents", "progress": False}


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """A folder in which programs are kept, and a process that has none yet."""
    monkeypatch.setattr(startup, "kept_in", tmp_path / "programs")
    monkeypatch.setattr(ready, "_ready", {})
    (tmp_path / "programs").mkdir()
    return tmp_path / "programs"


def files(folder) -> dict[str, int]:
    """Names and times of the kept programs."""
    return {path.name: path.stat().st_ino for path in folder.glob("*.stablehlo")}


@jax.jit
def double(x, y):
    """Of the first; the second may be reused."""
    return {"z": 2 * x, "y": y + 1}


DOUBLE = Program(double, (1,))


def test_it_is_the_plain_call_unless_programs_are_kept(tmp_path):
    assert startup.kept_in is None
    assert np.array_equal(call(DOUBLE, np.float32(3), jnp.ones(2))["z"], 6)
    assert not list(tmp_path.iterdir())


def test_a_kept_program_gives_the_same(kept, monkeypatch):
    for again in range(2):
        monkeypatch.setattr(ready, "_ready", {})  # another process
        y = jnp.arange(3.0)
        made = call(DOUBLE, np.float32(3), y)
        assert made["z"] == 6 and np.array_equal(made["y"], [1, 2, 3]) and y.is_deleted()
        if not again:
            first = files(kept)
    assert files(kept) == first and len(first) == 1
    call(DOUBLE, np.float32(3), jnp.arange(4.0))
    assert len(files(kept)) == 2, "another shape is another program"


@pytest.mark.long
def test_pictures_are_the_same_to_the_bit(kept, least, monkeypatch):
    run = lambda **changes: ldm.generate(least, "a red cube", **DRAW | changes)
    with_kept, shorter = run(), run(shortcuts=ldm.Shortcuts(every=2, blocks=1), steps=3)
    assert len(files(kept)) == 4  # begin and finish are the same for both
    monkeypatch.setattr(startup, "kept_in", None)
    assert np.array_equal(run(), with_kept)
    assert np.array_equal(run(shortcuts=ldm.Shortcuts(every=2, blocks=1), steps=3), shorter)


def test_what_cannot_be_told_is_called_as_it_is(kept):
    """A caller's own function, or a mesh of devices: no other process could know it by its name."""
    told = jax.jit(lambda x, change, name: change(x), static_argnames=("change", "name"))
    assert call(Program(told), jnp.ones(2), change=jnp.sum, name="a") == 2 and not files(kept)
    assert ready.keepable({"configs": Configs(), "sampler": "ddim", "wrap": None})


def test_other_source_is_another_program(kept, monkeypatch):
    call(DOUBLE, np.float32(3), jnp.ones(2))
    monkeypatch.setattr(ready, "source", lambda: "another version")
    monkeypatch.setattr(ready, "_ready", {})
    call(DOUBLE, np.float32(3), jnp.ones(2))
    assert len(files(kept)) == 2


def test_a_damaged_file_is_made_again(kept, monkeypatch):
    call(DOUBLE, np.float32(3), jnp.ones(2))
    (path,) = kept.glob("*.stablehlo")
    path.write_bytes(path.read_bytes()[:50])
    monkeypatch.setattr(ready, "_ready", {})
    with pytest.warns(UserWarning, match="is damaged and made again"):
        assert call(DOUBLE, np.float32(3), jnp.ones(2))["z"] == 6
    assert path.stat().st_size > 50


def test_the_oldest_are_forgotten(kept, monkeypatch):
    monkeypatch.setattr(ready, "KEPT", 2)
    for size in (1, 2, 3):
        call(DOUBLE, np.float32(3), jnp.ones(size))
    assert len(files(kept)) == 2


def test_ahead_makes_what_generate_runs(kept, least):
    """Also with other run-time values; nothing is made again."""
    empty = replace(least, params={})
    compile_ahead(empty, ["a", "b"], negative="c", sampler="euler_a", output="latents", size=(16, 24))
    before, programs = files(kept), set(ready._ready)
    assert len(before) == 3
    ldm.generate(least, ["d", "e"], steps=3, sampler="euler_a", size=(16, 24), output="latents", guidance=2.0, seed=4)
    assert files(kept) == before and set(ready._ready) == programs
    with pytest.raises(ValueError, match="unknown sampler 'nothing'"):
        compile_ahead(empty, "a", sampler="nothing")


def test_weights_are_read_meanwhile(tiny_folder):
    seen = []
    bundle = weights_convert.load(tiny_folder, meanwhile=seen.append)
    assert seen[0].configs == bundle.configs and not seen[0].params and bundle.params.keys() == {"unet", "vae", "text"}

    def fails(found):
        raise ValueError("no such sampler")

    with pytest.raises(ValueError, match="no such sampler"):
        weights_convert.load(tiny_folder, meanwhile=fails)
