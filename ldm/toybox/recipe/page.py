"""What the pages of studies have in common: tables over seeds, bars, sheets of labelled pictures."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw

from ldm.files import write_whole
from ldm.toybox.recipe.study import ROWS, Row
from ldm.toybox.sheets import GAP, INK, MARGIN, font, paper

LABEL, LARGE = 190, 96  # pixels of a row's label; of a picture

Groups = list[tuple[Row, dict[str, np.ndarray]]]  # settings, and each figure's value for each seed


def results(out: Path, folder: Path, settings: Mapping[str, Sequence[str]]) -> list[Row]:
    """All rows of the ways of ``settings``: those that the page's folder has, and those of ``out``, which replace rows
    of the same way, seed and settings. They are written back to the folder, so that a page can be of several days."""
    found = {}
    for file in (folder / ROWS, out / ROWS):
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            row = json.loads(line)
            if row["way"] in settings:
                found[row["way"], row["seed"], *(row[name] for name in settings[row["way"]])] = row
    text = "".join(json.dumps(row) + "\n" for row in found.values())
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / ROWS, lambda file: file.write(text.encode()))
    return list(found.values())


def over_seeds(rows: Sequence[Row], *keys: str) -> Groups:
    """[(the settings ``keys`` that rows share, {figure: its value for each seed})], in order of appearance."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    figure = lambda row, name: name not in (*keys, "seed") and isinstance(row[name], int | float)
    return [
        (
            dict(zip(keys, at, strict=True)),
            {name: np.array([row[name] for row in own], float) for name in own[0] if figure(own[0], name)},
        )
        for at, own in found.items()
    ]


def said(values: np.ndarray) -> str:
    """Mean, and from least to most where they differ."""
    digits = 2 if 0 < np.abs(values).max() < 2 else 1
    mean, least, most = (f"{value:.{digits}f}" for value in (values.mean(), values.min(), values.max()))
    return mean if least == most else f"{mean} ({least}–{most})"


def table(rows: Sequence[Row], *keys: str) -> str:
    """In Markdown: a line for each group of rows that share ``keys``, which come first."""
    groups = over_seeds(rows, *keys)
    names = list(dict.fromkeys(name for _, found in groups for name in found))
    lines = ["| " + " | ".join([*keys, *names]) + " |", "|" + "---|" * (len(keys) + len(names))]
    for at, found in groups:
        told = [f"{at[key]:g}" if isinstance(at[key], int | float) else at[key] or "–" for key in keys]
        lines.append("| " + " | ".join([*told, *(said(found[n]) if n in found else "–" for n in names)]) + " |")
    return "\n".join(lines)


def bars(axes: Any, labels: Sequence[str], groups: Sequence[dict[str, np.ndarray]], colours: dict[str, str]) -> None:
    """Groups of bars: the mean over seeds, and a dot for each."""
    wide = 0.8 / len(colours)
    for i, (name, colour) in enumerate(colours.items()):
        places = np.arange(len(groups)) + wide * (i - (len(colours) - 1) / 2)
        having = [(place, found[name]) for place, found in zip(places, groups, strict=True) if name in found]
        axes.bar([p for p, _ in having], [v.mean() for _, v in having], wide, color=colour, label=name, alpha=0.8)
        for place, values in having:
            axes.scatter([place] * len(values), values, color="#1a202c", s=9, zorder=3)
    axes.set_xticks(range(len(groups)), labels)
    axes.set_ylim(0, 105)
    axes.legend(fontsize=9, ncols=len(colours), loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    plain(axes)


def plain(axes: Any) -> None:
    """A light grid, and no frame above or to the right."""
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def sheet(lines: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """Labelled rows of pictures, each [n, H, W, 3] uint8."""
    step = LARGE + GAP
    most = max(len(pictures) for _, pictures in lines)
    made = paper(MARGIN + LABEL + step * most, 2 * MARGIN + step * len(lines))
    draw = ImageDraw.Draw(made)
    for row, (label, pictures) in enumerate(lines):
        y = MARGIN + step * row
        draw.text((MARGIN, y + LARGE // 2 - 16), label, INK, font(14))
        for column, picture in enumerate(pictures):
            large = Image.fromarray(picture).resize((LARGE, LARGE), Image.Resampling.BICUBIC)
            made.paste(large, (MARGIN + LABEL + step * column, y))
    return made


def put(page: Path, module: str, text: str) -> None:
    """Text between the marks that name the module which makes it; in a page of its own, if there is none."""
    begin, end = f"<!-- results: made by python -m {module} -->", "<!-- end of results -->"
    text_now = page.read_text(encoding="utf-8") if page.exists() else f"{begin}{end}\n"
    head, rest = text_now.split(begin)
    made = f"{head}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}"
    write_whole(page, lambda file: file.write(made.encode()))


def make(
    what: str,
    module: str,
    page: Path,
    settings: Mapping[str, Sequence[str]],
    plot: Callable,
    tables: Callable,
    pictures: Callable,
) -> None:
    """The command of a page: OUT [--pictures] puts rows, measured.png, pictures.png and tables beside and into it.

    Args:
        settings: what a row of each way is told by
    """
    parser = argparse.ArgumentParser(description=what.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--pictures", action="store_true", help="draw the sheet too; needs the runs of seed 0 in OUT")
    args = parser.parse_args()
    mpl.use("Agg")
    rows, folder = results(args.out, page.parent, settings), page.parent
    figure = plot(rows)
    write_whole(folder / "measured.png", lambda file: figure.savefig(file, format="png", dpi=110))
    if args.pictures:
        made = pictures(args.out)
        write_whole(folder / "pictures.png", lambda file: made.save(file, format="PNG", optimize=True))
    put(page, module, tables(rows))
