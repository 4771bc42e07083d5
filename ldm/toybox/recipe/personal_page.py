"""The page of ``ldm.toybox.recipe.personal``: ``python -m ldm.toybox.recipe.personal_page OUT``.

Tables over seeds, a figure, and a sheet of pictures that the runs of seed 0 draw, for docs/personal.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw

from ldm import bundle
from ldm.adapters.lora import with_lora
from ldm.adapters.textual_inversion import with_word
from ldm.bundle import Bundle
from ldm.files import write_whole
from ldm.toybox.recipe.personal import RARE, SHOTS, WORD, drawn, lora_of
from ldm.toybox.scene import COLOURS
from ldm.toybox.sheets import GAP, INK, MARGIN, font, paper
from ldm.training import personal
from ldm.training.parts import MODEL
from ldm.weights_file import read

PAGE = Path(__file__).parents[3] / "docs/personal"
SHOWN = 8  # pictures of a row
LABEL, LARGE = 190, 96  # pixels of a row's label; of a picture
BEGIN, END = "<!-- results: made by python -m ldm.toybox.recipe.personal_page -->", "<!-- end of results -->"
MEASURES = {"shape": "#2b6cb0", "none": "#a0aec0", "kept": "#c05621"}


def results(out: Path) -> list[dict[str, Any]]:
    """All rows."""
    return [json.loads(line) for line in (out / "measured.jsonl").read_text(encoding="utf-8").splitlines()]


def over_seeds(rows: Sequence[dict[str, Any]], *keys: str) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """[(the settings ``keys`` that rows share, {measure: its value for each seed})], in order of appearance."""
    found: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    numbers = lambda own: [n for n in own[0] if n not in (*keys, "way", "seed")]
    return [
        (dict(zip(keys, at, strict=True)), {n: np.array([row[n] for row in own], float) for n in numbers(own)})
        for at, own in found.items()
    ]


def said(values: np.ndarray) -> str:
    """Mean, and from least to most."""
    return f"{values.mean():.1f} ({values.min():.1f}–{values.max():.1f})"


def table(rows: Sequence[dict[str, Any]], *keys: str) -> str:
    """In Markdown."""
    groups = over_seeds(rows, *keys)
    names = list(dict.fromkeys(name for _, found in groups for name in found))
    lines = ["| " + " | ".join([*keys, *names]) + " |", "|" + "---|" * (len(keys) + len(names))]
    for at, found in groups:
        cells = ["–" if at[key] is None else f"{at[key]:g}" for key in keys]
        lines.append("| " + " | ".join([*cells, *(said(found[n]) if n in found else "–" for n in names)]) + " |")
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]]) -> Any:
    """What is learned and what is kept: every way to the handset, and DreamBooth's class."""
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", width_ratios=(2, 1))
    ways = over_seeds(
        [row for row in rows if row["way"] in ("before", "lora", "word")], "way", "rank", "alpha", "vectors"
    )
    labels = [name_of(at) for at, _ in ways]
    bars(left, labels, [found for _, found in ways], MEASURES)
    left.set_title("a telephone handset, from 12 pictures")
    booth = over_seeds([row for row in rows if row["way"] == "dreambooth"], "prior")
    measures = {"subject": "#2b6cb0", "class": "#c53030", "class before": "#a0aec0", "kept": "#c05621"}
    bars(right, [f"prior loss {at['prior']:g}" for at, _ in booth], [found for _, found in booth], measures)
    right.set_title('DreamBooth: purple for "a zyx cube" and for "a cube"')
    return figure


def name_of(at: dict[str, Any]) -> str:
    """A way in two short lines."""
    if at["way"] == "before":
        return "before"
    return f"word\n{at['vectors']:g} vec." if at["way"] == "word" else f"LoRA r {at['rank']:g}\nalpha {at['alpha']:g}"


