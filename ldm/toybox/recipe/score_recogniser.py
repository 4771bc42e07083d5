"""What the recogniser gets right on pictures that it never saw: ``python -m ldm.toybox.recipe.score_recogniser``.

Prints the tables of its card, data/RECOGNISER.md, and the same as one line of JSON. Toys of the truth and sightings
are paired so that the middles of their boxes are nearest. A toy that was missed counts as wrong in everything, and
toys count whether or not their picture was called readable.

M pictures, N slots.
"""

import argparse
import io
import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ldm.toybox import captions, recogniser, sampling, world
from ldm.toybox.recipe import degrade
from ldm.toybox.recipe.recogniser import Targets, targets
from ldm.toybox.recogniser import ATTRIBUTES, SIZE, Slots
from ldm.toybox.scene import COLOURS, HANDSET, KINDS, Scene

SEED = 0
FRESH, OTHERS, BROKEN = 2000, 1000, 400  # pictures: the main table, other renders, each kind of unreadable one
NEAR, FAR = 2 / SIZE, 8 / SIZE  # of the picture: a place is right within 2 pixels; beyond 8 it is not that toy
AT_ONCE = 200


def pictures_of(scenes: Scene) -> np.ndarray:
    """[M, 64, 64, 3] float32, as a file of bytes would have them."""
    return world.to_uint8(world.render(scenes)).astype(np.float32) / 255


def scan(pictures: Any, params: dict) -> Slots:
    """What is read in any number of pictures, as NumPy arrays."""
    parts = [
        recogniser.scan_all(params, jnp.asarray(pictures[i : i + AT_ONCE])) for i in range(0, len(pictures), AT_ONCE)
    ]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def pair(slots: Slots, truth: Targets) -> np.ndarray:
    """Which sighting each toy is, -1 for none: [M, N]."""
    middle = lambda box: (box[..., :2] + box[..., 2:]) / 2
    apart = np.linalg.norm(middle(truth.box)[:, :, None] - middle(np.asarray(slots.box))[:, None], axis=-1)
    both = (truth.kind >= 0)[:, :, None] & np.asarray(slots.there)[:, None]
    cost = np.where(both & (apart <= FAR), apart, 1.0)
    orders = np.array(list(permutations(range(cost.shape[1]))))
    total = np.stack([np.take_along_axis(cost, order[None, :, None], 2).sum((1, 2)) for order in orders], 1)
    best = orders[total.argmin(1)]
    return np.where(np.take_along_axis(cost, best[..., None], 2)[..., 0] < 1.0, best, -1)


def own(values: Any, pairs: np.ndarray) -> np.ndarray:
    """A field of `Slots` [M, N, ...] in the order of the truth's toys."""
    values = np.asarray(values)
    index = np.maximum(pairs, 0).reshape(*pairs.shape, *[1] * (values.ndim - 2))
    return np.take_along_axis(values, index, 1)


def scores(slots: Slots, truth: Targets) -> dict[str, float]:
    """Per cent right over all toys, of pictures with the right count and of readable ones, and middle errors."""
    there, pairs = truth.kind >= 0, pair(slots, truth)
    found = pairs >= 0
    right = {name: found & (own(getattr(slots, name), pairs) == getattr(truth, name)) for name in ATTRIBUTES}
    away = (own(slots.box, pairs) - truth.box).reshape(*pairs.shape, 2, 2).mean(-2)
    right["place"] = found & (np.linalg.norm(away, axis=-1) <= NEAR)
    right["all five"] = np.all(list(right.values()), 0)
    table = {name: percent(values[there]) for name, values in right.items()}
    table["count"] = percent(slots.there.sum(1) == there.sum(1))
    table["unreadable"] = percent(~slots.readable)
    whole = (right["all five"] | ~there).all(1) & (slots.there.sum(1) == there.sum(1))
    table["whole picture"] = percent(whole)
    table["whole picture, readable"] = percent(whole[slots.readable])
    return table


def percent(values: np.ndarray) -> float:
    """The share of true ones, in per cent; of none, 0."""
    return round(100 * float(values.mean()), 2) if values.size else 0.0


def relation_scores(slots: Slots, truth: Targets) -> dict[str, float]:
    """Of clear relations: per cent that are read (recall), and per cent of what is read that is true (precision)."""
    pairs = pair(slots, truth)
    known, read = set(), set()
    for i in np.flatnonzero(((pairs >= 0) | (truth.kind < 0)).all(1)):
        n = int((truth.kind[i] >= 0).sum())
        said = [own(values, pairs)[i, :n] for values in (slots.column, slots.depth)]
        known |= {(i, *relation) for relation in captions.compare(truth.column[i, :n], truth.depth[i, :n])}
        read |= {(i, *relation) for relation in captions.compare(*said)}
    across = lambda found: {relation for relation in found if relation[2] in ("left", "right")}
    table = {}
    for name, a, b in (
        ("left or right", across(known), across(read)),
        ("front or behind", known - across(known), read - across(read)),
    ):
        table[f"{name}: read"] = round(100 * len(a & b) / max(len(a), 1), 2)
        table[f"{name}: true"] = round(100 * len(a & b) / max(len(b), 1), 2)
    return table


