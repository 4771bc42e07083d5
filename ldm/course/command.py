"""``ldm exercises``: what there is to write, what is done, and what comes next. Runs from a clone of the project."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from ldm.course.exercise import Exercise, NotWritten, discover, file_of, grade, root, uncaught, yours

GRADER = (
    "import json, sys\n"
    "from pathlib import Path\n"
    "from ldm.course.command import states\n"
    "print('\\n' + json.dumps(states(Path(sys.argv[1]))))"
)


def add(commands: argparse._SubParsersAction) -> None:
    """Its options."""
    parser = commands.add_parser("exercises", help="list the exercises of the lessons, what is done and what is next")
    parser.add_argument(
        "--audit", action="store_true", help="instead: check the checks, by the mistakes that are known"
    )


def run(args: argparse.Namespace) -> None:
    """Prints the list. Raises ValueError outside of a clone, and for checks that fall short."""
    try:
        place = root()
    except NotWritten as error:
        raise ValueError(str(error)) from None
    exercises = discover(place)
    if args.audit:
        amiss = [line for each in exercises for line in uncaught(each)]
        if amiss:
            raise ValueError("; ".join(amiss))
        mistakes = sum(len(each.wrong) for each in exercises)
        print(f"{len(exercises)} exercises, {mistakes} mistakes: each is caught, and no check is spare")
        return
    found = _states_elsewhere(place)
    for each in exercises:
        print(f"{each.id}  {each.name:28s} {each.minutes:3d} min  {found[each.id]}")
    left = [each for each in exercises if found[each.id] != "done"]
    if left:
        print(f"next: {left[0].id} {left[0].name} -> {file_of(left[0], place).relative_to(place)}")
    else:
        print("all done")


def _states_elsewhere(place: Path) -> dict[str, str]:
    """``states`` in a process of its own: what a learner's file does or prints stays there."""
    command = [sys.executable, "-c", GRADER, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, check=False)
    if done.returncode != 0:
        raise ValueError(f"the exercises cannot be graded: {done.stderr.strip().splitlines()[-1][:300]}")
    return json.loads(done.stdout.splitlines()[-1])


def states(place: Path) -> dict[str, str]:
    """Of each exercise: "done", "1 of 2 checks", "to write", or why its file cannot be read."""
    return {each.id: state(each, place) for each in discover(place)}


def state(exercise: Exercise, place: Path) -> str:
    """Of one."""
    try:
        function = yours(exercise, place)
        passed = [grade(exercise, each, function) is None for each in exercise.checks]
    except NotWritten as error:
        return str(error)
    except NotImplementedError:
        return "to write"
    return "done" if all(passed) else f"{sum(passed)} of {len(passed)} checks"
