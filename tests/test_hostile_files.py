"""Every bad file gives one CheckpointError that says what is wrong, soon, in little memory, and with no side effect.

Python reports whatever a program does outside itself (opening, importing, executing, starting) to audit hooks. While a
file is read here, a hook lists these events, and only reading files is allowed.
"""

import copyreg
import os
import pickle
import re
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests import checkpoint_files as make
from tests.hostile_attacks import attacks
from tests.hostile_files import LEGACY, MISTAKEN, SAFETENSORS, ZIPS
from tests.hostile_pickles import BOMBS, BROKEN, TENSORS
from tests.test_reading import WRITERS, written
from weights_convert.reading import CheckpointError, read_file, read_sharded

SECONDS = 10.0  # with allocations traced, which is several times slower; the longest takes about 3
BYTES = 300 << 20  # half a million operations of a pickle may leave as many small objects
READING = {"mmap.__new__"}
STORAGE = np.arange(4, dtype=np.float32).tobytes()

armed, events = False, []


def watch(event: str, args: tuple) -> None:
    """The audit hook: cannot be removed once it is there, so a flag arms it."""
    if armed and event not in READING and not (event == "open" and only_reads(*args)):
        events.append((event, str(args)[:200]))


def only_reads(path: object, mode: str | None, flags: int) -> bool:
    """Whether an ``open`` can change nothing."""
    return not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)


sys.addaudithook(watch)


def watched(action: Callable[[], object]) -> object:
    """Does it with the hook armed, within SECONDS and BYTES, and with no event but reading."""
    global armed
    events.clear()
    tracemalloc.start()
    start, armed = time.process_time(), True
    try:
        return action()
    finally:
        armed = False
        seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert events == []
        assert seconds < SECONDS and peak < BYTES, f"{seconds:.1f} s, {peak / 2**20:.0f} MiB"


def assert_refused(path: Path, phrase: str) -> None:
    """The file is refused with one sentence that names it and has the phrase."""

    def refused() -> str:
        try:
            read_file(path)
        except CheckpointError as error:
            return str(error)
        return "it was read"

    message = watched(refused)
    assert message.startswith(f"{path}: ") and phrase in message and "unforeseen" not in message
    assert len(message) < 600 and "\n" not in message


@pytest.fixture(autouse=True, scope="module")
def warm(tmp_path_factory):
    """Whatever is imported at the first reading is imported before."""
    for writer in WRITERS.values():
        tensors = read_file(written(tmp_path_factory.mktemp("warm"), writer(make.example_arrays()))).tensors
        assert all(tensor.read() is not None for tensor in tensors.values())


def test_the_hook_sees_what_it_must(tmp_path):
    """The check itself can fail: each of these is seen."""
    for action in (
        lambda: open(tmp_path / "new", "w").close(),
        lambda: os.system("true"),
        lambda: eval("1"),
        lambda: pickle.loads(make.program(make.name("os", "getpid"))),
        lambda: (tmp_path / "folder").mkdir(),
    ):
        with pytest.raises(AssertionError, match="assert"):
            watched(action)


def cases(*tables: dict) -> list:
    """Test parameters of (content, phrase) with the tables' names as ids."""
    return [pytest.param(*case, id=name) for table in tables for name, case in table.items()]


@pytest.mark.parametrize(("data", "phrase"), cases(MISTAKEN, SAFETENSORS, ZIPS, LEGACY))
def test_bad_files(tmp_path, data, phrase):
    assert_refused(written(tmp_path, data, "model.ckpt"), phrase)


@pytest.mark.parametrize(("content", "phrase"), cases(BOMBS, BROKEN, TENSORS))
def test_bad_pickles_in_a_zip(tmp_path, content, phrase):
    assert_refused(written(tmp_path, make.zip_bytes(make.torch_entries(content, [STORAGE]))), phrase)


@pytest.mark.parametrize(("content", "phrase"), cases(BROKEN))
def test_bad_pickles_in_the_old_container(tmp_path, content, phrase):
    keys = {"0": (4, STORAGE)} if "lone tensor" in phrase or b"torch" in make.pickled(content) else {}
    assert_refused(written(tmp_path, make.legacy_bytes(content, keys)), phrase)


def test_a_pickle_without_an_end(tmp_path):
    whole = make.program({"x": make.FOUR})
    entries = make.torch_entries(None, [STORAGE], pickle=whole[:-1])
    assert_refused(written(tmp_path, make.zip_bytes(entries)), "wants 1 bytes more, 0 are there")


def test_a_pickle_of_more_than_64_mib(tmp_path):
    entries = make.torch_entries(None, [STORAGE], pickle=bytes((64 << 20) + 1))
    assert_refused(written(tmp_path, make.zip_bytes(entries)), "at most 67108864 make sense")


def test_a_far_memo_and_a_harmless_name_cost_nothing(tmp_path):
    far = b"r" + b"\xff" * 4
    inert = make.called(make.name("omegaconf.dictconfig", "os.system"), "true")
    content = {"x": make.tensor(make.FOUR) + far + b"j" + b"\xff" * 4 + b"\x86", "config": inert}
    path = written(tmp_path, make.zip_bytes(make.torch_entries(content, [STORAGE])))
    assert list(watched(lambda: read_file(path)).tensors) == ["x.0", "x.1"]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("attack", attacks(Path("canary")))
