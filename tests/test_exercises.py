"""The exercises themselves: their checks catch every known mistake, and their stubs are the library's, unwritten."""

import json
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from ldm.cli import main
from ldm.course import Claim, check, claim, exercise
from ldm.course.command import state
from ldm.course.exercise import NotWritten, diagnosis, discover, file_of, grade, uncaught, yours
from ldm.course.stubs import stubs, topic_of

ROOT = Path(__file__).parents[1]
EXERCISES = discover(ROOT)


def test_there_are_enough():
    assert len(EXERCISES) >= 24
    lessons = {number: len(list(group)) for number, group in groupby(EXERCISES, lambda each: each.lesson)}
    assert all(4 <= count <= 8 for count in lessons.values()), lessons


@pytest.mark.parametrize("one", EXERCISES, ids=lambda each: each.id)
def test_every_mistake_is_caught_and_no_check_is_spare(one):
    assert uncaught(one) == []
    assert len(one.hints) >= 2 and len(one.wrong) >= 2 and one.checks


@pytest.mark.parametrize("one", EXERCISES, ids=lambda each: each.id)
def test_every_mistake_is_called_by_its_name(one):
    """Where it is caught, what is said names it."""
    for words, wrong in one.wrong.items():
        said = [text for each in one.checks if (text := grade(one, each, wrong))]
        assert any(f"This is what you get from: {words}" in text for text in said), words


@pytest.mark.parametrize("lesson", sorted({each.lesson for each in EXERCISES}))
def test_stubs_are_the_generated_ones(lesson, request):
    if not request.config.getoption("--pristine"):
        pytest.skip("only with --pristine: these are yours to write")
    mine = [each for each in EXERCISES if each.lesson == lesson]
    assert file_of(mine[0], ROOT).read_text(encoding="utf-8") == stubs(mine, topic_of(lesson, ROOT))
    for each in mine:
        assert state(each, ROOT) == "to write"


# ---- the machinery, on a small exercise ----


SMALL = exercise.Exercise(
    "99.1",
    "ldm.guidance:scale_from_w",
    minutes=1,
    lines=1,
    hints=("one more",),
    wrong={"w taken for the scale": lambda w: w, "one less where one more belongs": lambda w: w - 1},
)


@SMALL.check
def scale_of_nought(f):
    """w = 0 is no guidance, scale 1."""
    np.testing.assert_allclose(f(0.0), 1.0)


@SMALL.check
def scale_of_many(f):
    """Each w is its scale less one."""
    np.testing.assert_allclose(f(np.arange(3.0)) - f(np.zeros(3)), [0, 1, 2])


def place_with(tmp_path: Path, text: str) -> Path:
    """A clone that holds one learner's file."""
    (tmp_path / "lessons/exercises").mkdir(parents=True)
    (tmp_path / "lessons/exercises/e99_small.py").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("from ldm.guidance import scale_from_w\n", "uses the library's own scale_from_w"),
        ("from ldm.guidance import scale_from_w as s\ndef scale_from_w(w):\n    return s(w)\n", "the library's own"),
        ("from ldm import guidance\ndef scale_from_w(w):\n    return guidance.scale_from_w(w)\n", "the library's own"),
        ("def scale_from_w(w):\n    return w +\n", "cannot be imported, line 2: SyntaxError"),
        ("import nothing_of_this_name\n", "cannot be imported, line 1: ModuleNotFoundError"),
        ("x = 1\n", "is gone; `git checkout lessons/exercises/e99_small.py`"),
    ],
)
def test_what_cannot_be_graded_is_one_sentence(tmp_path, text, words):
    with pytest.raises(NotWritten, match=words) as caught:
        yours(SMALL, place_with(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert state(SMALL, tmp_path) == str(caught.value)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("raise NotImplementedError", "to write"),
        ("return w", "1 of 2 checks"),
        ("return w + 1", "done"),
        ("return np.scale_from_w(w) if 0 else w + 1", "done"),  # somebody else's function of the same name
        ("return undefined", "0 of 2 checks"),
    ],
)
def test_states(tmp_path, body, wanted):
    assert state(SMALL, place_with(tmp_path, f"import numpy as np\ndef scale_from_w(w):\n    {body}\n")) == wanted


