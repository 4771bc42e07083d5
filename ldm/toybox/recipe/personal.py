"""What a few pictures can teach the toybox's model, measured: ``python -m ldm.toybox.recipe.personal OUT [NAMES…]``.

    lora        the telephone handset, which no training scene has, from 12 renders: by rank, and by alpha / r. They are
                mixed with what the model itself draws for prompts of other toys, so that it does not forget those
    word        one new word, the model as it is: for a large shiny purple cube, beginning as "cube", and for the
                handset, beginning as "toy"
    dreambooth  that cube, as a "zyx cube", without and with pictures of the class

Every run is of the command ``ldm train`` and of several seeds: of the renders, of the run, of the noise. Rows of JSON
go to OUT/measured.jsonl; ``python -m ldm.toybox.recipe.personal_page OUT`` makes a page of them.

    shape      share of pictures in which the one toy is a handset, for "a COLOUR telephone handset", by an instrument
               that knows all seven kinds and what is none: ``ldm.toybox.recipe.seven_kinds``
    new shape  the same in the two colours of which no handset was shown
    none       share in which it is no toy's shape
    colour     share in which it has the colour that was asked for
    kept       share all right of fresh prompts of other toys: what has been forgotten
    subject    share of purple cubes for "a zyx cube", or for the new word
    class      share of purple cubes for "a cube": beside "class before", how far the class has drifted
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import ldm
from ldm import Bundle, bundle
from ldm.adapters.lora import Change, LowRank, parameters, with_lora
from ldm.adapters.textual_inversion import with_word
from ldm.files import into_place
from ldm.toybox import recogniser
from ldm.toybox.recipe import seven_kinds, study
from ldm.toybox.recipe.score import prompts_of, right
from ldm.toybox.sampling import random_scenes
from ldm.toybox.scene import COLOURS, HANDSET, KINDS, MATERIALS, SIZES, Scene
from ldm.toybox.world import render, to_uint8
from ldm.training import personal
from ldm.weights_file import read

SEEDS, SHOTS, SIZE = (0, 1, 2), 12, 64
EACH, KEPT = 8, 48  # pictures of each prompt; prompts of other toys
OTHERS, TIMES = 96, 24  # a LoRA's folder: the model's own pictures of other toys, and how often each handset is in it
WORD, TOY, RARE = "<handset>", "<toy>", "zyx"
NEW = ("yellow", "purple")  # colours of which no handset is shown
SHOWN = tuple(colour for colour in COLOURS if colour not in NEW)
SUBJECT = {
    "kind": KINDS.index("cube"),
    "colour": COLOURS.index("purple"),
    "size": SIZES.index("large"),
    "material": MATERIALS.index("shiny"),
}
LAYERS = [r"attn.*\.kernel$", r"ff.*\.kernel$", r"res.*conv.*\.kernel$"]
LORAS = [(1, 1.0), (4, 4.0), (16, 16.0), (4, 1.0), (4, 16.0)]  # rank, alpha


Shots = tuple[np.ndarray, list[str]]  # pictures uint8 [N, 64, 64, 3], their captions

# ---------------------------------------------------------------------------------------------------------------------
# Pictures to learn from


def handsets(seed: int, count: int = SHOTS) -> tuple[Scene, list[str]]:
    """Scenes with one large handset, of the ``SHOWN`` colours in turn, and their captions."""
    scenes = random_scenes(range(count), 9000 + seed, "train", 1)
    colour = scenes.colour.copy()
    colour[:, 0] = [COLOURS.index(SHOWN[i % len(SHOWN)]) for i in range(count)]
    kind = np.where(scenes.kind >= 0, HANDSET, -1).astype(np.int32)
    large = np.where(scenes.kind >= 0, len(SIZES) - 1, scenes.size).astype(np.int32)
    return replace(scenes, kind=kind, colour=colour, size=large), [
        f"a {COLOURS[c]} telephone handset" for c in colour[:, 0]
    ]


def subjects(seed: int, count: int = SHOTS) -> tuple[Scene, list[str]]:
    """Scenes with the one toy that a rare word is to mean."""
    scenes = random_scenes(range(count), 9500 + seed, "train", 1)
    full = scenes.kind >= 0
    changed = {name: np.where(full, value, getattr(scenes, name)).astype(np.int32) for name, value in SUBJECT.items()}
    return replace(scenes, **changed), [f"a {RARE} {KINDS[SUBJECT['kind']]}"] * count


def folder(path: Path, scenes: Scene, captions: list[str], others: Callable[[], Shots] | None = None) -> Path:
    """The renders as an image folder, if it is not there. With ``others``, those too, and each render many times."""

    def write(to: Path) -> None:
        own = to_uint8(render(scenes, SIZE)), captions
        rows = shots(to, "own", *own) * (TIMES if others else 1) + (shots(to, "other", *others()) if others else [])
        (to / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    if not path.exists():
        into_place(path, write)
    return path


def shots(to: Path, name: str, pictures: np.ndarray, captions: list[str]) -> list[dict[str, str]]:
    """Writes uint8 pictures to a folder; their rows of its table."""
    rows = [{"file_name": f"{name}-{i:02}.png", "text": text} for i, text in enumerate(captions)]
    for row, picture in zip(rows, pictures, strict=True):
        Image.fromarray(picture).save(to / row["file_name"])
    return rows


def remembered(base: Bundle, seed: int) -> Shots:
    """What the model draws for prompts of other toys: to be learned beside the new shape, so that it stays."""
    prompts = prompts_of(OTHERS, 1, False, 500 + seed)
    return np.round(255 * drawn(base, prompts, 500 + seed)).astype(np.uint8), prompts


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def trained(task: str, out: Path, steps: int, data: Path, rate: float, **settings: Any) -> tuple[Path, float]:
    """``ldm train`` on a folder of pictures: (the folder of the run, minutes)."""
    pictures = {"path": str(data), "size": SIZE}
    return out, study.trained(personal.TASKS[task], out, steps, rate, data=pictures, **settings)


def lora_of(path: Path, alpha: float) -> dict[str, dict[str, Change]]:
    """The LoRA in a file of ``ldm train lora``."""
    arrays, found = read(path), {}
    for name, down in arrays.items():
        if name.endswith(".lora_down.weight"):
            layer = name.removesuffix(".lora_down.weight")
            up = arrays[f"{layer}.lora_up.weight"]
            form = LowRank(np.moveaxis(down, (0, 1), (-1, -2)), up.reshape(up.shape[:2]).T)
            _, part, kernel = layer.split(".", 2)
            found.setdefault(part, {})[f"{kernel}.kernel"] = Change(form, np.float32(alpha / down.shape[0]))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What they have learned


def drawn(model: Bundle, prompts: list[str], seed: int) -> np.ndarray:
    """[P, 64, 64, 3] float32 in [0, 1]: one picture of each prompt."""
    settings = study.SAMPLING | {"seed": 20_000 + seed}
    parts = [ldm.generate(model, prompts[i : i + 32], **settings, index=i) for i in range(0, len(prompts), 32)]
    return np.concatenate(parts).astype(np.float32) / 255


def shapes_right(model: Bundle, seed: int, name: str) -> dict[str, float]:
    """What is drawn for handsets of all colours; per cent."""
    eye = seven_kinds.instrument()
    wanted = np.repeat(np.arange(len(COLOURS)), EACH)
    seen = drawn(model, [f"a {COLOURS[c]} {name}" for c in wanted], seed)
    kinds, slots = seven_kinds.kinds(eye, seen), recogniser.scan_all(recogniser.load(), seen)
    new = np.isin(wanted, [COLOURS.index(colour) for colour in NEW])
    share = lambda good: round(100 * float(np.mean(good)), 1)
    return {
        "shape": share((kinds == HANDSET)[~new]),
        "new shape": share((kinds == HANDSET)[new]),
        "none": share(kinds == seven_kinds.NONE),
        "colour": share(np.asarray(slots.colour)[:, 0] == wanted),
    }


def kept(model: Bundle, seed: int) -> float:
    """Per cent all right of fresh prompts of one toy."""
    prompts = prompts_of(KEPT, 1, False, 70 + seed)
    return right(prompts, drawn(model, prompts, seed))["all right"]


def purple(model: Bundle, prompt: str, seed: int) -> float:
    """Per cent of pictures that show one purple cube: by both instruments a cube."""
    seen = drawn(model, [prompt] * 64, seed)
    slots = recogniser.scan_all(recogniser.load(), seen)
    good = [np.asarray(getattr(slots, name))[:, 0] == SUBJECT[name] for name in ("kind", "colour")]
    whole = seven_kinds.kinds(seven_kinds.instrument(), seen) == SUBJECT["kind"]
    return round(100 * float(np.mean(good[0] & good[1] & whole)), 1)


def lora(out: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of ranks at alpha = r, and of alphas at rank 4."""
    base = bundle.load("toybox")
    data = folder(out / f"handsets-{seed}", *handsets(seed), lambda: remembered(base, seed))
    name = "telephone handset"
    yield {"way": "before", **shapes_right(base, seed, name), "kept": kept(base, seed)}
    for rank, alpha in LORAS:
        place, minutes = trained(
            "lora", out / f"lora-{rank}-{alpha:g}-{seed}", 1000, data, 7e-4, seed=seed,
            loss={"rank": rank, "alpha": alpha, "diffusion": study.NOISE}, layers=LAYERS,
        )  # fmt: skip
        learned = lora_of(place / personal.LORA_FILE, alpha)
        model = with_lora(base, learned, folded=True)
        row = {"way": "lora", "rank": rank, "alpha": alpha, "thousands": round(parameters(learned) / 1e3, 1)}
        yield row | {"minutes": round(minutes, 2), **shapes_right(model, seed, name), "kept": kept(model, seed)}