def confusions(slots: Slots, truth: Targets, name: str, words: tuple[str, ...], most: int = 3) -> dict[str, float]:
    """The most frequent mistakes, in per cent of the toys that are what the first word says."""
    pairs = pair(slots, truth)
    found = (truth.kind >= 0) & (pairs >= 0)
    table = np.zeros((len(words), len(words)))
    np.add.at(table, (getattr(truth, name)[found], own(getattr(slots, name), pairs)[found]), 1)
    share = 100 * table / np.maximum(table.sum(1, keepdims=True), 1)
    np.fill_diagonal(share, 0)
    worst = np.argsort(share, axis=None)[::-1][:most]
    return {
        f"{words[i]} read as {words[j]}": round(float(share[i, j]), 2)
        for i, j in zip(*np.unravel_index(worst, share.shape), strict=True)
    }


def jpeg(pictures: np.ndarray, quality: int) -> np.ndarray:
    """Pictures as they come back from JPEG files."""

    def through(picture: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(world.to_uint8(picture)).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file), np.float32) / 255

    return np.stack([through(picture) for picture in pictures])


def degraded(pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Renders made worse in known ways."""
    noise = np.random.default_rng(SEED).standard_normal(pictures.shape, np.float32)
    smaller = lambda size: np.asarray(jax.image.resize(pictures, (len(pictures), size, size, 3), "linear"))
    return {
        "blur of 1.0 pixel": np.asarray(degrade.blur(pictures, 1.0)),
        "blur of 1.5 pixels": np.asarray(degrade.blur(pictures, 1.5)),
        "noise of 0.05": np.clip(pictures + 0.05 * noise, 0, 1),
        "noise of 0.10": np.clip(pictures + 0.10 * noise, 0, 1),
        "JPEG, quality 75": jpeg(pictures, 75),
        "JPEG, quality 40": jpeg(pictures, 40),
        "half the size": smaller(SIZE // 2),
    }


def broken(pictures: np.ndarray, truth: Targets, params: dict) -> dict[str, float]:
    """Per cent called unreadable, for each kind of picture that should be."""
    key, table = jax.random.key(SEED), {}
    share = lambda bad: percent(~scan(np.asarray(bad), params).readable)
    table["half erased"] = share(degrade.erased(key, pictures, truth.box[:, 0]))
    for name, make in {**degrade.TRAINED, **degrade.UNSEEN}.items():
        table[name + (" (kept out)" if name in degrade.UNSEEN else "")] = share(make(key, pictures))
    return table


def handsets(params: dict) -> dict[str, float]:
    """What is said of single handsets, which the recogniser never saw, in per cent."""
    scenes = sampling.random_scenes(range(BROKEN), SEED, "test", 1)
    scenes = replace(scenes, kind=np.where(scenes.kind >= 0, HANDSET, -1).astype(np.int32))
    slots = scan(pictures_of(scenes), params)
    table = {"unreadable": percent(~slots.readable), "colour right": percent(slots.colour[:, 0] == scenes.colour[:, 0])}
    seen = slots.kind[slots.readable, 0]
    return table | {f"read as {KINDS[k]}": percent(seen == k) for k in range(HANDSET)}


def tables(params: dict) -> dict[str, dict[str, float]]:
    """Every table of the card."""
    scenes = sampling.random_scenes(range(FRESH), SEED, "test")
    pictures, truth = pictures_of(scenes), targets(scenes)
    slots, count = scan(pictures, params), (truth.kind >= 0).sum(1)
    chosen = lambda tree, which: jax.tree.map(lambda values: values[which], tree)
    result = {f"{FRESH} fresh renders": scores(slots, truth)}
    for n in (1, 2, 3):
        result[f"of these, {n} toys"] = scores(chosen(slots, count == n), chosen(truth, count == n))
    small = truth._replace(kind=np.where(truth.size == 0, truth.kind, -1))
    result["of these, small toys"] = {name: scores(slots, small)[name] for name in ATTRIBUTES}
    result["relations"] = relation_scores(slots, truth)
    result["worst kinds"] = confusions(slots, truth, "kind", KINDS[:-1])
    result["worst colours"] = confusions(slots, truth, "colour", COLOURS)
    other = sampling.random_scenes(range(OTHERS), SEED, "held_out")
    result["held-out pairs"] = scores(scan(pictures_of(other), params), targets(other))
    few = chosen(truth, slice(OTHERS))
    for name, worse in degraded(pictures[:OTHERS]).items():
        result[name] = scores(scan(worse, params), few)
    result["called unreadable"] = broken(pictures[:BROKEN], chosen(truth, slice(BROKEN)), params)
    result["single handsets"] = handsets(params)
    return result


def main() -> None:
    """Prints the tables, and last the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=recogniser.SHIPPED, help="the file to score")
    result = tables(recogniser.load(parser.parse_args().weights))
    for title, table in result.items():
        print(f"\n{title}")
        print("\n".join(f"  {name:<32}{value:>8.2f} %" for name, value in table.items()))
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
