"""What a model of the toybox gets right, measured: ``python -m ldm.toybox.recipe.score MODEL``.

Prints tables and one line of JSON. Samples are read by the recogniser; beside every figure stands its floor or its
ceiling, the same figure of real renders.

    one toy       kind and colour right, in fresh prompts such as "a red cube"
    two toys      both kinds, both colours and the relation right; and with the relation's words left out of account,
                  and as a bag of words: kinds and colours each as a set, which is what is left if nothing is bound
    held out      the same for pairs of colour and kind that are in no training scene
    VAE           PSNR of fresh renders through the autoencoder and back
    CLIP          how often a picture's own caption is the best of 64 different ones
    Fréchet       distance of samples for captions of fresh scenes from renders of other scenes

The guidance is chosen on prompts of its own. P prompts.
"""

import argparse
import functools
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

import ldm
from ldm.bundle import Bundle, module
from ldm.evaluation.frechet import frechet_distance, moments
from ldm.models.clip import similarity
from ldm.toybox import recogniser
from ldm.toybox.captions import holds, random_prompt
from ldm.toybox.dataset import Dataset, Example, example, pictures
from ldm.toybox.grammar import Meaning
from ldm.toybox.parsing import parse
from ldm.toybox.recogniser import Reading, agrees
from ldm.toybox.sampling import Uniform
from ldm.toybox.scene import COLOURS, KINDS
from ldm.toybox.world import to_uint8
from ldm.training.samples import reconstruct

STREAM, SEED, TRIAL_SEED = 50, 0, 1  # of the prompts' random numbers; of prompts and noise; of those that choose
GUIDANCE, STEPS, SAMPLER, SPACING = (1.0, 2.0, 3.0, 5.0, 7.5), 20, "ddim", "trailing"
AT_ONCE, RETRIEVED = 32, 64


def prompts_of(count: int, toys: int, held_out: bool, seed: int) -> list[str]:
    """Fresh prompts; the noise of their pictures follows from their place."""
    make = lambda i: random_prompt(Uniform(seed, STREAM + 2 * toys + held_out, i), toys, held_out)
    return [make(i) for i in range(count)]


def sampled(model: Bundle, prompts: Sequence[str], guidance: float, seed: int) -> np.ndarray:
    """Pictures [P, H, W, 3] float32 in [0, 1]."""
    done = []
    for first in range(0, len(prompts), AT_ONCE):
        some = [*prompts[first : first + AT_ONCE], *[""] * (first + AT_ONCE - len(prompts))]  # one shape, one program
        settings = {"steps": STEPS, "sampler": SAMPLER, "spacing": SPACING, "seed": seed + first, "progress": False}
        done.append(ldm.generate(model, some, guidance=guidance, **settings))
    return np.concatenate(done)[: len(prompts)].astype(np.float32) / 255


def parts_right(meaning: Meaning, reading: Reading) -> dict[str, bool]:
    """What of a prompt its picture shows: everything, all but relations, only the sets of words."""
    said = lambda name: sorted(getattr(each, name) for each in meaning.descriptions)
    bag = sorted(KINDS[t.kind] for t in reading.toys) == said("kind")
    bag &= sorted(COLOURS[t.colour] for t in reading.toys) == said("colour")
    return {
        "all right": agrees(meaning, reading),
        "without relation": agrees(replace(meaning, relations=()), reading),
        "bag of words": reading.readable and bag,
        "unreadable": not reading.readable,
    }


def percent(rows: Sequence[dict[str, bool]]) -> dict[str, float]:
    """Each key's share of true, in per cent."""
    return {name: round(100 * float(np.mean([row[name] for row in rows])), 1) for name in rows[0]}


def right(prompts: Sequence[str], seen: np.ndarray) -> dict[str, float]:
    """The shares of :func:`parts_right` over prompts and their pictures."""
    readings = recogniser.read(seen)
    return percent([parts_right(parse(text), reading) for text, reading in zip(prompts, readings, strict=True)])


def best_guidance(model: Bundle, count: int) -> tuple[float, dict[str, float]]:
    """The guidance whose samples have the most toys right, over prompts of one and of two toys; and what was tried."""
    prompts = [*prompts_of(count, 1, False, TRIAL_SEED), *prompts_of(count, 2, False, TRIAL_SEED)]
    tried = {g: right(prompts, sampled(model, prompts, g, 10_000))["without relation"] for g in GUIDANCE}
    return max(tried, key=tried.get), {str(g): share for g, share in tried.items()}


def renders_right(count: int, toys: int) -> dict[str, float]:
    """The ceiling: real renders of scenes for which such prompts are true, read by the same instrument."""
    found: list[tuple[Meaning, int]] = []
    data = Dataset(seed=11, split="test", toys=toys)
    for index in itertools.count():
        one = example(index, data)
        text = random_prompt(Uniform(SEED, STREAM + 20, index), toys)
        meaning = _about(one.scene, parse(text), toys)
        if meaning is not None and holds(meaning, one.scene):
            found.append((meaning, index))
        if len(found) == count:
            break
    seen = pictures([index for _, index in found], data)["picture"]
    readings = recogniser.read(np.asarray(seen))
    return percent([parts_right(meaning, reading) for (meaning, _), reading in zip(found, readings, strict=True)])


