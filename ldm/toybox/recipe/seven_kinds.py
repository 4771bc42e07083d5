"""An instrument that knows all seven kinds of toys: what the one toy of a picture is, the handset among them.

The recogniser was never shown a handset. Its trunk sees shapes all the same: a linear reading of its features, fitted
by least squares to renders of single toys in seconds, tells the seven apart. How often it is right on renders that it
was not fitted to, ``python -m ldm.toybox.recipe.seven_kinds`` prints.

B pictures, F features.
"""

import functools
from dataclasses import replace

import jax
import numpy as np

from ldm.toybox import recogniser
from ldm.toybox.sampling import random_scenes
from ldm.toybox.scene import KINDS
from ldm.toybox.world import render, to_uint8

COUNT, SEED, TEST_SEED, RIDGE, AT_ONCE = 3500, 8001, 8002, 1e-2, 50


def renders(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(pictures [B, 64, 64, 3] float32 of one toy each, its kind [B]), the kinds in turn."""
    scenes = random_scenes(range(count), seed, "train", 1)
    kinds = (np.arange(count) % len(KINDS)).astype(np.int32)
    kind = scenes.kind.copy()
    kind[:, 0] = kinds
    scenes = replace(scenes, kind=kind)
    some = lambda start: jax.tree.map(lambda array: array[start : start + AT_ONCE], scenes)
    parts = [to_uint8(render(some(start), 64)) for start in range(0, count, AT_ONCE)]
    return np.concatenate(parts).astype(np.float32) / 255, kinds


def features(pictures: np.ndarray) -> np.ndarray:
    """[B, F + 1]: those of the recogniser's trunk, and 1."""
    found = np.asarray(recogniser.features(pictures), np.float64)
    return np.concatenate([found, np.ones((len(found), 1))], axis=1)


@functools.cache
def weights() -> np.ndarray:
    """[F + 1, 7] by least squares on the kinds as unit vectors."""
    pictures, kinds = renders(COUNT, SEED)
    x, y = features(pictures), np.eye(len(KINDS))[kinds]
    return np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)


def kinds(pictures: np.ndarray) -> np.ndarray:
    """[B]: the kind, an index into ``KINDS``, of the toy in each picture."""
    return (features(pictures) @ weights()).argmax(1)


def main() -> None:
    """Prints accuracies."""
    pictures, truth = renders(1400, TEST_SEED)
    seen = kinds(pictures)
    print(f"right: {100 * np.mean(seen == truth):.1f} %")
    for i, name in enumerate(KINDS):
        own, said = truth == i, seen == i
        print(f"{name:9} found {100 * np.mean(said[own]):5.1f} %, wrongly said {100 * np.mean(said[~own]):4.1f} %")


if __name__ == "__main__":
    main()