def bars(axes: Any, labels: Sequence[str], groups: Sequence[dict[str, np.ndarray]], colours: dict[str, str]) -> None:
    """Groups of bars: the mean over seeds, and a dot for each."""
    wide = 0.8 / len(colours)
    for i, (name, colour) in enumerate(colours.items()):
        places = np.arange(len(groups)) + wide * (i - (len(colours) - 1) / 2)
        axes.bar(places, [found[name].mean() for found in groups], wide, color=colour, label=name, alpha=0.8)
        for place, found in zip(places, groups, strict=True):
            axes.scatter([place] * len(found[name]), found[name], color="#1a202c", s=9, zorder=3)
    axes.set_xticks(range(len(groups)), labels)
    axes.set_ylim(0, 105)
    axes.set_ylabel("% of pictures")
    axes.grid(axis="y", alpha=0.25)
    axes.legend(fontsize=9, ncols=len(colours), loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def sheet(out: Path, rows: Sequence[dict[str, Any]]) -> Image.Image:
    """Rows of pictures of seed 0: the training pictures, and what each way makes of the same noise."""
    base, prompts = bundle.load("toybox"), [f"a {colour} telephone handset" for colour in COLOURS[:SHOWN]]
    word = lambda n: with_word(base, WORD, read(out / f"word-{n:g}-0" / personal.EMBEDDING_FILE)[WORD])
    lora = lambda r, a: with_lora(base, lora_of(out / f"lora-{r:g}-{a:g}-0" / personal.LORA_FILE, a), folded=True)
    lines = [("training pictures", shots(out / "handsets-0")), ("before", draws(base, prompts))]
    for row in (row for row in rows if row["seed"] == 0):
        if row["way"] == "lora":
            name = f"LoRA, rank {row['rank']:g}, alpha {row['alpha']:g}"
            lines.append((name, draws(lora(row["rank"], row["alpha"]), prompts)))
        if row["way"] == "word":
            spoken = [prompt.replace("telephone handset", WORD) for prompt in prompts]
            lines.append((f"a word of {row['vectors']:g}", draws(word(row["vectors"]), spoken)))
    lines.append((f'"{RARE} cube": training', shots(out / "subject-0")))
    for prior in (0, 1):
        model = bundle.load(out / f"booth-{prior}-0" / MODEL)
        for prompt in (f"a {RARE} cube", "a cube"):
            lines.append((f'prior {prior}: "{prompt}"', draws(model, [prompt] * SHOWN)))
    return pasted(lines)


def shots(folder: Path) -> np.ndarray:
    """Training pictures, [8, 64, 64, 3] float32."""
    return np.stack([np.asarray(Image.open(folder / f"{i:02}.png")) for i in range(min(SHOWN, SHOTS))]) / 255


def draws(model: Bundle, prompts: list[str]) -> np.ndarray:
    """Of the noise of seed 0."""
    return drawn(model, prompts, 0)


def pasted(lines: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """Labelled rows of pictures."""
    step = LARGE + GAP
    made = paper(MARGIN + LABEL + step * SHOWN, 2 * MARGIN + step * len(lines))
    draw = ImageDraw.Draw(made)
    for row, (label, pictures) in enumerate(lines):
        y = MARGIN + step * row
        draw.text((MARGIN, y + LARGE // 2 - 8), label, INK, font(14))
        for column, picture in enumerate(pictures):
            small = Image.fromarray(np.round(255 * picture).astype(np.uint8))
            made.paste(small.resize((LARGE, LARGE), Image.Resampling.BICUBIC), (MARGIN + LABEL + step * column, y))
    return made


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """All of them."""
    own: Callable[[str], list] = lambda way: [row for row in rows if row["way"] == way]
    loras = table([*own("before"), *own("lora")], "rank", "alpha")
    parts = [("LoRA", loras), ("Textual inversion", table(own("word"), "vectors"))]
    parts += [("DreamBooth", table(own("dreambooth"), "prior"))]
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in parts)


def main() -> None:
    """Writes the figure and the sheet, and puts the tables between their marks in docs/personal/README.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    out = parser.parse_args().out
    rows = results(out)
    mpl.use("Agg")
    PAGE.mkdir(exist_ok=True)
    figure, pictures = plot(rows), sheet(out, rows)
    write_whole(PAGE / "measured.png", lambda file: figure.savefig(file, format="png", dpi=110))
    write_whole(PAGE / "pictures.png", lambda file: pictures.save(file, format="PNG", optimize=True))
    page = PAGE / "README.md"
    text = page.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    made = f"{head}{BEGIN}\n\n{tables(rows)}\n\n{END}{rest.split(END)[1]}"
    write_whole(page, lambda file: file.write(made.encode()))


if __name__ == "__main__":
    main()