def test_attacks_are_real_and_do_nothing_here(tmp_path, attack):
    canary = tmp_path / "canary"
    operations, phrase = attacks(canary)[attack]
    copyreg.add_extension("os", "system", 0xF0)
    try:
        pickle.loads(make.program(operations))
    except Exception as error:  # many attacks leave a value that the rest of a pickle cannot use
        print(f"after the attack: {error}")
    finally:
        copyreg.remove_extension("os", "system", 0xF0)
    until = time.monotonic() + 5
    while not canary.exists() and time.monotonic() < until:
        time.sleep(0.01)
    canary.unlink()  # fails where the attack does not work on Python's own pickle
    nested = {"state_dict": {"x": make.FOUR, "y": operations}}
    for data in (
        make.program(operations),
        make.zip_bytes(make.torch_entries(nested, [STORAGE])),
        make.legacy_bytes(nested, {"0": (4, STORAGE)}),
        make.program(make.LEGACY_MAGIC) + make.program(1001) + make.program({"little_endian": operations}),
    ):
        assert_refused(written(tmp_path, data), phrase)
        assert not canary.exists()


@pytest.mark.parametrize("container", WRITERS)
@pytest.mark.parametrize("eighth", range(1, 8))
def test_interrupted_downloads(tmp_path, container, eighth):
    data = WRITERS[container]({"x": np.zeros(4096, np.float32), "y": np.ones(4096, np.float32)})
    assert_refused(written(tmp_path, data[: len(data) * eighth // 8]), "truncated")


def test_what_is_not_a_file(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    written(tmp_path, b"1")
    assert_refused(tmp_path, "is a folder, not a file")
    assert_refused(tmp_path / "nowhere", "cannot be read (No such file")
    assert_refused(tmp_path / "dangling", "cannot be read (No such file")
    assert_refused(tmp_path / "loop", "cannot be read (Too many")
    assert_refused(tmp_path / "file" / "x", "cannot be read (Not a directory")
    assert_refused(tmp_path / "pipe", "is not a regular file")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser reads every file")
def test_an_unreadable_file(tmp_path):
    path = written(tmp_path, make.safetensors_bytes(make.example_arrays()))
    path.chmod(0)
    assert_refused(path, "cannot be read (Permission denied)")


SHARDS = {
    "not JSON": (b"{", "is not JSON"),
    "JSON nested deep": (b"[" * 100_000, "is not JSON"),
    "not UTF-8": (b'{"\xff": 1}', "is not JSON"),
    "a list": (b"[1]", "needs weight_map"),
    "no map": (b'{"metadata": {}}', "needs weight_map"),
    "map of numbers": (b'{"weight_map": {"x": 3}}', "needs weight_map"),
    "shard outside": (b'{"weight_map": {"x": "../../etc/passwd"}}', "names the shard '../../etc/passwd'"),
    "shard at the root": (b'{"weight_map": {"x": "/etc/passwd"}}', "names the shard '/etc/passwd'"),
    "shard with a backslash": (rb'{"weight_map": {"x": "..\\passwd"}}', "plain file names"),
    "shard that is the folder above": (b'{"weight_map": {"x": ".."}}', "plain file names"),
    "shard of another drive": (b'{"weight_map": {"x": "c:x"}}', "plain file names"),
    "shard without a name": (b'{"weight_map": {"x": ""}}', "plain file names"),
    "shard missing": (b'{"weight_map": {"x": "a", "z": "c"}}', "c: this shard is missing"),
    "tensor missing": (b'{"weight_map": {"x": "a", "w": "a"}}', "a: lacks tensor 'w'"),
    "tensor in the other shard": (b'{"weight_map": {"x": "a", "y": "a", "z": "b"}}', "a: lacks tensor 'y'"),
    "tensor in two shards": (b'{"weight_map": {"x": "a", "y": "again"}}', "is in two shards, a and again"),
    "shard that is a pointer": (b'{"weight_map": {"x": "a", "y": "pointer"}}', "pointer: is a git-LFS pointer"),
}


@pytest.mark.parametrize(("index", "phrase"), cases(SHARDS))
def test_bad_shards(tmp_path, index, phrase):
    array = np.zeros(2, np.float32)
    for name, tensors in {"a": {"x": array}, "b": {"y": array, "z": array}, "again": {"y": array, "x": array}}.items():
        written(tmp_path, make.safetensors_bytes(tensors), name)
    written(tmp_path, MISTAKEN["LFS pointer"][0], "pointer")
    path = written(tmp_path, index, "net.safetensors.index.json")
    with pytest.raises(CheckpointError, match=re.escape(phrase)):
        read_sharded(path)


def mutated(data: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    """``data`` with bytes replaced, inserted or deleted at places modulo its length."""
    for change, place, new in changes:
        at = place % (len(data) + 1)
        gone = {"insert": 0, "replace": len(new), "delete": 3 * len(new)}[change]
        data = data[:at] + (b"" if change == "delete" else new) + data[at + gone :]
    return data


MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "replace", "delete"]), st.integers(0, 4000), st.binary(min_size=1, max_size=8)
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(WRITERS)), MUTATIONS)
@example("zip", [("replace", 0, b"PK\5\6")])
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, container, changes):
    data = mutated(WRITERS[container](make.example_arrays()), changes)
    path = written(tmp_path_factory.getbasetemp(), data, "mutated")

    def attempt() -> str:
        try:
            return f"{sum(tensor.read().nbytes for tensor in read_file(path).tensors.values())} bytes"
        except CheckpointError as error:
            return str(error)

    assert "unforeseen" not in watched(attempt)
