"""Trains the toybox's recogniser from renders, in minutes on two cores: ``python -m ldm.toybox.recipe.recogniser``.

Scenes of the splits "train" and "held_out" are rendered once: an instrument must read every pair of colour and kind.
Handsets are in neither. Each step looks at ``BATCH`` pictures, a little degraded, half of them mirrored, and at some
that nothing should read. The map of centres has the focal loss of its paper; what a toy is and where is learned at the
cells about its middle. Thresholds are then chosen on validation scenes.

M renders, B pictures, N slots, G cells along each side.
Sources: Zhou et al., "Objects as Points" (arXiv:1904.07850), eq. (1) and section 4.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from tqdm import tqdm

from ldm import weights_file
from ldm.models.layers import bind, init
from ldm.toybox import captions, recogniser, sampling, scene, world
from ldm.toybox.recipe import degrade
from ldm.toybox.recogniser import ATTRIBUTES, CONFIG, DEEP, GRID, REACH, THRESHOLDS, Recogniser

SEED, VALIDATION_SEED = 3001, 3002  # never those of tests (4001) or of scores (0, split "test")
TRAIN, HELD_OUT, VALIDATION = 16384, 8192, 1280  # scenes
COUNTS = (1, 2, 2, 3, 3)  # toys, in turn: more of the hard scenes than the world has
BATCH, BAD = 48, 16  # pictures a step, and unreadable ones beside them
STEPS = 1600
RATE, DECAY = 2e-3, 0.02
SPREAD = 0.7  # cells: of a toy's peak
UNSURE = 0.004  # share of validation pictures that a threshold may call unreadable


class Targets(NamedTuple):
    """What is true of M renders. ``kind`` is -1 for an empty slot."""

    kind: Array  # [M, N] int32, as the next three
    colour: Array
    size: Array
    material: Array
    box: Array  # [M, N, 4] float32, as in the truth
    column: Array  # [M, N] float32, as in captions.seen_at
    depth: Array  # [M, N] float32: toy units beyond the point that the camera looks at


def targets(scenes: scene.Scene) -> Targets:
    """The truth that the recogniser is taught and scored by, of a batch of scenes."""
    columns, depths = (np.asarray(values) for values in captions.seen_at(scenes))
    attributes = (getattr(scenes, name) for name in ATTRIBUTES)
    box = np.asarray(world.truths(scenes).boxes)
    return Targets(*attributes, box, columns, depths - np.asarray(scenes.camera.distance)[:, None])


def renders(count: int, seed: int, split: str, counts: tuple[int | None, ...] = COUNTS) -> tuple[np.ndarray, Targets]:
    """Pictures [M, 64, 64, 3] uint8 and their targets: the first ``count`` scenes, ``counts`` toys in turn."""
    parts = []
    for start in tqdm(range(0, count, 256), desc=f"rendering {split}", disable=count < 256):
        numbers = range(start, min(start + 256, count))
        scenes = scene.stack([sampling.random_scene(i, seed, split, counts[i % len(counts)]) for i in numbers])
        parts.append((world.to_uint8(world.render(scenes)), targets(scenes)))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def mirrored(key: Array, pictures: Array, truth: Targets) -> tuple[Array, Targets]:
    """Half of the pictures as in a mirror, and their targets."""
    flip = jax.random.bernoulli(key, 0.5, (len(pictures),))
    x0, y0, x1, y1 = (truth.box[..., i] for i in range(4))
    box = jnp.where(flip[:, None, None], jnp.stack([1 - x1, y0, 1 - x0, y1], -1), truth.box)
    column = jnp.where(flip[:, None], 1 - truth.column, truth.column)
    pictures = jnp.where(flip[:, None, None, None], pictures[:, :, ::-1], pictures)
    return pictures, truth._replace(box=box, column=column)


def peaks(truth: Targets) -> tuple[Array, Array]:
    """(map of centres [B, G*G] with 1 at each toy's own cell, the toy that each cell speaks of [B, G*G])."""
    middle = (truth.box[..., :2] + truth.box[..., 2:]) / 2
    away = GRID * (recogniser.places()[:, None] - middle[:, None])  # [B, G*G, N, 2] cells
    height = jnp.exp(-(away**2).sum(-1) / (2 * SPREAD**2))
    height = jnp.where(jnp.abs(away).max(-1) <= 0.5, 1.0, height) * (truth.kind >= 0)[:, None]
    return height.max(-1), height.argmax(-1)


def loss(params: dict, pictures: Array, truth: Targets) -> Array:
    """Of a batch whose first pictures are those of ``truth`` and whose others are unreadable."""
    good = len(truth.kind)
    cells = bind(Recogniser, CONFIG, params)(pictures)
    readable = optax.sigmoid_binary_cross_entropy(cells.readable, (jnp.arange(len(pictures)) < good) * 1.0).mean()
    said = {name: v.reshape(good, GRID * GRID, -1) for name, v in recogniser.split(cells.maps[:good]).items()}
    peak, owner = peaks(truth)
    own = jax.tree.map(lambda v: jnp.take_along_axis(v, owner.reshape(*owner.shape, *[1] * (v.ndim - 2)), 1), truth)
    weight = jnp.where(peak > 0.3, peak, 0.0)
    mean = lambda values: (weight * values).sum() / weight.sum()
    what = sum(
        mean(optax.softmax_cross_entropy_with_integer_labels(said[name], jnp.maximum(getattr(own, name), 0)))
        for name in ATTRIBUTES
    )
    box, column, depth = recogniser.decode(said, recogniser.places())
    where = (jnp.abs(box - own.box).sum(-1) + jnp.abs(column - own.column)) / REACH + jnp.abs(depth - own.depth) / DEEP
    return focal(said["heat"][..., 0], peak) / (truth.kind >= 0).sum() + what + mean(where) + readable


def focal(logit: Array, peak: Array) -> Array:
    """The sum of eq. (1) over all cells, alpha = 2 and beta = 4."""
    p = jax.nn.sigmoid(logit)
    found, none = jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit)
    return -jnp.where(peak >= 1, (1 - p) ** 2 * found, (1 - peak) ** 4 * p**2 * none).sum()


