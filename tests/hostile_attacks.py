"""Pickles that attack whoever runs them: real ones, each of which works on Python's own ``pickle``.

All are operations that leave one value on the stack. What they do is make an empty file, the canary, appear.
"""

import struct
from pathlib import Path

from tests import checkpoint_files as make
from tests.checkpoint_files import MARK, REDUCE, called, name, pickled, text


def dotted(module: str, path: str) -> bytes:
    """STACK_GLOBAL of a path inside a module, which protocol 4 allows."""
    return b"\x80\4" + text(module) + text(path) + b"\x93"


def attacks(canary: Path) -> dict[str, tuple[bytes, str]]:
    """{name: (operations, phrase of the error)}; running any of them creates ``canary``."""
    return plain_calls(canary) | roundabout_calls(canary) | other_operations(canary)


def plain_calls(canary: Path) -> dict[str, tuple[bytes, str]]:
    """REDUCE of a function that does harm."""
    touch, write = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    return {
        "os.system": (called(name("os", "system"), touch), "'os.system'"),
        "posix.system": (called(name("posix", "system"), touch), "'posix.system'"),
        "builtins.eval": (called(name("builtins", "eval"), write), "'builtins.eval'"),
        "builtins.exec": (called(name("builtins", "exec"), write), "'builtins.exec'"),
        "eval by its name in Python 2": (called(name("__builtin__", "eval"), write), "'__builtin__.eval'"),
        "builtins.open": (called(name("builtins", "open"), str(canary), "w"), "'builtins.open'"),
        "io.open": (called(name("io", "open"), str(canary), "w"), "'io.open'"),
        "subprocess.Popen": (called(name("subprocess", "Popen"), ["touch", str(canary)]), "'subprocess.Popen'"),
        "subprocess.call": (called(name("subprocess", "call"), ["touch", str(canary)]), "'subprocess.call'"),
        "pty.spawn": (called(name("pty", "spawn"), ["touch", str(canary)]), "'pty.spawn'"),
        "timeit.timeit": (called(name("timeit", "timeit"), "pass", write), "'timeit.timeit'"),
        "cProfile.run": (called(name("cProfile", "run"), write), "'cProfile.run'"),
        "shutil.copyfile": (called(name("shutil", "copyfile"), "/dev/null", str(canary)), "'shutil.copyfile'"),
        "numpy's own runner": (called(name("numpy.testing._private.utils", "runstring"), write, {}), "runstring"),
    }


def roundabout_calls(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Functions reached through other ones, through dots, or through a second pickle."""
    touch, write = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    system, module = name("os", "system"), called(name("importlib", "import_module"), "os")
    path = called(name("pathlib", "Path"), str(canary))
    inner = make.program(called(system, touch))
    return {
        "code.InteractiveInterpreter": (
            called(
                dotted("code", "InteractiveInterpreter.runsource"),
                called(name("code", "InteractiveInterpreter")),
                write,
            ),
            "'code.InteractiveInterpreter",
        ),
        "pathlib.Path.touch": (called(dotted("pathlib", "Path.touch"), path), "'pathlib.Path"),
        "a method by operator": (
            called(called(name("operator", "methodcaller"), "touch"), path),
            "'operator.methodcaller'",
        ),
        "getattr of a module": (
            called(called(name("builtins", "getattr"), module, "system"), touch),
            "'builtins.getattr'",
        ),
        "functools.partial": (called(called(name("functools", "partial"), system, touch)), "'functools.partial'"),
        "a pickle in a pickle": (
            called(name("pickle", "loads"), b"B" + struct.pack("<I", len(inner)) + inner),
            "pickle.loads",
        ),
        "the name on the stack": (text("os") + text("system") + b"\x93" + pickled((touch,)) + REDUCE, "'os.system'"),
        "a name with dots": (called(dotted("shutil", "os.system"), touch), "'shutil.os.system'"),
    }


def other_operations(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Operations besides REDUCE that call something, and places besides the top where a call can hide."""
    touch, write = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    system, evaluate = name("os", "system"), name("builtins", "eval")
    return {
        "INST": (MARK + text(touch) + b"ios\nsystem\n", "operation INST"),
        "OBJ": (MARK + evaluate + text(write) + b"o", "'builtins.eval'"),
        "EXT1": (b"\x82\xf0" + pickled((touch,)) + REDUCE, "operation EXT1"),
        "state set on a name": (
            name("types", "SimpleNamespace") + b")" + REDUCE + pickled({"x": called(evaluate, write)}) + b"b",
            "'types.SimpleNamespace'",
        ),
        "in the key of a dict": (pickled({called(evaluate, write): 1}), "'builtins.eval'"),
        "beside a tensor": (pickled([called(system, touch)]) + make.tensor(make.FOUR) + b"\x86", "'os.system'"),
    }
