"""What an image prompt says beside the text, measured on the toybox: ``python -m ldm.toybox.recipe.image_prompts OUT``.

IP-Adapters for the packaged model and its own image tower, trained by ``ldm train ip_adapter``, of several seeds:

    decoupled  a second attention, with kernels of its own
    joined     at equal steps: no kernels, the tokens stand beside those of the text in one attention

and what is asked of them: "a KIND" beside the picture of a toy of another kind, in a colour and a material of its own.

    scales      over scales: the share of pictures whose kind is the text's; whose colour, and whose material, is the
                picture's; both kind and colour
    joined      the same of the other way, which has no scale
    structure   with a ControlNet that follows edges: colour from one picture, edges from another (``edges`` is trained
                by ``ldm.toybox.recipe.control``)

Rows of JSON go to OUT/measured.jsonl; ``python -m ldm.toybox.recipe.image_prompts_page OUT`` makes a page of them.
Source: "IP-Adapter" (arXiv:2308.06721), section 4.3 and 4.4.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import ldm
from ldm import Bundle, Control, ImagePrompt, bundle
from ldm.adapters.control_file import read_net
from ldm.adapters.controlnet import Net
from ldm.adapters.image_prompt import Adapter, tokens_of
from ldm.adapters.ip_adapter_file import read_adapter
from ldm.evaluation.adherence import edge_agreement
from ldm.toybox import hints, recogniser
from ldm.toybox.recipe import study
from ldm.toybox.sampling import random_scenes
from ldm.toybox.scene import COLOURS, HANDSET, HEAD, KINDS, MATERIALS
from ldm.toybox.world import render, to_uint8, truths
from ldm.training import ip_adapter

SEEDS, SIZE = (0, 1, 2), 64
STEPS, PAIRS = 1000, 4000
ASKED, AT_ONCE = 48, 24  # pictures that adapters are tried on; drawn together
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
WAYS = ("decoupled", "joined")
ASKABLE = tuple(kind for i, kind in enumerate(KINDS) if i not in (HEAD, HANDSET))
FOLLOWS = "edges"


class Asked(NamedTuple):
    """The kinds of the text; the pictures to resemble, uint8 [N, 64, 64, 3], and what their toys are; hints of toys of
    the text's kind in no colour in particular, and the pictures that those are of."""

    kinds: np.ndarray
    shown: np.ndarray
    colours: np.ndarray
    materials: np.ndarray
    hints: np.ndarray
    structure: np.ndarray


@functools.cache
def asked(seed: int) -> Asked:
    """Fresh ones: kinds and colours in turn, never the kind that is shown."""
    count = np.arange(ASKED)
    kind = (count % len(ASKABLE)).astype(np.int32)
    other = ((kind + 1 + count // len(ASKABLE) % (len(ASKABLE) - 1)) % len(ASKABLE)).astype(np.int32)
    colour, material = (count % len(COLOURS)).astype(np.int32), (count // 2 % len(MATERIALS)).astype(np.int32)
    of = lambda seed, **values: study.with_first(random_scenes(range(ASKED), seed, "test", 1), **values)
    shown = of(600 + seed, kind=other, colour=colour, material=material)
    structure = of(700 + seed, kind=kind)
    picture = lambda scenes: to_uint8(render(scenes, SIZE))
    seen = to_uint8(hints.hint(FOLLOWS, truths(structure, SIZE)))
    return Asked(kind, picture(shown), colour, material, seen, picture(structure))


def trained(out: Path, way: str, seed: int) -> tuple[Adapter, float]:
    """``ldm train ip_adapter``: (the adapter, minutes)."""
    to = out / f"{way}-{seed}"
    data = {"count": PAIRS, "size": SIZE, "seed": 300, "cache": str(out / "cache")}
    loss = {"joined": way == "joined", "diffusion": study.NOISE}
    minutes = study.trained(ip_adapter.ip_adapter, to, STEPS, 1e-3, seed=seed, data=data, loss=loss)
    return read_adapter(to / ip_adapter.ADAPTER_FILE, bundle.load("toybox")), minutes


def drawn(
    model: Bundle, told: Asked, seed: int, adapter: Adapter, scale: float | None, net: Net | None = None
) -> np.ndarray:
    """uint8 [N, 64, 64, 3]; scale None: the tokens stand beside those of the text."""
    settings = study.SAMPLING | {"seed": seed}
    parts = []
    for i in range(0, ASKED, AT_ONCE):
        some = slice(i, i + AT_ONCE)
        prompts = [f"a {ASKABLE[kind]}" for kind in told.kinds[some]]
        shown = ImagePrompt(adapter, told.shown[some], 1.0 if scale is None else scale)
        more: dict[str, Any] = (
            {"image_prompts": [shown]} if scale is not None else {"context": beside(model, prompts, shown)}
        )
        more["controls"] = [Control(net, told.hints[some])] if net else []
        parts.append(ldm.generate(model, prompts, **settings, **more, index=i))
    return np.concatenate(parts)


def beside(model: Bundle, prompts: Sequence[str], shown: ImagePrompt) -> np.ndarray:
    """[2N, S + T, E]: the text's context and the image prompt's tokens, negative ones first."""
    tokens = tokens_of(shown, len(prompts))
    both = np.concatenate([tokens[:, 0], tokens[:, 1]])
    return np.concatenate([ldm.encode_prompts(model, prompts), both], axis=1)


def figures(told: Asked, made: np.ndarray) -> dict[str, float]:
    """Shares, per cent."""
    slots = recogniser.scan_all(recogniser.load(), made.astype(np.float32) / 255)
    first = lambda name: np.asarray(getattr(slots, name))[:, 0]
    index = np.array([KINDS.index(ASKABLE[kind]) for kind in told.kinds])
    kind, colour = first("kind") == index, first("colour") == told.colours
    share = lambda good: round(100 * float(np.mean(good)), 1)
    found = {"kind": kind, "colour": colour, "material": first("material") == told.materials, "both": kind & colour}
    return {name: share(good) for name, good in found.items()}


def scales(out: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of every scale, and of the other way."""
    model, told = bundle.load("toybox"), asked(seed)
    adapter, minutes = trained(out, "decoupled", seed)
    for scale in SCALES:
        row = {"way": "scales", "adapter": "decoupled", "scale": scale, "minutes": round(minutes, 2)}
        yield row | figures(told, drawn(model, told, seed, adapter, scale))
    adapter, minutes = trained(out, "joined", seed)
    row = {"way": "scales", "adapter": "joined", "scale": None, "minutes": round(minutes, 2)}
    yield row | figures(told, drawn(model, told, seed, adapter, None))


def structure(out: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Rows with and without the hint, with and without the image prompt."""
    model, told = bundle.load("toybox"), asked(seed)
    adapter, _ = trained(out, "decoupled", seed)
    net = read_net(out / f"{FOLLOWS}-{seed}" / "control.safetensors")
    for scale, own in ((0.0, None), (1.0, None), (0.0, net), (1.0, net)):
        made = drawn(model, told, seed, adapter, scale, own)
        row = {"way": "structure", "hint": "with" if own else "without", "scale": scale}
        agreement = 100 * float(edge_agreement(made, told.structure).mean())
        yield row | {"adherence": round(agreement, 1), **figures(told, made)}


NAMES: study.Measures = {"scales": scales, "structure": structure}


if __name__ == "__main__":
    study.measure(__doc__, NAMES, SEEDS)
