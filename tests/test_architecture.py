"""The shape of the code itself: what imports what, how long files are, and where jit is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOREIGN = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "k_diffusion",
    "open_clip",
    "timm",
)
LONGEST_FILE, LONGEST_FUNCTION = 300, 45
JIT_FILES = (
    "ldm/program.py",
    "ldm/ready.py",
    "ldm/hints.py",
    "ldm/evaluation/",
    "ldm/adapters/lora.py",
    "ldm/adapters/image_prompt.py",
    "ldm/editing/",
    "ldm/training/",
    "ldm/toybox/world.py",
    "ldm/toybox/recogniser.py",
    "ldm/toybox/recipe/",
)

# Imports of ldm point only downwards in this list; modules of one row do not import one another.
LAYERS = [
    ["ldm.cli", "ldm.toybox.recipe"],
    ["ldm.cli_generate"],
    ["ldm.cli_adapters"],
    ["ldm.course"],
    ["ldm"],
    ["ldm.editing"],
    ["ldm.inversion", "ldm.workflows"],
    ["ldm.ahead"],
    ["ldm.generate"],
    ["ldm.starts"],
    ["ldm.inputs"],
    ["ldm.program"],
    ["ldm.request"],
    ["ldm.training"],
    ["ldm.evaluation"],
    ["ldm.adapters", "ldm.devices"],
    ["ldm.bundle"],
    ["ldm.toybox", "ldm.acceleration"],
    ["ldm.models"],
    ["ldm.guidance"],
    ["ldm.samplers"],
    ["ldm.denoiser", "ldm.bpe", "ldm.spacing", "ldm.prompts", "ldm.mixture", "ldm.hints"],
    ["ldm.schedule", "ldm.tokenizer", "ldm.progress", "ldm.weights_file", "ldm.pictures", "ldm.tiles", "ldm.ready"],
    ["ldm.vocabulary", "ldm.conditioning", "ldm.hooks", "ldm.startup", "ldm.files"],
    ["ldm.attention", "ldm.convolution"],
]
DEPTH = {name: depth for depth, row in enumerate(LAYERS) for name in row}
FILES = sorted(path for package in ("ldm", "weights_convert") for path in (ROOT / package).rglob("*.py"))
LESSONS = sorted((ROOT / "lessons").rglob("*.py"))


def name_of(path: Path) -> str:
    """ldm/models/unet.py -> ldm.models.unet."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path) for path in FILES}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file; ``from package import module`` counts as the module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & MODULES) or {node.module}
    return found


def row_of(module: str) -> str:
    """The entry of ``LAYERS`` that a module belongs to, the longest that fits; 'ldm' is only the package."""
    parts = module.split(".")
    fitting = (".".join(parts[:n]) for n in range(len(parts), min(len(parts), 2) - 1, -1))
    found = next((entry for entry in fitting if entry in DEPTH), None)
    assert found is not None, f"{module} has no place in LAYERS"
    return found


def functions(path: Path) -> list[tuple[str, int]]:
    """Name and number of lines of every function of a file, its docstring not counted."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    found = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [(f.name, f.end_lineno - f.lineno + 1 - len((ast.get_docstring(f) or "").splitlines())) for f in found]


def jit_lines(path: Path) -> list[int]:
    """The lines that name ``jit`` as a function: ``jax.jit``, ``nnx.jit``, ``from jax import jit``."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    named = [node.lineno for node in nodes if isinstance(node, ast.Attribute) and node.attr in ("jit", "pjit", "pmap")]
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return named + [node.lineno for node in froms if {alias.name for alias in node.names} & {"jit", "pjit", "pmap"}]


def test_there_is_something_to_look_at():
    """The rules below hold for an empty list too."""
    assert {"ldm.tokenizer", "ldm.models.unet", "weights_convert.engine"} <= MODULES
    assert "numpy" in imports(ROOT / "ldm/tokenizer.py") and "ldm.vocabulary" in imports(ROOT / "ldm/tokenizer.py")
    assert any(jit_lines(path) for path in FILES)


@pytest.mark.parametrize("path", FILES + LESSONS, ids=name_of)
def test_no_file_imports_pytorch_or_what_needs_it(path):
    assert not {module for module in imports(path) if module.split(".")[0] in FOREIGN}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_downwards(path):
    name = name_of(path)
    for module in imports(path) & MODULES:
        if module.startswith("weights_convert"):
            assert name.startswith(("ldm.cli", "weights_convert")), f"{name} imports {module}"
        elif name.startswith("ldm") and row_of(module) != row_of(name):
            assert DEPTH[row_of(module)] > DEPTH[row_of(name)], f"{name} imports {module}, which is not below it"
        elif name.startswith("weights_convert"):
            assert module not in ("ldm.cli", "ldm.generate"), f"{name} reads weights; it has no use for {module}"


def test_lessons_import_only_ldm():
    """Vacuous as long as there are no lessons."""
    for path in LESSONS:
        assert not {module for module in imports(path) if module.startswith(("weights_convert", "tests"))}, path


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short_and_say_what_they_are(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    assert not [(name, lines) for name, lines in functions(path) if lines > LONGEST_FUNCTION]
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "a file opens with a docstring"


def test_jit_is_at_the_top_only():
    """Functions that jit inside functions recompile behind the caller's back; the whole program is jitted once."""
    where = [path.relative_to(ROOT).as_posix() for path in FILES if jit_lines(path)]
    assert all(path.startswith(JIT_FILES) for path in where), where


def test_importing_everything_leaves_pytorch_out():
    """The same by running: also what our dependencies import for us."""
    names = sorted(MODULES - {"ldm.__main__", "weights_convert.__main__"})
    code = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
    code += f"print([name for name in {FOREIGN!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr[-2000:]
