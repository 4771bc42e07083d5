"""The front page cannot drift from the program: its commands, its Python, its options, its file guide."""

import ast
import importlib.util
import inspect
import re
from pathlib import Path

import ldm
import weights_convert
from ldm import cli
from ldm.samplers import SAMPLERS
from ldm.spacing import SPACINGS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    """What stands under a heading."""
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)[1]


def readme_commands():
    """The module that .ci/run takes the commands with; its folder is no package."""
    spec = importlib.util.spec_from_file_location("readme_commands", ROOT / ".ci/readme_commands.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_commands_can_be_taken_out():
    commands = readme_commands().commands
    assert commands(README, "Run it").splitlines()[0] == "python -m pip install -e ."
    assert "ldm generate" in commands(README, "Run it")
    assert commands(README, "Test it").splitlines()[-1].startswith("python -m pytest")


def test_a_readme_without_commands_is_an_error():
    commands = readme_commands().commands
    for text in ("", "## Run it\n", "## Run it\n```bash\n```\n", "## Run it\n## Test it\n```bash\npytest\n```\n"):
        try:
            found = commands(text, "Run it")
        except ValueError as error:
            assert "## Run it" in str(error)
        else:
            raise AssertionError(f"took {found!r} out of {text!r}")


def test_the_arguments_of_generate_are_those_of_the_page():
    """Names, order and defaults, of every positional argument after the bundle and the prompts."""
    code = ast.parse(re.search(r"```python\n(.*?)```", section("From Python"), re.DOTALL)[1])
    calls = [node for node in ast.walk(code) if isinstance(node, ast.Call) and ast.unparse(node.func) == "ldm.generate"]
    written = {keyword.arg: ast.literal_eval(keyword.value) for keyword in calls[0].keywords}
    parameters = list(inspect.signature(ldm.generate).parameters.values())[2:]
    own = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(written.items()) == list(own.items())


def test_the_functions_of_the_page_exist():
    names = set(re.findall(r"\b(?:ldm|weights_convert)\.\w+(?=\()", section("From Python")))
    assert names == {"ldm.generate", "ldm.load", "ldm.on_devices", "weights_convert.load", "weights_convert.save"}
    for name in names:
        package, function = name.split(".")
        assert callable(getattr({"ldm": ldm, "weights_convert": weights_convert}[package], function))


def test_samplers_and_spacings_are_all_named():
    named = re.findall(r"^\| `(\w+)` \|", section("Samplers"), re.MULTILINE)
    assert named == [*SAMPLERS, *SPACINGS]
    calls = re.findall(r"^\| `(\w+)` \| (\d) \|", section("Samplers"), re.MULTILINE)
    assert {name: int(count) for name, count in calls} == {name: s.calls for name, s in SAMPLERS.items()}


def test_the_options_of_the_page_are_those_of_the_program():
    """Every option that the page gives for ``generate`` exists; those it leaves out are only for odd sources."""
    text = re.search(r"^ldm generate .*?(?=^ldm inspect)", section("From the command line"), re.MULTILINE | re.DOTALL)[
        0
    ]
    written = set(re.findall(r"--[a-z-]+", text))
    commands = next(action for action in cli.parser()._actions if action.dest == "command").choices
    own = {option for action in commands["generate"]._actions for option in action.option_strings}
    assert written <= own
    assert own - written == {"-h", "--help", "--config", "--prediction", "--ema", "--variant"}
    toybox = {option for action in commands["toybox"]._actions for option in action.option_strings}
    text = "".join(re.findall(r"^ldm toybox .*", section("From the command line"), re.MULTILINE))
    assert set(re.findall(r"--[a-z-]+", text)) == toybox - {"-h", "--help"}
    assert set(commands) == set(re.findall(r"^ldm (\w+)", section("From the command line"), re.MULTILINE))


def test_the_file_guide_names_every_file_and_no_other():
    guide = section("File guide")
    rows = re.findall(r"^\| (`.*?) \|", guide, re.MULTILINE)
    named = set()
    for row in rows:
        first, *others = re.findall(r"`(.*?)`", row)
        named |= {first, *(str(Path(first).parent / other) for other in others)}
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in ("ldm", "weights_convert")
        for path in (ROOT / folder).rglob("*.py")
    }
    covered = {f for f in files if f in named or any(n.endswith("/") and f.startswith(n) for n in named)}
    assert {f for f in files - covered if not f.endswith("__init__.py")} == set()