def word(out: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of a toy that the model can draw, and of a shape that it cannot."""
    base, (scenes, captions) = bundle.load("toybox"), handsets(seed)
    spoken = [caption.replace("telephone handset", WORD) for caption in captions]
    toys, _ = subjects(seed)
    known = folder(out / f"toys-{seed}", toys, [f"a {TOY}"] * SHOTS)
    unknown = folder(out / f"words-{seed}", scenes, spoken)
    yield {"way": "word", "concept": "cube", "vectors": 0, "minutes": 0.0, "subject": purple(base, "a cube", seed)}
    for concept, name, begin, data, vectors in (("cube", TOY, "cube", known, 1), ("handset", WORD, "toy", unknown, 4)):
        said = {"word": name, "begin": begin, "vectors": vectors, "diffusion": study.NOISE}
        place, minutes = trained(
            "textual_inversion", out / f"word-{concept}-{seed}", 300, data, 5e-4, seed=seed, loss=said
        )
        model = with_word(base, name, read(place / personal.EMBEDDING_FILE)[name])
        row = {"way": "word", "concept": concept, "vectors": vectors, "minutes": round(minutes, 2)}
        cube = concept == "cube"
        yield row | ({"subject": purple(model, f"a {name}", seed)} if cube else shapes_right(model, seed, name))


def dreambooth(out: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Rows without and with pictures of the class."""
    data, base = folder(out / f"subject-{seed}", *subjects(seed)), bundle.load("toybox")
    rare, plain = (f"a {w}{KINDS[SUBJECT['kind']]}" for w in (f"{RARE} ", ""))
    before = purple(base, plain, seed)
    for prior in (0.0, 1.0):
        said = {"prior": prior, "class_prompt": plain, "class_images": 100, "diffusion": study.NOISE}
        place, minutes = trained("dreambooth", out / f"booth-{prior:g}-{seed}", 200, data, 2e-4, seed=seed, loss=said)
        model = bundle.load(place / "model")
        row = {"way": "dreambooth", "prior": prior, "minutes": round(minutes, 2), "kept": kept(model, seed)}
        yield row | {"subject": purple(model, rare, seed), "class before": before, "class": purple(model, plain, seed)}


NAMES: study.Measures = {
    "lora": lora,
    "word": word,
    "dreambooth": dreambooth,
}


if __name__ == "__main__":
    study.measure(__doc__, NAMES, SEEDS)
