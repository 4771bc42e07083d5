"""What the next process need not do again: compiled programs, kept in a folder of the user's own.

JAX's persistent compilation cache does the work; this file turns it on. What it keeps is machine code that will be
run, so the folder must be one that nobody else can write to: it is made with mode 0700, and one that belongs to another
user, or that others can write to, is not used. Who can write there all the same can already run programs as this user.
"""

import os
import warnings
from pathlib import Path

import jax

MOST_BYTES = 4 * 2**30
"""What is kept in all. The programs of a Stable Diffusion picture take a few MB; those longest unused go first."""
kept_in: Path | None = None
"""The folder, once :func:`cache_compilations` has been called and has found one."""
KEEP_ALL = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}


def cache_folder() -> Path:
    """Where this program keeps what it can make again: ``$XDG_CACHE_HOME/ldm``, else ``~/.cache/ldm``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "ldm"


def cache_compilations() -> Path | None:
    """Keeps every program that is compiled from now on for later processes. Returns the folder; None: there is none.

    It is ``cache_folder() / "programs"``, or what the user has set as JAX's own ``JAX_COMPILATION_CACHE_DIR``. A cache
    that is switched off (``JAX_ENABLE_COMPILATION_CACHE=false``) stays so. A folder that cannot be used costs one
    warning, and programs are compiled as if this had not been called.

    The command line calls this; the library changes JAX's settings only if you do, before the first picture.
    """
    global kept_in
    if not jax.config.jax_enable_compilation_cache:
        return None
    if not jax.config.jax_compilation_cache_dir:
        try:
            folder = own(own(cache_folder()) / "programs")
        except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
            warnings.warn(f"compiled programs are not kept for the next time: {error}", stacklevel=2)
            return None
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    for name, value in KEEP_ALL.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    kept_in = Path(jax.config.jax_compilation_cache_dir)
    return kept_in


def own(folder: Path) -> Path:
    """Makes a folder of mode 0700. Raises OSError if it cannot be made, or written to, or is not this user's alone."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        raise PermissionError(f"{folder}: others can write to it; make it your own alone (chmod go-w)")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: cannot be written to")
    return folder
