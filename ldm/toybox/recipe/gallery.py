"""The model's grid of pictures: ``python -m ldm.toybox.recipe.gallery OUT.png``; eight prompts, four seeds.

The prompts are not chosen by their pictures, and the seeds are 0 to 3.
"""

import argparse
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import ldm
from ldm.bundle import Bundle
from ldm.files import check_png, write_whole
from ldm.toybox.sheets import GAP, INK, LINE, MARGIN, font, paper

PROMPTS = (
    "a red cube",
    "a shiny purple torus",
    "a small yellow sphere",
    "a blue head",
    "a green cube to the left of an orange sphere",
    "a red cone to the right of a cyan cylinder",
    "a yellow torus in front of a blue cube",
    "a purple sphere behind a gray cone",
)
SEEDS = 4
SHOWN = 128  # pixels along a picture
WIDTH, SIZE = 20, 13  # letters in a line, and their size


def gallery(model: Bundle, guidance: float, steps: int = 20) -> Image.Image:
    """One column a prompt, one row a seed."""
    settings = {"guidance": guidance, "steps": steps, "spacing": "trailing", "progress": False}
    rows = [ldm.generate(model, PROMPTS, seed=seed, **settings) for seed in range(SEEDS)]
    top = MARGIN + LINE * max(len(textwrap.wrap(text, WIDTH)) for text in PROMPTS)
    step = SHOWN + GAP
    sheet = paper(2 * MARGIN + step * len(PROMPTS) - GAP, top + step * SEEDS - GAP + MARGIN)
    draw = ImageDraw.Draw(sheet)
    for i, text in enumerate(PROMPTS):
        x = MARGIN + step * i
        draw.multiline_text((x, MARGIN - GAP), "\n".join(textwrap.wrap(text, WIDTH)), INK, font(SIZE))
        for row, pictures in enumerate(rows):
            large = Image.fromarray(np.asarray(pictures[i])).resize((SHOWN, SHOWN), Image.Resampling.BICUBIC)
            sheet.paste(large, (x, top + step * row))
    return sheet


def main() -> None:
    """Draws and writes the grid."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT.png")
    parser.add_argument("--model", default="toybox", help="the folder of a model (default: the packaged one)")
    parser.add_argument("--guidance", type=float, default=3.0)
    args = parser.parse_args()
    check_png(args.out)
    sheet = gallery(ldm.load(args.model, "float32"), args.guidance)
    write_whole(args.out, lambda file: sheet.save(file, format="PNG", optimize=True))


if __name__ == "__main__":
    main()
