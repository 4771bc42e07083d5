"""Builds the lessons: runs each source, keeps the notebook with its outputs, and collects what was measured.

    python lessons/build.py [NN ...]     runs lessons in full and writes their notebooks, pictures, figures and tables
    python lessons/build.py --fast       runs every lesson quickly, and writes nothing
    python lessons/build.py --text       runs nothing: puts new text into notebooks whose code is as it was
    python lessons/build.py --check      runs nothing: notebooks and tables are those of the sources, and hold outputs

A lesson is lessons/NN_topic.py, cells after `# %%`. lessons/ko/NN_topic.py holds the same text cells in Korean: its
notebook shares code and outputs with the English one.
"""

import argparse
import base64
import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

from ldm.course.tables import write_tables
from ldm.files import write_whole

LESSONS = Path(__file__).parent
MINUTES = re.compile(r"([\d.]+) minutes? on 2 CPU cores")
THUMBNAIL = (360, 240)
INLINE = "module://matplotlib_inline.backend_inline"


def sources(chosen: list[str]) -> list[Path]:
    """The lessons of these numbers, or all."""
    every = sorted(LESSONS.glob("[0-9][0-9]_*.py"))
    missing = set(chosen) - {path.stem[:2] for path in every}
    if missing:
        sys.exit(f"there is no lesson {', '.join(sorted(missing))}")
    return [path for path in every if not chosen or path.stem[:2] in chosen]


def notebook_of(source: Path) -> Any:
    """A notebook without outputs; cells numbered, so that building twice gives the same file."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for i, cell in enumerate(notebook.cells):
        cell["id"], cell["metadata"] = f"{source.stem[:2]}-{i:03d}", nbformat.from_dict({})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def run(notebook: Any, name: str, fast: bool, results: Path) -> float:
    """Runs all cells in place; seconds. Ends the program, with the cell's error, if one fails."""
    os.environ |= {"LDM_FAST": str(int(fast)), "LDM_RESULTS": str(results), "MPLBACKEND": INLINE}
    place = {"metadata": {"path": str(LESSONS)}}
    client = NotebookClient(notebook, timeout=1200, kernel_name="python3", record_timing=False, resources=place)
    begun = time.monotonic()
    try:
        client.execute()
    except CellExecutionError as error:
        sys.exit(f"{name}: {error}")
    loud = [out["text"] for cell in notebook.cells for out in cell.get("outputs", []) if out.get("name") == "stderr"]
    if loud:
        sys.exit(f"{name} writes to standard error, where readers expect none: {loud[0][:500]}")
    return time.monotonic() - begun


def pictures(notebook: Any) -> Iterator[bytes]:
    """Every PNG among the outputs."""
    for cell in notebook.cells:
        for out in cell.get("outputs", []):
            if "image/png" in out.get("data", {}):
                yield base64.b64decode(out["data"]["image/png"])


def in_korean(notebook: Any, source: Path) -> Any:
    """The same notebook with the text cells of the Korean edition."""
    texts = iter(jupytext.read(LESSONS / "ko" / source.name, fmt="py:percent").cells)
    other = nbformat.from_dict(json.loads(json.dumps(notebook)))
    for cell in other.cells:
        if cell.cell_type == "markdown":
            translated = next(texts, None)
            if translated is None or translated.cell_type != "markdown":
                sys.exit(f"lessons/ko/{source.name} has not as many text cells as the lesson")
            cell["source"] = translated.source
    if next(texts, None) is not None:
        sys.exit(f"lessons/ko/{source.name} has more text cells than the lesson")
    return other


def write_notebook(path: Path, notebook: Any) -> None:
    """As text that ends in a newline, whole or not at all."""
    nbformat.validate(notebook)
    write_whole(path, lambda file: file.write((nbformat.writes(notebook) + "\n").encode()))


def stated_minutes(notebook: Any, name: str) -> float:
    """What the first cell says that a run takes."""
    found = MINUTES.search(notebook.cells[0].source)
    if not found:
        sys.exit(f"{name}: the first cell does not say how many 'minutes on 2 CPU cores' it takes")
    return float(found[1])


