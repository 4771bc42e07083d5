"""A training run that takes seconds: a small network of two layers learns a known function from noisy examples.

As a program, ``python tests/tiny_training.py OUT STEPS [--resume] [--file-size N] [--set KEY=JSON]...``, it is what
tests kill. It prints a line when it begins its first step.
"""

import argparse
import json
import resource
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm import weights_file
from ldm.training.config import TrainConfig, read
from ldm.training.loop import Task, train

WIDTH = 32
CONFIG = {"batch": 16, "checkpoint_every": 5, "log_every": 2, "sample_every": 20, "ema": 0.9}


class Counting:
    """Batches drawn from (seed, n), n counted from 0."""

    def __init__(self, state: dict | None):
        self.n = state["n"] if state else 0

    def __next__(self) -> dict[str, np.ndarray]:
        x = np.random.default_rng((7, self.n)).standard_normal((CONFIG["batch"], WIDTH)).astype(np.float32)
        self.n += 1
        return {"x": x, "y": np.sin(x)}

    def state(self) -> dict:
        return {"n": self.n}

    def close(self) -> None:
        """Holds nothing open."""


def predict(params: dict, x: jax.Array) -> jax.Array:
    """[B, WIDTH] -> [B, WIDTH]."""
    return jnp.tanh(x @ params["net"]["first"]) @ params["net"]["second"]


def loss(params: dict, frozen: Any, batch: dict, keys: jax.Array) -> tuple[jax.Array, dict]:
    """Squares of the error on noisy inputs, so that the random keys matter."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (WIDTH,)))(keys)
    error = predict(params, batch["x"] + frozen["noise"] * noise) - batch["y"]
    return jnp.mean(error**2), {"largest": jnp.max(jnp.abs(error))}


def task(width: int = 256, **changes: Any) -> Task:
    """The task; ``changes`` replace its fields."""
    first, second = np.random.default_rng(3).standard_normal((2, WIDTH, width)).astype(np.float32) / 8
    fields = {
        "name": "tiny",
        "params": {"net": {"first": first, "second": second.T}},
        "frozen": {"noise": jnp.float32(0.1)},
        "loss": loss,
        "batches": Counting,
        "sample": sample,
        "finish": lambda average, out: weights_file.write(average["net"], out / "net.safetensors"),
    }
    return Task(**fields | changes)


def sample(average: dict, frozen: Any) -> np.ndarray:
    """Three pictures 4 wide and 8 high, made of what the network predicts."""
    y = np.asarray(predict(average, jnp.eye(3, WIDTH)))
    return np.repeat(np.clip(128 + 64 * y, 0, 255).astype(np.uint8).reshape(3, 8, 4, 1), 3, -1)


def config(**changes: Any) -> TrainConfig:
    """``CONFIG`` with changes."""
    return read(TrainConfig, CONFIG | changes)


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--file-size", type=int, help="bytes that a file may have: a disk that is too small")
    parser.add_argument("--set", nargs="*", default=[], help="KEY=JSON")
    args = parser.parse_args()
    changes = {key: json.loads(value) for key, value in (each.split("=") for each in args.set)}
    if args.file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (args.file_size, args.file_size))
    print("ready", flush=True)
    try:
        train(task(), config(**changes), args.out, args.steps, args.resume)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
