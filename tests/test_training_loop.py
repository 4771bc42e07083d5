"""The loop: a run that was killed ends as one that was not; what it writes; and what it refuses to begin."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_training import config, task

from ldm.training import reports
from ldm.training.checkpoints import checkpoints
from ldm.training.loop import check_out, train
from ldm.training.optimiser import make
from ldm.training.step import start

pytestmark = pytest.mark.optimised

KILLS = int(os.environ.get("LDM_KILLS", "3"))
STEPS = 40 if KILLS <= 3 else 20 * KILLS
PROGRAM = Path(__file__).with_name("tiny_training.py")


def program(*argv: Any, devices: int = 1, code: str | None = None) -> subprocess.Popen:
    """The tiny run, or other code, as a process of its own, begun."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    argv = [sys.executable, *([str(PROGRAM)] if code is None else ["-c", code]), *map(str, argv)]
    return subprocess.Popen(argv, cwd=PROGRAM.parent, env=environment, **pipes)


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """(status, standard error) of a process, once it is over."""
    _, err = process.communicate(timeout=120)
    return process.returncode, err


def last_state(out: Path) -> list[np.ndarray]:
    """The arrays of the newest checkpoint."""
    tiny = task()
    with checkpoints(out / "checkpoints", keep=3) as kept:
        state, data = kept.newest(start(tiny.params, make(config().optimiser, STEPS)))
    assert data == {"n": int(state.step)}
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def told(out: Path) -> list[dict]:
    """The lines of metrics without what depends on the clock."""
    lines = reports.read(out / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in ("seconds", "samples_per_second")} for line in lines]


def same_run(a: Path, b: Path) -> bool:
    """Whether two runs came to the same state, bit for bit, the same weights, samples and metrics."""
    assert all(np.array_equal(x, y) for x, y in zip(last_state(a), last_state(b), strict=True))
    for name in ("net.safetensors", *(f"samples/step-{step:06d}.png" for step in range(20, STEPS + 1, 20))):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    return told(a) == told(b)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    """The folder of a run that nobody stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    status, err = ended(program(out, STEPS))
    assert (status, err) == (0, "")
    return out


# ---- stopped, and going on ----


def killed(out: Path, seed: int) -> None:
    """Runs on, waits until a new checkpoint lies there and a little more, then kills the process.

    With seed 0 the wait is only until the run has begun: there is no checkpoint yet.
    """
    sign = "config.json" if seed == 0 else "checkpoints/*/seal"
    before, process = set(out.glob(sign)), program(out, STEPS, "--resume")
    while set(out.glob(sign)) <= before and process.poll() is None:
        time.sleep(0.005)
    time.sleep(random.Random(seed).uniform(0, 0.4))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run was over too soon"


@pytest.mark.long
def test_a_run_killed_at_random_moments_ends_in_the_same_bits(whole_run: Path, tmp_path: Path):
    """Three kills here; LDM_KILLS=10 makes it ten."""
    out = tmp_path / "run"
    for seed in range(KILLS):
        killed(out, seed)
    status, err = ended(program(out, STEPS, "--resume"))
    assert status == 0 and "going on from the checkpoint of step" in err
    assert same_run(whole_run, out)


def test_signals_end_a_run_with_a_checkpoint_and_it_goes_on(whole_run: Path, tmp_path: Path, capsys):
    """At steps where no checkpoint was due; and the handlers of before are back."""
    out, seen = tmp_path / "run", []
    for step, number in ((13, signal.SIGTERM), (14, signal.SIGINT)):
        before = signal.getsignal(number)

        def stop(state, metrics, step=step, number=number):
            seen.append(int(state.step))
            if seen[-1] == step:
                os.kill(os.getpid(), number)

        with pytest.raises(KeyboardInterrupt):
            train(task(), config(), out, STEPS, resume=True, on_step=stop)
        words = f"stopped at step {step} of {STEPS}; the same command with --resume goes on from there"
        assert words in capsys.readouterr().err
        assert signal.getsignal(number) is before
    assert not (out / "net.safetensors").exists()
    train(task(), config(), out, STEPS, resume=True, on_step=lambda state, metrics: seen.append(int(state.step)))
    assert seen == list(range(1, STEPS + 1))
    others = lambda run: [line for line in told(run) if line["step"] not in (13, 14)]  # 13 has a line of its own
    assert others(out) == others(whole_run)
    assert all(np.array_equal(x, y) for x, y in zip(last_state(out), last_state(whole_run), strict=True))


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(whole_run: Path, tmp_path: Path):
    out, seen = shutil.copytree(whole_run, tmp_path / "run"), []
    next((out / "checkpoints/step-00000040/arrays/d").iterdir()).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"step-00000040 is damaged: .* looking for an older"):
        train(task(), config(), out, STEPS, resume=True, on_step=lambda s, m: seen.append(int(s.step)))
    assert seen == [36, 37, 38, 39, 40] and same_run(whole_run, out)


def test_a_run_that_is_to_end_early_writes_its_weights_and_can_go_on(whole_run: Path, tmp_path: Path):
    out = tmp_path / "run"
    assert int(train(task(), config(), out, STEPS, until=10).step) == 10
    assert (out / "net.safetensors").read_bytes() != (whole_run / "net.safetensors").read_bytes()
    train(task(), config(), out, STEPS, resume=True)
    assert same_run(whole_run, out)


def test_a_finished_run_goes_on_to_nothing(whole_run: Path):
    before, seen = told(whole_run), []
    state = train(task(), config(), whole_run, STEPS, resume=True, on_step=lambda s, m: seen.append(int(s.step)))
    assert not seen and int(state.step) == STEPS and told(whole_run) == before


ON_EIGHT_DEVICES = """
import os, signal, sys
from pathlib import Path
import jax
from tiny_training import config, task, train
assert jax.device_count() == 8
out, numbers = Path(sys.argv[1]), config(fsdp=4, checkpoint_every=100)
train(task(), numbers, out / "whole", 25)
stop = lambda state, metrics: os.kill(os.getpid(), signal.SIGINT) if int(state.step) == 7 else None
try:
    train(task(), numbers, out / "stopped", 25, on_step=stop)