def test_a_wrong_answer_is_told_what_must_hold_and_what_it_is():
    said = grade(SMALL, scale_of_nought, lambda w: w)
    assert said.startswith("99.1 scale_from_w: w = 0 is no guidance, scale 1.")
    assert "ACTUAL: 0.0" in said.replace("array(0.)", "0.0") and said.endswith("from: w taken for the scale")
    other = grade(SMALL, scale_of_nought, lambda w: w + 2)
    assert "This is what" not in other
    assert "ZeroDivisionError" in grade(SMALL, scale_of_nought, lambda w: 1 / 0)
    assert "NameError in line 2: `return wrong`" in diagnosis(SMALL, scale_of_nought, _error(), [])


def _error() -> NameError:
    """One that was raised in a learner's file."""
    try:
        exec(compile("def f():\n    return wrong\nf()", "/x/exercises/e99_small.py", "exec"), {})
    except NameError as error:
        import linecache

        linecache.cache["/x/exercises/e99_small.py"] = (1, None, ["def f():\n", "    return wrong\n", "f()\n"], "x")
        return error
    raise AssertionError


def test_a_spare_check_and_an_uncaught_mistake_are_found():
    made = exercise.Exercise("99.2", SMALL.target, 1, 1, (), {"w taken for the scale": lambda w: w})
    made.check(lambda f: np.testing.assert_allclose(f(1.0) - f(0.0), 1.0))
    assert uncaught(made) == [
        "99.2: no check catches: w taken for the scale",
        "99.2: without <lambda> every mistake is still caught",
    ]


def test_a_notebook_can_call_the_checks(capsys):
    first = EXERCISES[0]
    check(first.id, first.reference)
    assert capsys.readouterr().out.count("✓") == len(first.checks)
    with pytest.raises(ValueError, match=r"there is no exercise '77\.7'"):
        check("77.7", len)


def test_the_command_lists_them(capsys):
    assert main(["exercises"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(EXERCISES[0].id) and len(lines) == len(EXERCISES) + 1
    assert lines[-1].startswith("next: ") or lines[-1] == "all done"


def test_pytest_tells_todo_from_wrong_from_done(tmp_path):
    """The whole way of a learner, in a copy."""
    for part in ("lessons/exercises", "tests"):
        (tmp_path / part).mkdir(parents=True)
    name = EXERCISES[0].id[:2]
    checks = next((ROOT / "tests").glob(f"test_{name}_*.py"))
    beside = [ROOT / f"tests/{own}.py" for own in ("conftest", "exercises", "random_parts")]
    for path in (*beside, checks):
        (tmp_path / "tests" / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    mine = [each for each in EXERCISES if each.lesson == name]
    stub = tmp_path / "lessons/exercises" / file_of(mine[0], ROOT).name
    stub.write_text(stubs(mine, topic_of(name, ROOT)), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", f"tests/{checks.name}", "-q", "-p", "no:cacheprovider", "--hints", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert f"next: {mine[0].id} {mine[0].name} -> lessons/exercises/{stub.name}" in done.stdout
    assert f"hint 1 for {mine[0].id}: {mine[0].hints[0]}" in done.stdout and "to write" in done.stdout


# ---- claims ----


def test_claims(tmp_path, monkeypatch):
    monkeypatch.delenv("LDM_FAST", raising=False)
    monkeypatch.setenv("LDM_RESULTS", str(tmp_path / "claims.json"))
    made = claim("it is one", [0.9, 1.0, 1.1], 0.8, 1.2, source="nowhere", floor=0.0, unit="m", row=3)
    assert isinstance(made, Claim) and made.holds and "1 ± 0.1 m over 3 seeds" in str(made)
    with pytest.raises(AssertionError, match="does not hold"):
        claim("it is two", [1, 1, 1], 2, source="nowhere")
    red = claim("it is two", [1, 1, 1], 2, source="nowhere", reason="it is <one>")
    assert not red.holds and "&lt;one&gt;" in red._repr_html_()
    kept = json.loads((tmp_path / "claims.json").read_text())
    assert [line["holds"] for line in kept] == [True, False] and kept[1]["high"] is None
    for measured in ([1.0, 1.0], [1.0, 1.0, float("nan")]):
        with pytest.raises(AssertionError, match="three seeds"):
            claim("too few", measured, source="nowhere")
    monkeypatch.setenv("LDM_FAST", "1")
    assert not claim("it is two", [1, 1, 1], 2, source="nowhere").holds
    assert len(json.loads((tmp_path / "claims.json").read_text())) == 2
