"""Files and folders that appear whole or not at all, whatever happens while they are written.

They are written under a temporary name beside their place, on the same disk, and renamed.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def check_vacant(path: Path) -> None:
    """Raises ValueError if ``path`` is a file, or a folder that is not empty."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path}: already exists and is not an empty folder; choose another place")


def into_place(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls ``write(temporary folder)``, then renames that folder to ``path``: all of it appears, or nothing.

    Raises ValueError as :func:`check_vacant` does.
    """
    check_vacant(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        write(temporary)
        temporary.chmod(0o755)
        if path.exists():
            path.rmdir()
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(path: Path) -> None:
    """Raises ValueError if no file can be written at ``path``."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path}: cannot be written (is it a folder, or is its folder missing or read-only?)")


def check_png(path: Path) -> None:
    """Raises ValueError if ``path`` has not the name of a PNG, or cannot be written."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: pictures are written as PNG; give a name that ends in .png")
    check_writable(path)


def write_whole(path: Path, write: Callable[[Any], Any]) -> None:
    """Calls ``write(binary file)`` on a temporary file, then renames it to ``path``: never half a file."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
