"""``python -m bench report``: tables and plots of the committed results, into the marked sections of bench/README.md.

Each ``bench/results/KIND.jsonl`` gives one section. A file grows by every run; of rows that ask the same of the same
peer the last one counts. Rows that other scripts have written there are passed over.
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bench.questions import QUESTIONS

HERE = Path(__file__).parent
RESULTS, README = HERE / "results", HERE / "README.md"
Row = dict[str, Any]
SAME = ("question", "family", "batch", "size", "dtype", "peer", "how", "steps")
FAMILIES = {"sd1": "SD 1.5", "sd2": "SD 2.1", "small": "small"}


def read(path: Path) -> list[Row]:
    """The rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def keep(row: Row, save: str | None) -> None:
    """Prints a row, and appends it to the results of the machine kind ``save``, if there is one."""
    line = json.dumps(row)
    print(line, flush=True)
    if save:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / f"{save}.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def latest(rows: Iterable[Row]) -> list[Row]:
    """The bench's own rows; of those that ask the same the last, in the order in which they were first asked."""
    found: dict[str, Row] = {}
    for row in rows:
        if row.get("question") in QUESTIONS:
            found[json.dumps([row.get(name) for name in SAME])] = row
    return list(found.values())


def table(head: list[str], lines: Iterable[list[str]]) -> str:
    """A Markdown table; empty for no lines."""
    lines = list(lines)
    rows = [head, ["---"] * len(head), *lines] if lines else []
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def number(value: float | None, unit: str = "") -> str:
    """Three significant digits; a dash for None."""
    return "–" if value is None else f"{value:.3g}{unit}" if value < 1000 else f"{value:,.0f}{unit}"


def spread(seconds: Row) -> str:
    """Median, and the range in brackets."""
    return f"{number(seconds['median'])} ({number(seconds['min'])}–{number(seconds['max'])})"


def asked(row: Row) -> str:
    """The question with the numbers that tell it from others."""
    size = "×".join(map(str, row["size"]))
    what = {"unet": "U-Net call", "picture": f"whole picture, {row['steps']} steps", "decode": "VAE decode"}
    names = what | {"encode": "VAE encode", "text": "text encoding"}
    return f"{names.get(row['question'], row['question'])}, {FAMILIES[row['family']]}, {size}, batch {row['batch']}"


def gb(side: Row) -> str:
    """Peak memory, of the device where it has its own."""
    value = side.get("device_peak_mb", side.get("peak_mb"))
    return number(None if value is None else value / 1e3)


def calls(rows: list[Row]) -> str:
    """Seconds and ratios of what was run in turn."""
    head = ["question", "dtype", "peer", "ours, s", "theirs, s", "ours / theirs", "by rounds", "peak GB, ours / theirs"]
    return table(
        head,
        (
            [
                asked(r),
                r["dtype"],
                r["peer"],
                spread(r["ours"]["seconds"]),
                spread(r["theirs"]["seconds"]),
                f"**{r['ratio']:.2f}**",
                f"{r['ratio_paired']['min']:.2f}–{r['ratio_paired']['max']:.2f}",
                f"{gb(r['ours'])} / {gb(r['theirs'])}",
            ]
            for r in rows
            if QUESTIONS[r["question"]].kind == "call"
        ),
    )


def pairs(r: Row, name: str) -> str:
    """One figure of both sides."""
    return " / ".join(number(r[side].get(name)) for side in ("ours", "theirs"))


def loading(rows: list[Row]) -> str:
    """Time and memory of loading."""
    lines = (
        [FAMILIES[r["family"]], r["dtype"], r["peer"], pairs(r, "load_s"), f"**{r['ratio']:.2f}**", pairs(r, "peak_mb")]
        for r in rows
        if r["question"] == "load"
    )
    return table(["model", "dtype", "peer", "load s, ours / theirs", "ratio", "peak MB, ours / theirs"], lines)


def starting(rows: list[Row]) -> str:
    """From a process's start to its first picture; with what was drawing taken off, for any number of steps."""
    head = ["peer", "steps", "dtype", "cold, s", "warm, s", "ours / theirs, warm", "the picture alone, s"]
    head += ["another shape, s", "programs compiled when warm"]
    return table(
        head,
        (
            [
                r["peer"],
                str(r["steps"]),
                r["dtype"],
                pairs(r, "cold_s"),
                " / ".join(number(r[side]["all"]["median"]) for side in ("ours", "theirs")),
                f"**{r['ratio']:.2f}**",
                pairs(r, "again_s"),
                pairs(r, "other_shape_s"),
                str(r["ours"].get("compiles", "–")),
            ]
            for r in rows
            if r["question"] == "start"
        ),
    )


def memory(rows: list[Row]) -> str:
    """Peak memory of a process that draws one picture, by its side."""
    lines = (
        [str(r["size"][0]), r["dtype"], r["peer"], f"{gb(r['ours'])} / {gb(r['theirs'])}", f"**{r['ratio']:.2f}**"]
        for r in rows
        if r["question"] == "memory"
    )
    return table(["side", "dtype", "peer", "peak GB, ours / theirs", "ratio"], lines)


