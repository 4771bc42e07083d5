"""Exercises: a function of the library to write again, checks that grade it, mistakes that are known by name.

One check is a plain function ``check(f)`` that asserts something of an implementation ``f``. It is called by three:
pytest with the library's function, pytest with the learner's, and a notebook (``ldm.course.check``). The reference is
the library's function itself, so there is no second copy to drift; a mistake is a function too, and when a learner's
answers are the mistake's answers, it is named.
"""

import ast
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

PRNG_KEY = jax.dtypes.prng_key
Check = Callable[[Callable], None]


@dataclass(eq=False)
class Exercise:
    """``target``: "ldm.module:function". ``lines``: of a solution, roughly. ``wrong``: the mistake in words -> it.

    ``show``: draws what an implementation makes, as one picture [H, W, 3] uint8; saved beside the target's when a check
    fails.
    """

    id: str
    target: str
    minutes: int
    lines: int
    hints: tuple[str, ...]
    wrong: Mapping[str, Callable[..., Any]]
    show: Callable[[Callable], np.ndarray] | None = None
    checks: list[Check] = field(default_factory=list)

    def check(self, function: Check) -> Check:
        """A decorator: this is one of the exercise's checks. Its docstring says what must hold."""
        function.exercise = self
        self.checks.append(function)
        return function

    @property
    def name(self) -> str:
        """Of the function."""
        return self.target.partition(":")[2]

    @property
    def lesson(self) -> str:
        """Its number: "03" of "03.2"."""
        return self.id.partition(".")[0]

    @property
    def reference(self) -> Callable[..., Any]:
        """The library's own."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


class NotWritten(Exception):
    """The exercise's file cannot be graded; the reason in one sentence."""


def root() -> Path:
    """The clone that holds lessons/ and tests/. Raises NotWritten outside of one."""
    places = [Path(__file__).parents[2], Path.cwd(), *Path.cwd().parents]
    for place in places:
        if (place / "lessons" / "exercises").is_dir() and (place / "tests").is_dir():
            return place
    raise NotWritten(f"{Path.cwd()} is not inside of a clone with lessons/ and tests/; the exercises are there")


def discover(place: Path | None = None) -> list[Exercise]:
    """All exercises, in order: those that tests/test_NN_topic.py define."""
    place = place or root()
    found: dict[str, Exercise] = {}
    for path in sorted((place / "tests").glob("test_[0-9][0-9]_*.py")):
        members = vars(_module(path, f"ldm_checks_{path.stem}")).values()
        found |= {each.id: each for each in members if isinstance(each, Exercise)}
    return [found[key] for key in sorted(found)]


def file_of(exercise: Exercise, place: Path | None = None) -> Path:
    """Where the learner writes it. Raises NotWritten if there is no such file."""
    folder = (place or root()) / "lessons" / "exercises"
    for path in folder.glob(f"e{exercise.lesson}_*.py"):
        return path
    raise NotWritten(
        f"{folder} has no file for lesson {exercise.lesson}; `git checkout lessons/exercises` brings it back"
    )


def yours(exercise: Exercise, place: Path | None = None) -> Callable[..., Any]:
    """The learner's function. Raises NotWritten for a file that cannot be imported, and for the library's own."""
    path, name = file_of(exercise, place), exercise.name
    where = f"{exercise.id}: {name} in lessons/exercises/{path.name}"
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        module = _module(path, f"ldm_yours_{path.stem}")
    except Exception as error:
        line = getattr(error, "lineno", None) or traceback.extract_tb(error.__traceback__)[-1].lineno
        reason = f"{type(error).__name__}: {getattr(error, 'msg', error)}"
        raise NotWritten(f"lessons/exercises/{path.name} cannot be imported, line {line}: {reason}") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise NotWritten(f"{where} is gone; `git checkout lessons/exercises/{path.name}` brings the stub back")
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or Path(code.co_filename) != path or _borrows(tree, name):
        raise NotWritten(f"{where} uses the library's own {name}; write it in that file, from its parts")
    return function


def _borrows(tree: ast.Module, name: str) -> bool:
    """Whether a file imports a function of this name from the library, or takes it out of one of its modules."""
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)]
    bound = set()
    for node in imported:
        for alias in node.names:
            full = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
            if full.partition(".")[0] == "ldm":
                bound.add((alias.asname or alias.name).partition(".")[0])
                if alias.name == name:
                    return True
    taken = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == name]
    return any(_leftmost(node) in bound for node in taken)


def _leftmost(node: ast.expr) -> str | None:
    """ "a" of a.b.c."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _module(path: Path, name: str) -> ModuleType:
    """A file as a module, read anew; files beside it can be imported from it."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


# ---------------------------------------------------------------------------------------------------------------------
# Grading


