"""What the ControlNet paper says, measured on the toybox: ``python -m ldm.toybox.recipe.control OUT [NAMES…]``.

Nets that follow the toybox's edges, trained for the packaged model by ``ldm train controlnet``, of several seeds:

    edges     1000 pairs, zero convolutions, half of the captions dropped: the one that the others are held against
    gaussian  what leads into and out of the copy begins as ordinary layers do
    drop 0    no caption is dropped
    100       as many pairs
    10000     as many pairs
    depth     follows depth instead: beside "edges", two conditions at once
    slow      at a tenth of the rate: does adherence rise by leaps?

and what is asked of them, of fresh scenes with their own captions:

    nets      every net: how well edges agree with those of the true picture (F1, ``ldm.evaluation.adherence``), and the
              share of pictures whose toys are as the caption says; with the caption, and with none
    pairs     "edges", "depth", both at once, in either order; edges that show one toy, and depth that shows the other
    rules     over guidance scales: the hint in both halves of the guided batch, or in the prompts' half alone, weighed
              by the three rules of ``ldm.Control``, or by one scale; with captions, and with none

Rows of JSON go to OUT/measured.jsonl; ``python -m ldm.toybox.recipe.control_page OUT`` makes a page of them.
Source: "Adding Conditional Control to Text-to-Image Diffusion Models" (arXiv:2302.05543).
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import ldm
from ldm import Bundle, Control, bundle
from ldm.adapters.control_file import read_net
from ldm.adapters.controlnet import Net
from ldm.evaluation.adherence import edge_agreement
from ldm.toybox import hints, recogniser
from ldm.toybox.dataset import Dataset, example
from ldm.toybox.parsing import parse
from ldm.toybox.recipe import study
from ldm.toybox.scene import Scene, count, stack
from ldm.toybox.world import render, to_uint8, truths
from ldm.training import controlnet, reports

SEEDS, SIZE = (0, 1, 2), 64
STEPS, EVERY, PAIRS = 800, 40, 1000  # a run looks at itself every so many steps
SCENES, AT_ONCE = 48, 24  # that nets are tried on; drawn together
GUIDANCE = (1.0, 3.0, 7.5)
NETS: dict[str, dict[str, Any]] = {
    "edges": {},
    "gaussian": {"begin": "gaussian"},
    "drop 0": {"drop": 0.0},
    "100": {"count": 100, "every": 200},
    "10000": {"count": 10_000, "every": 200},
    "depth": {"hint": "depth", "every": 200},
    "slow": {"rate": 1e-4},
}
WAYS: dict[str, dict[str, Any]] = {
    "both halves": {},
    "prompts only": {"prompts_only": True},
    "prompts only, 0.4": {"prompts_only": True, "scale": 0.4},
    "resolution": {"prompts_only": True, "rule": "resolution"},
    "resolution / 8": {"prompts_only": True, "rule": "resolution", "scale": 1 / 8},
    "guess": {"prompts_only": True, "rule": "guess"},
    "log": {"prompts_only": True, "rule": "log"},
}
TOGETHER = (  # hints, each for the net of its first word; the scale of each
    (("edges",), 1.0),
    (("depth",), 1.0),
    (("edges", "depth"), 1.0),
    (("depth", "edges"), 1.0),
    (("edges", "depth"), 0.5),
    (("edges of one",), 1.0),
    (("depth of the other",), 1.0),
    (("edges of one", "depth of the other"), 1.0),
)


class Scenes(NamedTuple):
    """What nets are tried on: captions, pictures uint8 [N, 64, 64, 3], and their hints by name."""

    captions: list[str]
    pictures: np.ndarray
    hints: dict[str, np.ndarray]


@functools.cache
def scenes(seed: int) -> Scenes:
    """Fresh ones, of one or two toys."""
    found = [example(i, Dataset(seed=40 + seed, split="test", toys=1 + i % 2)) for i in range(SCENES)]
    batch = stack([each.scene for each in found])
    last = count(batch) - 1
    whole = truths(batch, SIZE)
    one, other = (truths(only(batch, i), SIZE) for i in (np.zeros_like(last), last))  # the same, where there is but one
    shown = {"edges": whole, "depth": whole, "edges of one": one, "depth of the other": other}
    own = {name: to_uint8(hints.hint(name.split()[0], true)) for name, true in shown.items()}
    return Scenes([each.caption for each in found], to_uint8(render(batch, SIZE)), own)


def only(batch: Scene, toys: np.ndarray) -> Scene:
    """Scenes [N] with no toy but this one of each, ``toys`` [N]."""
    names = ("kind", "colour", "size", "material", "position", "yaw", "identity")
    alone = study.with_first(batch, **{name: getattr(batch, name)[np.arange(len(toys)), toys] for name in names})
    return replace(alone, kind=np.where(np.arange(alone.kind.shape[-1]) == 0, alone.kind, -1))


# ---------------------------------------------------------------------------------------------------------------------
# Nets


def place(out: Path, name: str, seed: int) -> Path:
    """The folder of a run."""
    return out / f"{name.replace(' ', '-')}-{seed}"


def trained(out: Path, name: str, seed: int) -> None:
    """``ldm train controlnet``, if it is not there."""
    said, to = NETS[name], place(out, name, seed)
    data = {"count": said.get("count", PAIRS), "size": SIZE, "seed": 100 + seed, "hint": said.get("hint", "edges")}
    loss = {key: said[key] for key in ("begin", "drop") if key in said} | {"diffusion": study.NOISE}
    own = {"seed": seed, "data": data, "loss": loss, "sample_every": said.get("every", EVERY)}
    study.trained(controlnet.controlnet, to, STEPS, said.get("rate", 1e-3), **own)


def net_of(out: Path, name: str, seed: int) -> Net:
    """A trained net; trained first, if it is not there."""
    trained(out, name, seed)
    return read_net(place(out, name, seed) / controlnet.CONTROL_FILE)


def curve(folder: Path) -> dict[str, list[float]]:
    """Adherence over the steps of a run."""
    lines = [line for line in reports.read(folder / "metrics.jsonl") if "measured" in line]
    return {
        "steps": [line["step"] for line in lines],
        "adherence over steps": [line["measured"]["adherence"] for line in lines],
    }


def jump(values: Sequence[float]) -> dict[str, float]:
    """How sudden a curve rises: the greatest rise from one measurement to the next, as a share of the whole rise; and
    what a step, and what a straight line, leave of its variance, each fitted by least squares."""
    y = np.asarray(values, float)
    rise, left = y.max() - y.min(), lambda fit: float(np.sum((y - fit) ** 2) / np.sum((y - y.mean()) ** 2))
    steps = [np.where(np.arange(len(y)) < i, y[:i].mean(), y[i:].mean()) for i in range(1, len(y))]
    line = np.polyval(np.polyfit(np.arange(len(y)), y, 1), np.arange(len(y)))
    return {
        "greatest rise": float(np.diff(y).max() / rise),
        "left by a step": min(map(left, steps)),
        "left by a line": left(line),
    }


# ---------------------------------------------------------------------------------------------------------------------
# What they have learned


Steered = Sequence[tuple[Net, np.ndarray, dict[str, Any]]]  # nets, their hints [N, 64, 64, 3], how they steer


def drawn(
    model: Bundle, prompts: Sequence[str], steered: Steered, seed: int, guidance: float | None = None
) -> np.ndarray:
    """uint8 [N, 64, 64, 3]: a picture of each prompt, under the hints."""
    settings = study.SAMPLING | {"seed": seed}
    parts = []
    for i in range(0, len(prompts), AT_ONCE):
        some = slice(i, i + AT_ONCE)
        controls = [Control(net, hint[some], **how) for net, hint, how in steered]
        more = {"controls": controls, "index": i, "guidance": guidance}
        parts.append(ldm.generate(model, list(prompts[some]), **settings, **more))
    return np.concatenate(parts)


def figures(
    model: Bundle, seed: int, steered: Steered, *, captions: bool = True, guidance: float | None = None
) -> dict[str, float]:
    """adherence, and right: per cent."""
    told = scenes(seed)
    prompts = told.captions if captions else [""] * len(told.captions)
    made = drawn(model, prompts, steered, seed, guidance)
    agreement = edge_agreement(made, told.pictures)
    seen = made.astype(np.float32) / 255
    return {
        "adherence": round(100 * float(agreement.mean()), 1),
        "right": as_told(told.captions, seen),
    }


def as_told(captions: Sequence[str], seen: np.ndarray) -> float:
    """Per cent of pictures, [N, 64, 64, 3] in [0, 1], whose toys are as their captions say; relations aside."""
    told = [replace(parse(text), relations=()) for text in captions]
    good = [recogniser.agrees(meaning, reading) for meaning, reading in zip(told, recogniser.read(seen), strict=True)]
    return round(100 * float(np.mean(good)), 1)


def nets(out: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of no net, and of each."""
    model, told = bundle.load("toybox"), scenes(seed)
    for name in (None, *NETS):
        row: dict[str, Any] = {"way": "nets", "net": name or "none"}
        steered: Steered = ()
        if name:
            steered = [(net_of(out, name, seed), told.hints[NETS[name].get("hint", "edges")], {})]
            found = curve(place(out, name, seed))
            row |= found
            if "every" not in NETS[name]:
                row |= {key: round(value, 3) for key, value in jump(found["adherence over steps"]).items()}
        with_captions, without = (figures(model, seed, steered, captions=c) for c in (True, False))
        yield row | with_captions | {f"{key}, no caption": value for key, value in without.items()}


def pairs(out: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of each hint alone, and of two."""
    model, told = bundle.load("toybox"), scenes(seed)
    own = {name: net_of(out, name, seed) for name in ("edges", "depth")}
    for names, scale in TOGETHER:
        steered = [(own[name.split()[0]], told.hints[name], {"scale": scale}) for name in names]
        yield {"way": "pairs", "hints": " + ".join(names), "scale": scale, **figures(model, seed, steered)}


def rules(out: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of every way to weigh a hint, at every guidance scale."""
    model, told = bundle.load("toybox"), scenes(seed)
    net, seen = net_of(out, "edges", seed), told.hints["edges"]
    for captions in (True, False):
        for guidance in GUIDANCE:
            for name, how in WAYS.items():
                found = figures(model, seed, [(net, seen, how)], captions=captions, guidance=guidance)
                yield {"way": "rules", "rule": name, "guidance": guidance, "captions": captions, **found}


NAMES: study.Measures = {"nets": nets, "pairs": pairs, "rules": rules}


if __name__ == "__main__":
    study.measure(__doc__, NAMES, SEEDS)