def optimiser(steps: int) -> optax.GradientTransformation:
    """AdamW; its rate rises over a twentieth of the steps and falls to zero as a cosine."""
    rate = optax.warmup_cosine_decay_schedule(0.0, RATE, steps // 20, steps)
    return optax.chain(optax.clip_by_global_norm(5.0), optax.adamw(rate, b2=0.99, weight_decay=DECAY))


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def step(steps: int, params: dict, state: tuple, key: Array, raw: Array, truth: Targets) -> tuple:
    """One step: parameters, the optimiser's state and the loss. ``raw`` [B + BAD, 64, 64, 3] uint8, and their truth."""
    keys = jax.random.split(key, 4)
    pictures, truth = mirrored(keys[0], raw / 255.0, truth)
    good, bad = pictures[:BATCH], degrade.unreadable(keys[1], pictures[BATCH:], truth.box[BATCH:, 0])
    pictures = jnp.concatenate([degrade.mild(keys[2], good), bad])
    value, grads = jax.value_and_grad(loss)(params, pictures, jax.tree.map(lambda v: v[:BATCH], truth))
    updates, state = optimiser(steps).update(grads, state, params)
    return optax.apply_updates(params, updates), state, value


def train(raw: np.ndarray, truth: Targets, steps: int = STEPS, seed: int = SEED) -> dict[str, Array]:
    """Parameters after ``steps`` steps on renders; the same for the same seed, machine and versions."""
    params = init(Recogniser, CONFIG, seed)
    state = optimiser(steps).init(params)
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    bar, mean = tqdm(range(steps), desc="training"), None
    for i in bar:
        chosen = rng.choice(len(raw), BATCH + BAD, replace=False)
        batch = jax.tree.map(lambda values, chosen=chosen: values[chosen], (raw, truth))
        params, state, value = step(steps, params, state, jax.random.fold_in(key, i), *batch)
        mean = float(value) if mean is None else 0.98 * mean + 0.02 * float(value)
        bar.set_postfix(loss=f"{mean:.3f}")
    return params


def thresholds(params: dict, raw: np.ndarray, truth: Targets) -> np.ndarray:
    """[3] float32: least readability, score and certainty; see `Slots`.

    The score is the one that counts best. The certainty loses ``UNSURE`` of validation pictures; so does readability,
    if that is below a half.
    """
    clean = raw.astype(np.float32) / 255
    slots = recogniser.scan_all({**params, THRESHOLDS: jnp.array([0.0, 0.5, 0.0])}, clean)
    score, certainty, readability = (np.asarray(v) for v in (slots.score, slots.certainty, slots.readability))
    tried = np.linspace(0.2, 0.7, 51)
    right = np.array([((score >= t).sum(1) == (truth.kind >= 0).sum(1)).mean() for t in tried])
    seen = float(np.median(tried[right == right.max()]))
    least = np.where(score >= seen, certainty, 1.0).min(1)
    return np.float32([min(0.5, np.quantile(readability, UNSURE)), seen, np.quantile(least, UNSURE)])


def main() -> None:
    """Renders, trains, chooses thresholds, and writes ``recogniser.safetensors`` and ``training.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    parts = [renders(TRAIN, SEED, "train"), renders(HELD_OUT, SEED, "held_out")]
    raw, truth = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    rendered = time.perf_counter()
    params = train(raw, truth, options.steps)
    trained = time.perf_counter()
    stored = {name: np.asarray(value, np.float16) for name, value in params.items()}
    again = {name: jnp.asarray(value, jnp.float32) for name, value in stored.items()}
    stored[THRESHOLDS] = thresholds(again, *renders(VALIDATION, VALIDATION_SEED, "train"))
    weights_file.write(stored, options.out / "recogniser.safetensors")
    about = {
        "parameters": int(sum(value.size for value in params.values())),
        "steps": options.steps,
        "rendering_minutes": round((rendered - begin) / 60, 2),
        "training_minutes": round((trained - rendered) / 60, 2),
        "thresholds": stored[THRESHOLDS].round(4).tolist(),
    }
    (options.out / "training.json").write_text(json.dumps(about) + "\n")
    print(json.dumps(about))


if __name__ == "__main__":
    main()
