"""``ldm train``: what it hands on, what it says, and what it does not import until it runs."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny_training import CONFIG, task

from ldm.cli import main
from ldm.training import command

TABLE = "".join(f"{key} = {value}\n" for key, value in CONFIG.items())


@pytest.fixture
def tasks(monkeypatch) -> dict:
    """The tasks of the command, replaced by the tiny one; its name is the command's."""
    module = ModuleType("ldm.training.tasks")
    module.TASKS = {"vae": lambda config, out: task(name="vae")}
    monkeypatch.setitem(sys.modules, "ldm.training.tasks", module)
    monkeypatch.setattr("ldm.training.tasks", module, raising=False)
    return module.TASKS


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A configuration file."""
    path = tmp_path / "recipe.toml"
    path.write_text(TABLE)
    return path


def run(capsys, *argv) -> tuple[int, str, str]:
    """(status, standard output, standard error) of ``ldm train``."""
    status = main(["train", *map(str, argv)])
    return status, *capsys.readouterr()


def test_a_run_is_begun_finished_and_gone_on_with(capsys, tasks: dict, recipe: Path, tmp_path: Path):
    out = tmp_path / "run"
    argv = ("vae", "--config", recipe, "--steps", 4, "--out", out)
    assert run(capsys, *argv) == (0, f"{out}\n", "")
    assert (out / "net.safetensors").exists() and (out / "checkpoints/step-00000004/seal").exists()
    before = (out / "net.safetensors").read_bytes()
    status, printed, err = run(capsys, *argv)
    assert (status, printed) == (2, "") and err.startswith(f"error: {out}: already holds a run; add --resume")
    assert run(capsys, *argv, "--resume") == (0, f"{out}\n", "going on from the checkpoint of step 4\n")
    assert (out / "net.safetensors").read_bytes() == before
    argv = ("vae", "--config", recipe, "--steps", 5, "--out", out, "--resume")
    status, _, err = run(capsys, *argv)
    assert status == 2 and "other settings: steps was 4 and is 5" in err


def test_ctrl_c_is_told_and_has_its_own_status(capsys, tasks: dict, recipe: Path, tmp_path: Path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ldm.training.loop.train", stopped)
    assert run(capsys, "vae", "--config", recipe, "--steps", 4, "--out", tmp_path / "run") == (130, "", "")


@pytest.mark.parametrize(
    ("table", "steps", "words"),
    [
        (TABLE, 0, "--steps must be at least 1, got 0"),
        (TABLE + "bacth = 3\n", 4, "recipe.toml: unknown key 'bacth'; did you mean 'batch'?"),
        (TABLE + "[optimiser]\nlearning_rate = -1\n", 4, "recipe.toml: optimiser: learning_rate of the optimiser must"),
    ],
)
def test_mistakes_are_one_sentence(capsys, tasks: dict, recipe: Path, tmp_path: Path, table, steps, words):
    recipe.write_text(table)
    status, printed, err = run(capsys, "vae", "--config", recipe, "--steps", steps, "--out", tmp_path / "run")
    assert (status, printed) == (2, "") and words in err and len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_taken_is_refused_before_data_are_made_ready(
    capsys, tasks: dict, recipe: Path, tmp_path: Path
):
    tasks["vae"] = lambda config, out: pytest.fail("the task was made")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/letter.txt").write_text("mine")
    status, _, err = run(capsys, "vae", "--config", recipe, "--steps", 4, "--out", tmp_path / "run")
    assert status == 2 and "already exists and is not an empty folder" in err


def test_missing_packages_are_one_sentence(capsys, tasks: dict, recipe: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(command, "EXTRA", ("grane", "matplotlab"))
    status, _, err = run(capsys, "vae", "--config", recipe, "--steps", 4, "--out", tmp_path / "run")
    assert (status, err) == (2, "error: training needs grane and matplotlab: pip install 'ldm[train]'\n")


def test_other_commands_do_not_wait_for_what_training_imports():
    code = "import sys, ldm.cli; print([name for name in ('orbax', 'grain', 'matplotlib') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[]\n"


def test_every_task_has_its_maker():
    from ldm.training import controlnet, ip_adapter, personal, tasks

    assert (*tasks.TASKS, *personal.TASKS, *controlnet.TASKS, *ip_adapter.TASKS) == command.TASKS