except KeyboardInterrupt:
    train(task(), numbers, out / "stopped", 25, resume=True)
"""


@pytest.mark.long
def test_a_run_over_eight_devices_is_stopped_and_goes_on_in_the_same_bits(tmp_path: Path):
    """Data parallel by two, the state over four."""
    status, err = ended(program(tmp_path, devices=8, code=ON_EIGHT_DEVICES))
    assert status == 0, err
    assert "stopped at step 7 of 25" in err and "going on from the checkpoint of step 7" in err
    a, b = tmp_path / "whole", tmp_path / "stopped"
    assert all(np.array_equal(x, y) for x, y in zip(last_state(a), last_state(b), strict=True))
    for name in ("net.safetensors", "samples/step-000020.png", "samples/step-000025.png"):
        assert (a / name).read_bytes() == (b / name).read_bytes()


def test_a_full_disk_is_one_sentence_and_older_checkpoints_stay(whole_run: Path, tmp_path: Path):
    """A limit on the size of files stands for it: real writes fail, in orbax's own threads."""
    out = shutil.copytree(whole_run, tmp_path / "run")
    shutil.rmtree(out / "checkpoints/step-00000040")
    status, err = ended(program(out, STEPS, "--resume", "--file-size", 80_000))
    lines = err.splitlines()
    assert status == 1 and len(lines) == 2 and lines[0] == "going on from the checkpoint of step 35"
    assert lines[1].startswith(f"error: {out / 'checkpoints'}: cannot write the checkpoint of step 40 (File too large)")
    assert lines[1].endswith("that of step 35 is still there")
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000030", "step-00000035"]


# ---- what it writes ----