def training(rows: list[Row]) -> str:
    """What the compiled training step needs, and how that compares with training everything."""
    rows = [r for r in rows if r["question"] == "train"]
    head = ["what learns", "batch", "dtype", "memory, GB", "against full", "TFLOP", "against full", "s a step"]

    def lines() -> Iterator[list[str]]:
        for r in rows:
            same = [
                o["ours"] for o in rows if o["how"] == "full" and o["batch"] == r["batch"] and o["dtype"] == r["dtype"]
            ]
            base, ours = (same or [r["ours"]])[0], r["ours"]
            against = lambda name: f"{ours[name] / base[name] - 1:+.0%}"  # noqa: B023
            seconds = number(ours["seconds"]["median"]) if "seconds" in ours else "not run"
            needed, flops = number(ours["needed_mb"] / 1e3), number(ours["gflop"] / 1e3)
            yield [
                r["how"],
                str(r["batch"]),
                r["dtype"],
                needed,
                against("needed_mb"),
                flops,
                against("gflop"),
                seconds,
            ]

    return table(head, lines())


TABLES = {
    "Run in turn": calls,
    "Loading": loading,
    "Start": starting,
    "Memory against size": memory,
    "Training step": training,
}


def plots(kind: str, rows: list[Row]) -> list[str]:
    """Draws ratios, and memory against size, where there are any; the files' names."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made = []
    if timed := [r for r in rows if QUESTIONS[r["question"]].kind == "call"]:
        figure, axes = pyplot.subplots(figsize=(9, 1 + 0.28 * len(timed)), layout="constrained")
        names = [f"{asked(r)}, {r['dtype']}: {r['peer']}" for r in timed]
        axes.barh(names, [r["ratio"] for r in timed], color=["C0" if r["ratio"] <= 1 else "C3" for r in timed])
        axes.axvline(1, color="black", linewidth=0.8)
        axes.invert_yaxis()
        axes.set_xlabel("our time / theirs; below 1 we are faster")
        made.append(saved(figure, f"{kind}-ratios.png"))
    if sizes := [r for r in rows if r["question"] == "memory"]:
        figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
        for peer in dict.fromkeys(r["peer"] for r in sizes):
            mine = sorted((r["size"][0], r) for r in sizes if r["peer"] == peer)
            sides = [side for side, _ in mine]
            axes.plot(sides, [r["theirs"]["peak_mb"] / 1e3 for _, r in mine], "o-", label=peer)
        axes.plot(sides, [r["ours"]["peak_mb"] / 1e3 for _, r in mine], "ko-", label="ldm")
        axes.set(xlabel="side of the picture, pixels", ylabel="peak memory, GB", ylim=(0, None))
        axes.legend()
        made.append(saved(figure, f"{kind}-memory.png"))
    return made


def saved(figure: Any, name: str) -> str:
    """Writes a figure beside the results."""
    figure.savefig(RESULTS / name, dpi=120)
    return name


def described(rows: list[Row]) -> str:
    """The machine, by the last row that describes one."""
    m = next((row for row in reversed(rows) if "processor" in row), None)
    if m is None:
        return ""
    versions = {n: v for one in m["peers"].values() for n, v in one.items() if n not in ("peer", "device")}
    list_of = ", ".join(f"{name} {version}" for name, version in versions.items())
    where = f"{m['processor']}, {m['cores']} cores, {m['memory_gb']} GB; {m['date']}; Python {m['python']}"
    return f"{where}, {list_of}.\n\n"


def section(path: Path) -> str:
    """Everything about one machine."""
    rows = read(path)
    found = latest(rows)
    tables = [f"#### {title}\n\n{text}\n" for title, make in TABLES.items() if (text := make(found))]
    if not tables:
        return ""
    pictures = "".join(f"![{name}](results/{name})\n\n" for name in plots(path.stem, found))
    return f"### {path.stem}\n\n{described(rows)}{''.join(tables)}{pictures}"


def replaced(text: str, name: str, inside: str) -> str:
    """``text`` with ``inside`` between the marks of a section. Raises ValueError if they are not there."""
    begin, end = f"<!-- {name}: made by python -m bench -->", f"<!-- end of {name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"no marks of the section {name!r}: {begin} … {end}")
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n\n{inside}\n{end}", text, flags=re.S)


def main(given: list[str]) -> None:
    """The command."""
    argparse.ArgumentParser("python -m bench report", description=__doc__.splitlines()[0]).parse_args(given)
    text = "".join(section(path) for path in sorted(RESULTS.glob("*.jsonl")))
    README.write_text(replaced(README.read_text(encoding="utf-8"), "results", text.rstrip() + "\n"), encoding="utf-8")
    print(README)
