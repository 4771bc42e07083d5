"""The page of ``ldm.toybox.recipe.personal``: ``python -m ldm.toybox.recipe.personal_page OUT --pictures``.

Tables over seeds, a figure, and a sheet of pictures that the runs of seed 0 draw, for docs/personal.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm import bundle
from ldm.adapters.lora import with_lora
from ldm.adapters.textual_inversion import with_word
from ldm.bundle import Bundle
from ldm.toybox.recipe import page
from ldm.toybox.recipe.page import over_seeds, table
from ldm.toybox.recipe.personal import LORAS, RARE, SHOTS, TOY, WORD, drawn, lora_of
from ldm.toybox.recipe.study import Row
from ldm.toybox.scene import COLOURS
from ldm.training import personal
from ldm.training.parts import MODEL
from ldm.weights_file import read

PAGE = Path(__file__).parents[3] / "docs/personal/README.md"
SETTINGS = {"before": (), "lora": ("rank", "alpha"), "word": ("concept", "vectors"), "dreambooth": ("prior",)}
SHOWN = 8  # pictures of a row
MEASURES = {"shape": "#2b6cb0", "new shape": "#63b3ed", "none": "#a0aec0", "kept": "#c05621"}
BOOTH = {"subject": "#2b6cb0", "class": "#c53030", "class before": "#a0aec0", "kept": "#c05621"}


def plot(rows: Sequence[Row]) -> Any:
    """What is learned and what is kept: every way to the handset, and DreamBooth's class."""
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 4.6), layout="constrained", width_ratios=(2, 1))
    handsets = [row for row in rows if row["way"] in ("before", "lora") or row.get("concept") == "handset"]
    ways = over_seeds(handsets, "way", "rank", "alpha", "vectors")
    page.bars(left, [name_of(at) for at, _ in ways], [found for _, found in ways], MEASURES)
    left.set_title("a telephone handset, from 12 pictures")
    left.set_ylabel("% of pictures")
    booth = over_seeds([row for row in rows if row["way"] == "dreambooth"], "prior")
    page.bars(right, [f"prior loss {at['prior']:g}" for at, _ in booth], [found for _, found in booth], BOOTH)
    right.set_title('DreamBooth: purple for "a zyx cube" and for "a cube"')
    return figure


def name_of(at: Row) -> str:
    """A way in two short lines."""
    if at["way"] == "before":
        return "before"
    return f"word\n{at['vectors']:g} vec." if at["way"] == "word" else f"LoRA r {at['rank']:g}\nalpha {at['alpha']:g}"


def pictures(out: Path) -> Image.Image:
    """Rows of pictures of seed 0: the training pictures, and what each way makes of the same noise."""
    base = bundle.load("toybox")
    ask = lambda name: [f"a {colour} {name}" for colour in COLOURS[:SHOWN]]
    taught = lambda way, name: with_word(base, name, read(out / way / personal.EMBEDDING_FILE)[name])
    lora = lambda r, a: with_lora(base, lora_of(out / f"lora-{r}-{a:g}-0" / personal.LORA_FILE, a), folded=True)
    lines = [
        ("a handset:\ntraining pictures", shots(out / "handsets-0")),
        ('before: "a COLOUR\ntelephone handset"', draws(base, ask("telephone handset"))),
        *((f"LoRA, rank {r},\nalpha {a:g}", draws(lora(r, a), ask("telephone handset"))) for r, a in LORAS),
        (f'a word:\n"a COLOUR {WORD}"', draws(taught("word-handset-0", WORD), ask(WORD))),
        ("one purple cube:\ntraining pictures", shots(out / "toys-0")),
        (f'a word:\n"a {TOY}"', draws(taught("word-cube-0", TOY), [f"a {TOY}"] * SHOWN)),
    ]
    for prior in (0, 1):
        model = bundle.load(out / f"booth-{prior}-0" / MODEL)
        for prompt in (f"a {RARE} cube", "a cube"):
            lines.append((f'DreamBooth, prior {prior}:\n"{prompt}"', draws(model, [prompt] * SHOWN)))
    return page.sheet(lines)


def shots(folder: Path) -> np.ndarray:
    """Training pictures, uint8 [8, 64, 64, 3]."""
    return np.stack([np.asarray(Image.open(folder / f"own-{i:02}.png")) for i in range(min(SHOWN, SHOTS))])


def draws(model: Bundle, prompts: list[str]) -> np.ndarray:
    """Of the noise of seed 0, uint8."""
    return np.round(255 * drawn(model, prompts, 0)).astype(np.uint8)


def tables(rows: Sequence[Row]) -> str:
    """All of them."""
    own = lambda *ways: [row for row in rows if row["way"] in ways]
    words = [table([row for row in own("word") if row["concept"] == each], "vectors") for each in ("cube", "handset")]
    parts = [("LoRA: a telephone handset", table(own("before", "lora"), "rank", "alpha"))]
    parts += [("Textual inversion: a large shiny purple cube", words[0])]
    parts += [("Textual inversion: a telephone handset", words[1]), ("DreamBooth", table(own("dreambooth"), "prior"))]
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in parts)


if __name__ == "__main__":
    page.make(__doc__, "ldm.toybox.recipe.personal_page", PAGE, SETTINGS, plot, tables, pictures)
