"""The table and the figures of docs/acceleration, from what was measured: ``python -m bench.accelerations_page``."""

import json
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl

from bench.accelerations import FIRST, RESULTS, ROOT, WAYS, asked, model_of, pictures
from ldm.files import write_whole

PAGE = ROOT / "docs/acceleration"
SHOWN = 8  # pictures of a row of the sheet
FAMILIES = {
    "fewer steps": "#718096",
    "interval": "#2b6cb0",
    "cached": "#c05621",
    "merged": "#2f855a",
    "int8": "#805ad5",
    "together": "#c53030",
}


def results() -> dict[str, dict[str, Any]]:
    """The newest figures of every way."""
    found: dict[str, dict[str, Any]] = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["way"], {}).update(row)
    return {name: found[name] for name in WAYS if name in found}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """In Markdown."""
    lines = ["| | way | GFLOP | time | one toy, % | two toys, % | PSNR, dB |", "|---|---|---|---|---|---|---|"]
    for number, (name, row) in enumerate(rows.items(), 1):
        likeness = "–" if name == FIRST else f"{row['psnr']:.1f}"
        share = f"{100 * row['gflop'] / rows[FIRST]['gflop']:.0f} %"
        spent = f"{100 * row['ratio']:.0f} %" if "ratio" in row else "–"
        lines.append(
            f"| {number} | {name} | {row['gflop']:.1f} ({share}) | {spent} "
            f"| {row['one toy']:.1f} | {row['two toys']:.1f} | {likeness} |"
        )
    return "\n".join(lines)


def plot(rows: dict[str, dict[str, Any]]) -> Any:
    """Score and likeness against arithmetic, a colour for each family, numbered as in the table."""
    from matplotlib import pyplot as plt

    numbers = {name: number for number, name in enumerate(rows, 1)}
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for a, key, label in zip(axes, ("score", "psnr"), ("all right, %", "PSNR against all of it, dB"), strict=True):
        for family, colour in FAMILIES.items():
            own = {n: r for n, r in rows.items() if WAYS[n].family == family and not (key == "psnr" and n == FIRST)}
            values = [r["psnr"] if key == "psnr" else (r["one toy"] + r["two toys"]) / 2 for r in own.values()]
            a.scatter([r["gflop"] for r in own.values()], values, color=colour, label=family, s=34)
            for (name, row), value in zip(own.items(), values, strict=True):
                at = (4, 4) if numbers[name] % 2 else (4, -11)  # neighbours stay legible
                a.annotate(str(numbers[name]), (row["gflop"], value), at, textcoords="offset points", color=colour)
        a.set(xlabel="GFLOP of the U-Net for a picture", ylabel=label, xlim=(0, None))
        a.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, loc="lower right")
    return figure


def sheet(names: Sequence[str]) -> Any:
    """The same pictures drawn in several ways, a row for each."""
    from matplotlib import pyplot as plt

    prompts = asked(SHOWN // 2)
    figure, axes = plt.subplots(len(names), SHOWN, figsize=(SHOWN + 2.4, len(names) * 1.06), layout="constrained")
    for row, name in zip(axes, names, strict=True):
        for a, picture in zip(row, pictures(model_of(WAYS[name]), WAYS[name], prompts), strict=True):
            a.imshow(picture)
            a.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    return figure


def main() -> None:
    """Prints the table, writes the two figures."""
    mpl.use("Agg")
    rows = results()
    print(table(rows))
    PAGE.mkdir(parents=True, exist_ok=True)
    shown = [FIRST, "10 steps, dpmpp_2m", "guided σ > 1", "every 2nd whole, 2 blocks", "every 3rd whole, 4 blocks"]
    shown += ["every 5th whole, 2 blocks", "half of tokens merged", "three quarters merged", "weights in int8"]
    for name, figure in (("score.png", plot(rows)), ("pictures.png", sheet(shown))):
        write_whole(PAGE / name, lambda file, figure=figure: figure.savefig(file, format="png", dpi=100))


if __name__ == "__main__":
    main()
