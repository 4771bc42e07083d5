"""The page of ``ldm.toybox.recipe.control``: ``python -m ldm.toybox.recipe.control_page OUT --pictures``.

Tables over seeds, a figure, and a sheet of pictures that the nets of seed 0 draw, for docs/control.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm import bundle
from ldm.toybox.recipe import page
from ldm.toybox.recipe.control import GUIDANCE, NETS, TOGETHER, WAYS, Steered, drawn, net_of, scenes
from ldm.toybox.recipe.page import over_seeds, table
from ldm.toybox.recipe.study import Row

PAGE = Path(__file__).parents[3] / "docs/control/README.md"
SETTINGS = {"nets": ("net",), "pairs": ("hints", "scale"), "rules": ("rule", "guidance", "captions")}
SHOWN = 8  # pictures of a row
LEAPS = ("edges", "slow")
COLOURS = ("#2b6cb0", "#c53030", "#2f855a", "#d69e2e", "#6b46c1", "#4a5568", "#0987a0")


def plot(rows: Sequence[Row]) -> Any:
    """Adherence as nets learn; and what the rules do over guidance scales, with captions and with none."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(15, 8.4), layout="constrained")
    own = [row for row in rows if row["way"] == "nets" and row["net"] != "none"]
    for colour, name in zip(COLOURS, NETS, strict=True):
        curves = [row for row in own if row["net"] == name]
        for i, row in enumerate(curves):
            label = name if i == 0 else None
            values = 100 * np.asarray(row["adherence over steps"])
            for place in (axes[0, 0], axes[1, 0]) if name in LEAPS else (axes[0, 0],):
                place.plot(row["steps"], values, color=colour, alpha=0.8, label=label)
    axes[0, 0].set_title("adherence as nets learn, every seed")
    axes[1, 0].set_title("at two rates of learning: is there a leap?")
    axes[1, 0].legend(fontsize=9, frameon=False)
    for place in axes[:, 0]:
        place.set(xlabel="steps", ylabel="F1 of edges, %", ylim=(0, 100))
    asked = [row for row in rows if row["way"] == "rules"]
    for line, captions in enumerate((True, False)):
        some = [row for row in asked if row["captions"] is captions]
        for column, (figure_name, told) in enumerate((("adherence", "F1 of edges, %"), ("right", "toys right, %")), 1):
            over_guidance(axes[line, column], some, figure_name)
            title = f"{figure_name}, {'with captions' if captions else 'no captions'}"
            axes[line, column].set(title=title, xlabel="guidance scale", ylabel=told, ylim=(0, 100))
    for place in axes.flat:
        page.plain(place)
    axes[0, 0].legend(fontsize=9, frameon=False)
    axes[0, 1].legend(fontsize=9, frameon=False)
    return figure


def over_guidance(axes: Any, rows: Sequence[Row], name: str) -> None:
    """A line for each way to weigh a hint: the mean over seeds, and the range."""
    for colour, way in zip(COLOURS, WAYS, strict=False):
        groups = over_seeds([row for row in rows if row["rule"] == way], "guidance")
        at, found = [g["guidance"] for g, _ in groups], [values[name] for _, values in groups]
        axes.plot(at, [v.mean() for v in found], "o-", ms=3, color=colour, label=way)
        axes.fill_between(at, [v.min() for v in found], [v.max() for v in found], color=colour, alpha=0.12, lw=0)


def pictures(out: Path) -> Image.Image:
    """Rows of pictures of seed 0: hints, what they are of, and what nets and rules make of them."""
    model, asked = bundle.load("toybox"), scenes(0)
    some, empty = asked.captions[:SHOWN], [""] * SHOWN
    hint = {name: seen[:SHOWN] for name, seen in asked.hints.items()}
    one = lambda name, how: [(net_of(out, name, 0), hint[NETS[name].get("hint", "edges")], how)]
    make = lambda prompts, steered, scale=None: drawn(model, prompts, steered, 0, scale)
    both: Steered = [(net_of(out, name.split()[0], 0), hint[name], {}) for name in TOGETHER[-1][0]]
    lines = [
        ("edges", hint["edges"]),
        ("the true picture", asked.pictures[:SHOWN]),
        ("its caption, no net", make(some, ())),
        *((f'net "{name}"', make(some, one(name, {}))) for name in NETS),
        ('"edges" of one toy and\n"depth" of the other', make(some, both)),
    ]
    for scale in (GUIDANCE[0], GUIDANCE[-1]):
        ways = ((way, how) for way, how in WAYS.items() if scale > 1 or way == "both halves")
        told = f"no caption, guidance {scale:g}:\n"
        lines += [(told + way, make(empty, one("edges", how), scale)) for way, how in ways]
    return page.sheet(lines)


def tables(rows: Sequence[Row]) -> str:
    """All of them."""
    own = lambda way: [row for row in rows if row["way"] == way]
    parts = [("Nets", table(own("nets"), "net")), ("Two conditions at once", table(own("pairs"), "hints", "scale"))]
    for captions, title in ((True, "Rules, with captions"), (False, "Rules, no captions")):
        some = [
            {k: v for k, v in row.items() if k != "captions"} for row in own("rules") if row["captions"] is captions
        ]
        parts.append((title, table(sorted(some, key=lambda r: list(WAYS).index(r["rule"])), "rule", "guidance")))
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in parts)


if __name__ == "__main__":
    page.make(__doc__, "ldm.toybox.recipe.control_page", PAGE, SETTINGS, plot, tables, pictures)
