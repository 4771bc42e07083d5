"""Prints the commands that README.md gives under a heading: ``readme_commands.py README.md "Run it"``.

They are the first block fenced by ```bash under ``## Run it``. The README is the one place where they are written, so
that what people copy is what is tested. Exit status 2, with a sentence, where there is no such block.
"""

import re
import sys
from pathlib import Path


def commands(text: str, heading: str) -> str:
    """The first ```bash block between ``## heading`` and the next ``## ``; ValueError where there is none."""
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    block = re.search(r"^```bash\n(.*?)^```$", section[1] if section else "", re.MULTILINE | re.DOTALL)
    if not block or not block[1].strip():
        raise ValueError(f"no block of bash commands under the heading '## {heading}'")
    return block[1]


def main() -> int:
    """The command line; returns the exit status."""
    path, heading = sys.argv[1:]
    try:
        print(commands(Path(path).read_text(encoding="utf-8"), heading), end="")
    except (OSError, ValueError) as error:
        print(f"error: {path}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