def test_what_a_run_leaves_behind(whole_run: Path):
    lines = reports.read(whole_run / "metrics.jsonl")
    assert [line["step"] for line in lines] == sorted({*range(2, STEPS + 1, 2), *range(5, STEPS + 1, 5)})
    assert set(lines[0]) == {
        *("step", "seconds", "samples_per_second", "loss", "largest"),
        *("grad_norm", "learning_rate", "skipped"),
    }
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
    assert sorted(path.name for path in (whole_run / "checkpoints").iterdir()) == [
        f"step-000000{step}" for step in (30, 35, 40)
    ]
    with Image.open(whole_run / "curve.png") as curve:
        assert curve.format == "PNG" and curve.size == (880, 550)
    assert [path.name for path in sorted((whole_run / "samples").iterdir())] == [
        f"step-0000{step}.png" for step in (20, 40)
    ]
    saved = json.loads((whole_run / "config.json").read_text())
    assert (saved["task"], saved["steps"], saved["config"]["batch"]) == ("tiny", STEPS, 16)


def test_a_line_is_the_mean_of_the_steps_since_the_line_before(tmp_path: Path):
    losses = []
    train(task(sample=None), config(), tmp_path / "run", 8, on_step=lambda s, m: losses.append(float(m["loss"])))
    lines = told(tmp_path / "run")
    assert [line["step"] for line in lines] == [2, 4, 5, 6, 8]
    for before, line in zip([{"step": 0}, *lines[:-1]], lines, strict=True):
        assert line["loss"] == pytest.approx(np.mean(losses[before["step"] : line["step"]]), rel=1e-5)
    assert not (tmp_path / "run/samples").exists()


# ---- what it refuses ----


@pytest.mark.parametrize(
    ("changes", "steps", "words"),
    [
        (
            {"optimiser": {"clip": 2}, "seed": 1},
            STEPS,
            "config.optimiser.clip was 1.0 and is 2.0; config.seed was 0 and is 1",
        ),
        ({}, 41, r"steps was 40 and is 41 \(the learning rate depends on the number of steps\)"),
        ({"data": {"size": 64}}, STEPS, "config.data.size was nothing and is 64"),
    ],
)
def test_a_run_goes_on_only_with_its_own_settings(whole_run: Path, changes: dict, steps: int, words: str):
    with pytest.raises(ValueError, match=f"the run there has other settings: {words}$"):
        train(task(), config(**changes), whole_run, steps, resume=True)


def test_a_folder_that_is_taken_is_refused(whole_run: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="already holds a run; add --resume to go on with it, or choose another --out"):
        train(task(), config(), whole_run, STEPS)
    (tmp_path / "letter.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(ValueError, match="already exists and is not an empty folder"):
            train(task(), config(), tmp_path, STEPS, resume=resume)
    (tmp_path / "config.json").write_text('{"format": "ldm bundle"}')
    with pytest.raises(ValueError, match="already holds something else than a training run"):
        train(task(), config(), tmp_path, STEPS, resume=True)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: cannot be read"):
        train(task(), config(), tmp_path, STEPS, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_what_a_process_leaves_that_was_killed_before_it_began_is_in_nobodys_way(tmp_path: Path, resume: bool):
    (tmp_path / ".config.json-x").write_text("{")
    (tmp_path / "cache").mkdir()
    check_out(tmp_path, {}, resume)
    check_out(tmp_path / "new", {}, resume)
    (tmp_path / "cached").mkdir()
    with pytest.raises(ValueError, match="not an empty folder"):
        check_out(tmp_path, {}, resume)


def test_a_checkpoint_of_another_model_is_refused(whole_run: Path):
    with pytest.raises(
        ValueError, match="checkpoint of another model: 8 of 12 arrays differ, such as average/net/first"
    ):
        train(task(width=16), config(), whole_run, STEPS, resume=True)


def test_training_that_has_come_to_nothing_stops(tmp_path: Path):
    broken = task(frozen={"noise": np.float32(np.nan)})
    with pytest.raises(ValueError, match="no gradient was finite in the steps up to 2; try a lower learning rate"):
        train(broken, config(), tmp_path / "run", STEPS)
    assert reports.read(tmp_path / "run/metrics.jsonl")[0]["loss"] is None
