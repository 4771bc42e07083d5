"""The second process: what was compiled once is not compiled again, and the folder it is kept in is the user's own."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import pytest

from ldm import startup
from ldm.startup import cache_compilations, cache_folder

COUNT = """
import atexit, collections, json, sys
import jax
count = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: count.update([event]))
jax.monitoring.register_event_duration_secs_listener(lambda event, seconds, **_: count.update([event]))
from ldm import cli
from ldm.models import unet
call = unet.UNet.__call__
unet.UNet.__call__ = lambda *args, **named: [count.update(["network"]), call(*args, **named)][1]
status = cli.main(sys.argv[1:])
names = {
    "asked": "/jax/compilation_cache/compile_requests_use_cache",
    "found": "/jax/compilation_cache/cache_hits",
    "compiled": "/jax/compilation_cache/cache_misses",
    "all": "/jax/core/compile/backend_compile_duration",
    "traced": "network",
}
print(json.dumps({"status": status} | {name: count[event] for name, event in names.items()}))
"""


def process(home: Path, *argv: str, **variables: str) -> dict:
    """``ldm ARGV`` in a process of its own, and the programs that it asked for, found and compiled."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    # quick to compile: what is asked here is whether anything is
    env |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(home), "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"} | variables
    command = [sys.executable, "-c", COUNT, *argv]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]) | {"errors": done.stderr}


def test_a_second_process_compiles_and_traces_nothing(tmp_path):
    """Of the toybox's own model, from the prompt to the file."""
    draw = ("generate", "a red cube", "--steps", "2", "--out", str(tmp_path / "a.png"))
    first = process(tmp_path, *draw)
    assert first["status"] == 0 and first["compiled"] == first["asked"] == first["all"] == 3, first
    assert first["traced"] > 0
    other = ("generate", "two green cones", "--steps", "3", "--seed", "7", "--out", str(tmp_path / "b.png"))
    second = process(tmp_path, *other)
    assert (
        second["status"] == second["compiled"] == second["traced"] == 0
        and second["found"] == second["asked"] == second["all"] == 3
    )
    folder = tmp_path / "ldm" / "programs"
    assert folder.stat().st_mode & 0o777 == 0o700 and len(list(folder.glob("*-cache"))) == 3
    for kept in folder.glob("*-cache"):  # damaged: said, and compiled again
        kept.write_bytes(kept.read_bytes()[:100])
    for kept in folder.glob("advance-*.stablehlo"):
        kept.write_bytes(kept.read_bytes()[:1000])
    third = process(tmp_path, *draw)
    assert third["status"] == third["found"] == 0 and third["all"] == 3 and third["traced"] > 0
    assert "is damaged and made again" in third["errors"]
    assert "Traceback" not in third["errors"]


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """JAX's own settings as they are in a fresh process, and put back; the cache folder in a folder of the test."""
    monkeypatch.setattr(startup, "kept_in", None)
    names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache", "jax_compilation_cache_max_size")
    before = {name: getattr(jax.config, name) for name in (*names, *startup.KEEP_ALL)}
    jax.config.update("jax_enable_compilation_cache", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "ldm"
    for unset in ("", "not/absolute"):  # such a path is to be ignored, the XDG specification says
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert cache_folder() == tmp_path / "home" / ".cache" / "ldm"


def test_it_is_turned_on_by_one_call(settings, tmp_path):
    folder = cache_compilations()
    assert folder == tmp_path / "cache/ldm/programs" == Path(settings.jax_compilation_cache_dir)
    assert settings.jax_compilation_cache_max_size == startup.MOST_BYTES
    assert settings.jax_persistent_cache_min_compile_time_secs == 0
    assert cache_compilations() == folder, "twice is as good as once"


def test_what_the_user_has_set_stays(settings, tmp_path, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 5.0)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "5")
    assert cache_compilations() == tmp_path / "mine"
    assert settings.jax_persistent_cache_min_compile_time_secs == 5 and not (tmp_path / "cache").exists()
    assert settings.jax_compilation_cache_max_size == -1, "his folder is not cleared by us"
    jax.config.update("jax_enable_compilation_cache", False)
    assert cache_compilations() is None


@pytest.mark.parametrize("spoil", ["a file in its place", "writable by others", "of another user"])
def test_a_folder_that_cannot_be_used_costs_one_warning(settings, tmp_path, monkeypatch, spoil):
    (tmp_path / "cache").mkdir()
    folder = tmp_path / "cache" / "ldm"
    if spoil == "a file in its place":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o777 if spoil == "writable by others" else 0o755)
    if spoil == "of another user":
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.warns(UserWarning, match="compiled programs are not kept") as caught:
        assert cache_compilations() is None
    assert len(caught) == 1 and settings.jax_compilation_cache_dir is None


def test_importing_the_library_changes_no_setting():
    """Only the call does."""
    code = "import jax; before = dict(jax.config.values); import ldm, ldm.startup, ldm.cli\n"
    code += "print([name for name in before if jax.config.values[name] != before[name]])"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