class Recorder:
    """Calls a function and remembers what it was given and what it gave, except while JAX traces."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.calls = function, []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            answer = self.function(*args, **kwargs)
        except Exception as error:
            self._keep(args, kwargs, error)
            raise
        self._keep(args, kwargs, answer)
        return answer

    def _keep(self, args: tuple, kwargs: dict, answer: Any) -> None:
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, kwargs, answer))):
            self.calls.append((args, kwargs, answer))


def mistake(exercise: Exercise, calls: list[tuple]) -> str | None:
    """The known mistake whose answers these are, in words."""
    for words, wrong in exercise.wrong.items():
        if calls and all(_same(wrong, args, kwargs, answer) for args, kwargs, answer in calls):
            return words
    return None


def _same(wrong: Callable[..., Any], args: tuple, kwargs: dict, answer: Any) -> bool:
    """Whether a mistake gives this answer, or fails as it did."""
    try:
        theirs = wrong(*args, **kwargs)
    except Exception as error:
        return type(error) is type(answer)
    try:
        pairs = zip(jax.tree.leaves(theirs), jax.tree.leaves(answer), strict=True)
        return all(_alike(a, b) for a, b in pairs)
    except Exception:
        return False


def _alike(a: Any, b: Any) -> bool:
    """Whether two leaves are equal but for rounding; of random keys, their numbers."""
    a, b = (jax.random.key_data(x) if isinstance(x, Array) and jnp.issubdtype(x.dtype, PRNG_KEY) else x for x in (a, b))
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.kind != b.dtype.kind or a.shape != b.shape:
        return False
    size = float(np.max(np.abs(b), initial=0, where=np.isfinite(b))) if a.dtype.kind in "fc" else 0.0
    return np.allclose(a, b, 1e-4, 1e-6 * size, equal_nan=True)


def _alone_in_failing(exercise: Exercise, check: Check, error: Exception) -> str | None:
    """The only mistake that fails a check with the same kind of error, if one does: for what fails under tracing."""
    failing = []
    for words, wrong in exercise.wrong.items():
        try:
            check(wrong)
        except Exception as theirs:
            failing += [words] if type(theirs) is type(error) else []
    return failing[0] if len(failing) == 1 else None


def diagnosis(exercise: Exercise, check: Check, error: BaseException, calls: list[tuple]) -> str:
    """What a failed check says: what must hold, what was seen, and the mistake if it is a known one."""
    lines = [f"{exercise.id} {exercise.name}: {(inspect.getdoc(check) or check.__name__).strip()}"]
    seen = [line.rstrip() for line in str(error).strip().splitlines() if line.strip()]
    if isinstance(error, AssertionError):
        lines += [f"    {line}" for line in seen[:12]]
    else:
        spots = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).parent.name == "exercises"]
        at = f" in line {spots[-1].lineno}: `{spots[-1].line}`" if spots else ""
        lines.append(f"    {type(error).__name__}{at}: {' '.join(seen)[:300]}")
    named = mistake(exercise, calls)
    if named is None and not isinstance(error, AssertionError):
        named = _alone_in_failing(exercise, check, error)
    if named:
        lines.append(f"    This is what you get from: {named}")
    return "\n".join(lines)


def grade(exercise: Exercise, check: Check, function: Callable[..., Any]) -> str | None:
    """None if a check holds of a function, else the diagnosis. NotImplementedError passes through: not begun."""
    recorder = Recorder(function)
    try:
        check(recorder)
    except NotImplementedError:
        raise
    except Exception as error:
        return diagnosis(exercise, check, error, recorder.calls)
    return None


def check(number: str, function: Callable[..., Any]) -> None:
    """For notebooks: grades an answer to exercise ``number``, such as "03.2", and prints what every check says."""
    exercise = next((each for each in discover() if each.id == number), None)
    if exercise is None:
        raise ValueError(f"there is no exercise {number!r}; `ldm exercises` lists them")
    for each in exercise.checks:
        try:
            said = grade(exercise, each, function)
        except NotImplementedError:
            print(f"·  {number} {exercise.name}: still to write")
            return
        print(said or f"✓  {inspect.getdoc(each)}")


def uncaught(exercise: Exercise) -> list[str]:
    """What is amiss with an exercise's checks: mistakes that none catches, and checks that no mistake needs."""
    caught = {words: _failing(exercise, wrong) for words, wrong in exercise.wrong.items()}
    amiss = [f"{exercise.id}: no check catches: {words}" for words, by in caught.items() if not by]
    needed = {next(iter(by)) for by in caught.values() if len(by) == 1}
    spare = [each.__name__ for each in exercise.checks if each.__name__ not in needed]
    return amiss + [f"{exercise.id}: without {name} every mistake is still caught" for name in spare]


def _failing(exercise: Exercise, function: Callable[..., Any]) -> set[str]:
    """The names of the checks that a function fails."""
    return {each.__name__ for each in exercise.checks if grade(exercise, each, function)}
