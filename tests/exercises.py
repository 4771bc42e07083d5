"""How pytest grades exercises: each check twice, ``[ldm]`` the library's function and ``[yours]`` the learner's.

The hooks of this file are those of conftest.py. What an exercise is, and what is said of a wrong answer: ldm.course.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.course.exercise import NotWritten, Recorder, diagnosis, discover, file_of, yours

ROOT = Path(__file__).parents[1]
RECORDER = pytest.StashKey[Recorder]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("exercises")
    group.addoption("--hints", type=int, default=0, metavar="N", help="show N hints for each exercise still to do")
    group.addoption("--pristine", action="store_true", help="prove that the stubs are untouched, and fail")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if hasattr(metafunc.function, "exercise"):
        metafunc.parametrize("f", ["ldm", "yours"], indirect=True)


@pytest.fixture
def f(request: pytest.FixtureRequest) -> Recorder:
    """The implementation that a check grades."""
    exercise = request.function.exercise
    request.node.user_properties.append(("exercise", [exercise.id, exercise.name, request.param]))
    if request.param == "ldm":
        return Recorder(exercise.reference)
    try:
        request.node.stash[RECORDER] = Recorder(yours(exercise, ROOT))
    except NotWritten as error:
        pytest.fail(str(error), pytrace=False)
    return request.node.stash[RECORDER]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> pytest.TestReport:
    report = yield
    exercise = getattr(getattr(item, "function", None), "exercise", None)
    recorder = item.stash.get(RECORDER, None)
    if exercise is None or recorder is None or call.when != "call" or call.excinfo is None:
        return report
    if call.excinfo.errisinstance(NotImplementedError):
        report.outcome, report.longrepr = "skipped", (str(item.path), 0, f"to write: {exercise.id} {exercise.name}")
        report.todo = True
        return report
    said = diagnosis(exercise, item.function, call.excinfo.value, recorder.calls)
    report.longrepr = said + _beside(exercise, recorder)
    return report


def _beside(exercise, recorder: Recorder) -> str:
    """Saves what was made beside what was to be made, where there is something to see."""
    if exercise.show is None:
        return ""
    try:
        mine = np.asarray(exercise.show(recorder.function))
    except Exception:
        return ""
    target = np.asarray(exercise.show(exercise.reference))
    path = ROOT / "lessons" / "exercises" / "seen" / f"{exercise.id}.png"
    path.parent.mkdir(exist_ok=True)
    gap = np.full((target.shape[0], 8, 3), 255, np.uint8)
    Image.fromarray(np.concatenate([mine, gap, target], axis=1)).save(path)
    return f"\n    Yours, and beside it the target: {path.relative_to(ROOT)}"


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    if getattr(report, "todo", False):
        return "to write", "-", "TO WRITE"
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    states = defaultdict(list)
    for outcome in ("passed", "failed", "error", "to write"):
        for report in terminalreporter.stats.get(outcome, []):
            for key, value in getattr(report, "user_properties", []):
                if key == "exercise" and value[2] == "yours" and (report.when == "call" or outcome != "passed"):
                    states[value[0], value[1]].append(outcome)
    if not states:
        return
    begun = {key for key, seen in states.items() if set(seen) != {"to write"}}
    terminalreporter.section("exercises")
    if not begun and len({number.partition(".")[0] for number, _ in states}) > 1:
        terminalreporter.write_line(f"{len(states)} to write: `ldm exercises` lists them")
        return
    for number, name in sorted(states):
        terminalreporter.write_line(f"{number}  {name:28s} {_state(states[number, name])}")
    _next(terminalreporter, config, [key for key in sorted(states) if set(states[key]) != {"passed"}])


def _state(seen: list[str]) -> str:
    """ "done", "1 of 2 checks", "to write"."""
    if set(seen) == {"to write"}:
        return "to write"
    return "done" if set(seen) == {"passed"} else f"{seen.count('passed')} of {len(seen)} checks"


def _next(terminalreporter: pytest.TerminalReporter, config: pytest.Config, left: list[tuple[str, str]]) -> None:
    """Names the exercise to do next, with hints if asked for."""
    if not left:
        terminalreporter.write_line("all done")
        return
    exercises = {exercise.id: exercise for exercise in discover(ROOT)}
    number, name = left[0]
    terminalreporter.write_line(f"next: {number} {name} -> {file_of(exercises[number], ROOT).relative_to(ROOT)}")
    for number, _ in left:
        for i, hint in enumerate(exercises[number].hints[: config.getoption("hints")], 1):
            terminalreporter.write_line(f"hint {i} for {number}: {hint}")