def build(source: Path) -> dict[str, Any]:
    """Runs one lesson in full and writes its notebooks and thumbnail; what was measured."""
    notebook = notebook_of(source)
    limit = stated_minutes(notebook, source.name)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "claims.json"
        minutes = run(notebook, source.name, False, results) / 60
        claims = json.loads(results.read_text(encoding="utf-8")) if results.exists() else []
    if not claims:
        sys.exit(f"{source.name} makes no claim")
    if minutes > limit:
        sys.exit(f"{source.name} took {minutes:.1f} minutes, and says {limit:g}")
    write_notebook(source.with_suffix(".ipynb"), notebook)
    write_notebook(LESSONS / "ko" / source.with_suffix(".ipynb").name, in_korean(notebook, source))
    largest = max(pictures(notebook), key=len)
    with Image.open(io.BytesIO(largest)) as picture:
        picture = picture.convert("RGB")
        picture.thumbnail(THUMBNAIL)
        (LESSONS / "thumbnails").mkdir(exist_ok=True)
        picture.save(LESSONS / "thumbnails" / f"{source.stem[:2]}.png", optimize=True)
    title = notebook.cells[0].source.splitlines()[0].lstrip("# ").partition(".")[2].strip()
    print(f"{source.stem}: {minutes:.1f} minutes, {len(claims)} claims", flush=True)
    return {"title": title, "source": source.name, "minutes": limit, "claims": claims}


def renew_text(source: Path) -> None:
    """Puts the source's text cells into the notebooks that were run. Ends the program if the code is another."""
    path, fresh = source.with_suffix(".ipynb"), notebook_of(source)
    kept = nbformat.read(path, as_version=4)
    codes = [[(cell.id, cell.source) for cell in book.cells if cell.cell_type == "code"] for book in (kept, fresh)]
    if codes[0] != codes[1]:
        sys.exit(f"{source.name}: the code has changed; build it")
    ran = {cell.id: cell for cell in kept.cells}
    fresh.cells = [ran[cell.id] if cell.cell_type == "code" else cell for cell in fresh.cells]
    write_notebook(path, fresh)
    write_notebook(LESSONS / "ko" / path.name, in_korean(fresh, source))


def check(source: Path) -> list[str]:
    """What is amiss with the notebooks of a lesson, by reading alone."""
    amiss, wanted = [], notebook_of(source)
    for path, fresh in (
        (source.with_suffix(".ipynb"), wanted),
        (LESSONS / "ko" / source.with_suffix(".ipynb").name, in_korean(wanted, source)),
    ):
        where = path.relative_to(LESSONS.parent)
        if not path.exists():
            amiss.append(f"{where} is missing")
            continue
        kept = nbformat.read(path, as_version=4)
        texts = [[(cell.cell_type, cell.source) for cell in book.cells] for book in (kept, fresh)]
        if texts[0] != texts[1]:
            amiss.append(f"{where} is not what its source says; build it again")
        if not all(cell.execution_count for cell in kept.cells if cell.cell_type == "code" and cell.source):
            amiss.append(f"{where} was not run")
        if not list(pictures(kept)):
            amiss.append(f"{where} holds no picture")
    return amiss


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lessons", nargs="*", metavar="NN")
    parser.add_argument("--fast", action="store_true", help="run quickly, write nothing")
    parser.add_argument("--text", action="store_true", help="run nothing; put new text into the notebooks")
    parser.add_argument("--check", action="store_true", help="run nothing; compare")
    args = parser.parse_args()
    chosen, path = sources(args.lessons), LESSONS / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if args.check:
        amiss = [line for source in chosen for line in check(source)] + write_tables(LESSONS.parent, results, dry=True)
        sys.exit("\n".join(amiss) or None)
    for source in chosen:
        if args.text:
            renew_text(source)
            continue
        if args.fast:
            seconds = run(notebook_of(source), source.name, True, Path(os.devnull))
            print(f"{source.stem}: runs, {seconds:.0f} s", flush=True)
            continue
        results[source.stem[:2]] = build(source)
        text = json.dumps(dict(sorted(results.items())), ensure_ascii=False, indent=1) + "\n"
        write_whole(path, lambda file, text=text: file.write(text.encode()))
        write_tables(LESSONS.parent, results)


if __name__ == "__main__":
    main()