def _about(scene: Any, meaning: Meaning, toys: int) -> Meaning | None:
    """The prompt's form with the words of a scene; None if its toys share a kind or a colour, as no prompt's do."""
    words = [(KINDS[k], COLOURS[c]) for k, c in zip(scene.kind[:toys], scene.colour[:toys], strict=True)]
    if len({kind for kind, _ in words}) < toys or len({colour for _, colour in words}) < toys:
        return None
    named = [replace(d, kind=k, colour=c) for d, (k, c) in zip(meaning.descriptions, words, strict=True)]
    return replace(meaning, descriptions=tuple(named))


def psnr(model: Bundle, count: int) -> float:
    """dB of fresh renders, two thirds of the toybox's usual mix, through the autoencoder and back."""
    seen = np.asarray(pictures(range(count), Dataset(seed=12, split="test"))["picture"])
    back = reconstruct(model.configs.vae, model.params["vae"], to_uint8(seen))[0]
    return round(float(-10 * np.log10(np.mean((back / 255.0 - seen) ** 2))), 2)


def retrieval(model: Bundle, groups: int) -> float:
    """Per cent of pictures whose own caption is the nearest of 64, no two of which say the same or are true of both."""
    data, index, hits = Dataset(seed=13, split="test"), 0, []
    towers = {part: model.params[part] for part in ("text", "image")}
    for _ in range(groups):
        chosen: dict[int, Example] = {}
        while len(chosen) < RETRIEVED:
            new = example(index, data)
            pairs = ((o, new) for o in chosen.values())
            if not any(holds(parse(a.caption), b.scene) or holds(parse(b.caption), a.scene) for a, b in pairs):
                chosen[index] = new
            index += 1
        batch = pictures(chosen, data)
        ids = model.tokenizer(batch["caption"])
        fits = _fits(model.configs, towers, batch["picture"], ids)
        hits.append(np.asarray(fits).argmax(1) == np.arange(RETRIEVED))
    return round(100 * float(np.mean(hits)), 1)


@functools.partial(jax.jit, static_argnums=0)
def _fits(configs: Any, towers: Any, seen: Any, ids: Any) -> jax.Array:
    """[B, B]: how well each picture, in [0, 1], fits each text."""
    said, shown = module(configs, towers, "text")(ids), module(configs, towers, "image")(2 * seen - 1)
    return similarity(said.pooled, shown.pooled)


def frechet(model: Bundle, count: int, guidance: float) -> dict[str, float]:
    """The distance of samples from renders, and the floor: of renders of other scenes from renders."""
    told = Dataset(seed=14, split="test", toys=None)
    ask = [example(i, told).caption for i in range(count)]
    real, other = (np.asarray(pictures(range(count), Dataset(seed=s, split="test"))["picture"]) for s in (15, 16))
    sets = {"renders": real, "floor": other, "samples": sampled(model, ask, guidance, 20_000)}
    found = {name: moments(np.asarray(recogniser.features(seen))) for name, seen in sets.items()}
    return {name: round(frechet_distance(found["renders"], found[name]), 4) for name in ("samples", "floor")}


def score(model: Bundle, count: int) -> dict[str, Any]:
    """All of it, as one dictionary."""
    guidance, tried = best_guidance(model, max(count // 8, 4))
    table: dict[str, Any] = {"guidance": guidance, "tried": tried, "prompts": count}
    groups: dict[str, Callable] = {
        "one toy": lambda: prompts_of(count, 1, False, SEED),
        "two toys": lambda: prompts_of(count, 2, False, SEED),
        "one toy, held out": lambda: prompts_of(count // 4, 1, True, SEED),
        "two toys, held out": lambda: prompts_of(count // 4, 2, True, SEED),
    }
    for name, make in groups.items():
        asked = make()
        table[name] = right(asked, sampled(model, asked, guidance, 0))
    table["renders, one toy"], table["renders, two toys"] = renders_right(count, 1), renders_right(count, 2)
    table["VAE PSNR, dB"], table["CLIP, best of 64"] = psnr(model, count), retrieval(model, max(count // 64, 1))
    return table | {"Fréchet": frechet(model, count, guidance)}


def main() -> None:
    """Prints the table, then the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help='the folder of a model, or "toybox": the packaged one')
    parser.add_argument("--count", type=int, default=512, help="prompts of each of the two main groups")
    parser.add_argument("--save", type=Path, metavar="OUT.json", help="a file for the same figures")
    args = parser.parse_args()
    table = score(ldm.load(args.model, "float32"), args.count)
    if args.save:
        args.save.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, value in table.items():
        print(f"{name:20s} {value}")
    print(json.dumps(table, ensure_ascii=False))


if __name__ == "__main__":
    main()
