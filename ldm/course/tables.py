"""The tables of the README and of the course's front page, from what the lessons measured: lessons/results.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.course.claims import figure
from ldm.course.exercise import discover
from ldm.files import write_whole

BEGIN, END = "<!-- {}: made by lessons/build.py -->", "<!-- end of {} -->"


def _range(low: float | None, high: float | None) -> str:
    """In words; None is no limit."""
    if high is None:
        return f"≥ {figure(low)}"
    return f"≤ {figure(high)}" if low is None else f"{figure(low)} to {figure(high)}"


def claims_table(results: Mapping[str, Any]) -> str:
    """A row for every claim: what was measured, over which seeds, in which range, and whether it holds."""
    lines = ["| lesson | claim | measured | expected | floor | holds |", "|---|---|---|---|---|---|"]
    for number, lesson in sorted(results.items()):
        for made in lesson["claims"]:
            values = made["measured"]
            half = (max(values) - min(values)) / 2
            floor = "" if made["floor"] is None else figure(made["floor"])
            row = f" (row {made['row']})" if made["row"] else ""
            measured = f"{figure(sum(values) / len(values))} ± {figure(half)} {made['unit']}".strip()
            holds = "yes" if made["holds"] else f"**no**: {made['reason']}"
            text = f"{made['text']}{row}; {made['source']}".replace("|", "\\|")
            lines.append(
                f"| {number} | {text} | {measured} | {_range(made['low'], made['high'])} | {floor} | {holds} |"
            )
    return "\n".join(lines)


def course_table(results: Mapping[str, Any], place: Path, prefix: str = "") -> str:
    """A row for every lesson: picture, notebooks, exercises, minutes."""
    exercises = discover(place)
    lines = ["| | lesson | exercises | to read and do | to run, 2 cores |", "|---|---|---|---|---|"]
    for number, lesson in sorted(results.items()):
        mine = [each for each in exercises if each.lesson == number]
        book = lesson["source"].replace(".py", ".ipynb")
        names = f"[{lesson['title']}]({prefix}{book}) · [한국어]({prefix}ko/{book})"
        picture = f'<img src="{prefix}thumbnails/{number}.png" width="180">'
        minutes = 30 + sum(each.minutes for each in mine)
        lines.append(f"| {picture} | {number} {names} | {len(mine)} | {minutes} min | {lesson['minutes']:g} min |")
    return "\n".join(lines)


def write_tables(place: Path, results: Mapping[str, Any], dry: bool = False) -> list[str]:
    """Puts the tables between their marks; with ``dry`` only says which are not as they should be."""
    amiss = []
    for file, prefix in (("README.md", "lessons/"), ("lessons/README.md", "")):
        path = place / file
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        new = old
        for name, table in (("course", course_table(results, place, prefix)), ("claims", claims_table(results))):
            new = _between(new, name, table)
        if new != old and dry:
            amiss.append(f"the tables of {file} are not those of lessons/results.json; build a lesson")
        elif new != old:
            write_whole(path, lambda out, new=new: out.write(new.encode()))
    return amiss


def _between(text: str, name: str, table: str) -> str:
    """``text`` with what stands between a pair of marks replaced; unchanged without them."""
    begin, end = BEGIN.format(name), END.format(name)
    before, found, rest = text.partition(begin)
    if not found or end not in rest:
        return text
    return f"{before}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}"
