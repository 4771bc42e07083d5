"""Stubs for learners, made from the library's own functions: signature and docstring stay, the body is theirs to write.

python -m ldm.course.stubs           writes lessons/exercises/eNN_topic.py for every lesson; answers there are lost
python -m ldm.course.stubs 03        of one lesson
"""

import ast
import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from types import ModuleType

from ldm.course.exercise import Exercise, discover, root
from ldm.files import write_whole

HEAD = '''"""Exercises of lesson {lesson}, {topic}: write each function, then run

    pytest tests/test_{lesson}_{topic}.py

with --hints 1, --hints 2 for hints. To begin again: git checkout lessons/exercises/e{lesson}_{topic}.py
"""

{imports}
'''
ALWAYS = ("import jax", "import jax.numpy as jnp", "import numpy as np")


def topic_of(lesson: str, place: Path) -> str:
    """ "ddim" of lesson 03: by its tests' file."""
    return next((place / "tests").glob(f"test_{lesson}_*.py")).stem.split("_", 2)[2]


def stubs(exercises: Iterable[Exercise], topic: str) -> str:
    """The text of a lesson's file."""
    exercises = list(exercises)
    imports = {*ALWAYS}.union(*(_imports(each) for each in exercises))
    order = lambda line: (line.startswith("from "), line)
    foreign, own = ([line for line in sorted(imports, key=order) if line.startswith("from ldm") == k] for k in (0, 1))
    head = HEAD.format(
        lesson=exercises[0].lesson, topic=topic, imports="\n".join([*foreign, *([""] if own else []), *own])
    )
    return "\n\n".join([head, *map(_stub, exercises)])


def _tree(exercise: Exercise) -> tuple[ModuleType, ast.Module, ast.FunctionDef]:
    """The library's module, its tree, and the function in it."""
    module = importlib.import_module(exercise.target.partition(":")[0])
    tree = ast.parse(inspect.getsource(module))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == exercise.name]
    if not found:
        raise ValueError(f"{exercise.id}: {exercise.target} is not a function of that module")
    return module, tree, found[0]


def _stub(exercise: Exercise) -> str:
    """One function without its body."""
    module, _, node = _tree(exercise)
    lines = inspect.getsource(module).splitlines()
    documented = ast.get_docstring(node) is not None
    first = node.body[0]
    signature = lines[node.lineno - 1 : (first.lineno - 1)]
    doc = lines[first.lineno - 1 : first.end_lineno] if documented else []
    task = f'raise NotImplementedError("{exercise.id}: roughly {exercise.lines} line{"s" * (exercise.lines != 1)}")'
    own = exercise.target.partition(":")[0]
    where = f"# {exercise.id}, about {exercise.minutes} minutes; the library's own is in {own}"
    return "\n".join([where, *signature, *doc, textwrap.indent(task, "    "), ""])


def _imports(exercise: Exercise) -> set[str]:
    """The import lines that a signature needs."""
    module, tree, node = _tree(exercise)
    parts = [node.args, *([node.returns] if node.returns else [])]
    names = {n.id for part in parts for n in ast.walk(part) if isinstance(n, ast.Name)}
    found = set()
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom | ast.Import):
            for alias in statement.names:
                bound = alias.asname or alias.name
                if bound in names:
                    found.add(ast.unparse(_only(statement, alias)))
                    names.discard(bound)
    own = {name for name in names if hasattr(module, name)}
    return found | {f"from {module.__name__} import {name}" for name in own}


def _only(statement: ast.ImportFrom | ast.Import, alias: ast.alias) -> ast.stmt:
    """An import of one of the names that a statement imports."""
    if isinstance(statement, ast.ImportFrom):
        return ast.ImportFrom(statement.module, [alias], 0)
    return ast.Import([alias])


def write(lessons: Iterable[str] = ()) -> None:
    """Writes the files of some lessons, or of all."""
    place, chosen = root(), set(lessons)
    for lesson, exercises in groupby(discover(place), key=lambda each: each.lesson):
        if not chosen or lesson in chosen:
            topic = topic_of(lesson, place)
            text = stubs(exercises, topic)
            path = place / "lessons" / "exercises" / f"e{lesson}_{topic}.py"
            write_whole(path, lambda file, text=text: file.write(text.encode()))
            print(path.relative_to(place))


if __name__ == "__main__":
    write(sys.argv[1:])
