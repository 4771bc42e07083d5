"""The page of ``ldm.toybox.recipe.image_prompts``: ``python -m ldm.toybox.recipe.image_prompts_page OUT --pictures``.

Tables over seeds, a figure, and a sheet of pictures of seed 0, for docs/image_prompts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ldm import bundle
from ldm.adapters.control_file import read_net
from ldm.toybox.recipe import page
from ldm.toybox.recipe.image_prompts import FOLLOWS, SCALES, asked, drawn, trained
from ldm.toybox.recipe.page import over_seeds, table
from ldm.toybox.recipe.study import Row

PAGE = Path(__file__).parents[3] / "docs/image_prompts/README.md"
SETTINGS = {"scales": ("adapter", "scale"), "structure": ("hint", "scale")}
SHOWN = 8  # pictures of a row
COLOURS = {"kind": "#2b6cb0", "colour": "#c53030", "material": "#d69e2e", "both": "#2f855a", "adherence": "#6b46c1"}


def plot(rows: Sequence[Row]) -> Any:
    """What the text keeps and the picture gives, over scales; and with edges."""
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.8), layout="constrained")
    own = over_seeds([row for row in rows if row.get("adapter") == "decoupled"], "scale")
    joined = over_seeds([row for row in rows if row.get("adapter") == "joined"], "adapter")
    at = [found["scale"] for found, _ in own]
    for name in ("kind", "colour", "material", "both"):
        values = [found[name] for _, found in own]
        left.plot(at, [v.mean() for v in values], "o-", ms=4, color=COLOURS[name], label=name)
        left.fill_between(at, [v.min() for v in values], [v.max() for v in values], color=COLOURS[name], alpha=0.12)
        for _, found in joined:
            left.axhline(found[name].mean(), color=COLOURS[name], ls=":", lw=1)
    left.set(title="over scales; dotted: tokens joined to the text's", xlabel="scale", ylabel="% of pictures")
    left.set_ylim(0, 103)
    left.legend(frameon=False, fontsize=9)
    page.plain(left)
    groups = over_seeds([row for row in rows if row["way"] == "structure"], "hint", "scale")
    labels = [f"{at['hint']} edges\nscale {at['scale']:g}" for at, _ in groups]
    page.bars(right, labels, [found for _, found in groups], {n: COLOURS[n] for n in ("adherence", "kind", "colour")})
    right.set_title("colour from one picture, edges from another")
    return figure


def pictures(out: Path) -> Image.Image:
    """Rows of pictures of seed 0."""
    model, told = bundle.load("toybox"), asked(0)
    adapter, _ = trained(out, "decoupled", 0)
    joined, _ = trained(out, "joined", 0)
    net = read_net(out / f"{FOLLOWS}-0" / "control.safetensors")
    make = lambda *how: drawn(model, told, 0, *how)[:SHOWN]
    lines = [("image prompts", told.shown[:SHOWN])]
    lines += [(f"scale {scale:g}" + ("" if scale else ":\nthe text alone"), make(adapter, scale)) for scale in SCALES]
    lines += [("joined to the text", make(joined, None)), ("edges to follow", told.hints[:SHOWN])]
    lines += [("edges, scale 0", make(adapter, 0.0, net)), ("edges, scale 1", make(adapter, 1.0, net))]
    return page.sheet(lines)


def tables(rows: Sequence[Row]) -> str:
    """All of them."""
    own = lambda way: [row for row in rows if row["way"] == way]
    parts = [("Scales", table(own("scales"), "adapter", "scale"))]
    parts.append(("Structure from a ControlNet", table(own("structure"), "hint", "scale")))
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in parts)


if __name__ == "__main__":
    page.make(__doc__, "ldm.toybox.recipe.image_prompts_page", PAGE, SETTINGS, plot, tables, pictures)
