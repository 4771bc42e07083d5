"""``python -m bench gpu --save h200``: all that is asked of one accelerator, in at most eight minutes of it.

Stable Diffusion 1.5 at 512×512 in bfloat16, this project beside diffusers with ``torch.compile``: U-Net call and whole
picture at batch 1 and 16, training steps (claim 17), and the share of the device's peak that the model's own arithmetic
takes. What matters most comes first: when the time is up, the rest is left out with a sentence.

Nothing but JAX is needed. PyTorch and diffusers are used if they are there; wheels in ``--wheels`` are installed first.
``--size small`` runs all of it with tiny networks, on any machine.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench import report
from bench.machine import machine
from bench.peers import OURS
from bench.questions import Options
from bench.turns import installed, kept, rows

GFLOP_A_PAIR = 1354.0  # the U-Net of SD 1.5 on two rows at 64×64 latents: one guided step of one 512×512 picture
PEAK_TFLOPS = 989.0  # H200, bfloat16, dense, by its datasheet
PEER = "diffusers-compiled"
PLAN = (  # question, batches, rounds
    ("unet", (2, 32), 10),  # two rows are one guided picture
    ("train", (4,), 5),
    ("picture", (1, 16), 3),
    ("start", (1,), 2),
)
NEEDED = ("flax", "optax", "safetensors", "huggingface_hub", "orbax", "tqdm", "PIL")


def install(wheels: Path | None) -> None:
    """Installs what is missing from a folder of wheels, with no network; says what stays missing."""
    if wheels is not None:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
        subprocess.run([*command, *map(str, sorted(wheels.glob("*.whl")))], check=True)
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(f"the bench needs {', '.join(missing)}: give a folder of wheels by --wheels")


def utilisation(row: dict[str, Any]) -> dict[str, float]:
    """The model's arithmetic over the device's peak, for both sides of a row: guided steps a second, flops, share.

    Only the U-Net's flops are counted, as the model has them: what a program computes beside or again earns nothing.
    """
    pictures = row["batch"] / 2 if row["question"] == "unet" else row["batch"]
    steps = 1 if row["question"] == "unet" else row["steps"]
    share = {}
    for side in ("ours", "theirs"):
        if seconds := row.get(side, {}).get("seconds"):
            tflops = pictures * steps * GFLOP_A_PAIR / 1e3 / seconds["median"]
            share |= {f"{side}_tflop_s": round(tflops, 1), f"{side}_utilisation": round(tflops / PEAK_TFLOPS, 3)}
    return share


def measured(options: Options, peers: list[str], until: float) -> Iterator[dict[str, Any] | str]:
    """The rows of the plan; sentences about what is left out."""
    for name, batches, rounds in PLAN:
        for batch in batches:
            if time.monotonic() > until:
                yield f"{name} at batch {batch} is left out: the time is up"
                continue
            numbers = Options(options.cache, options.dtype, options.small, (batch,), rounds, options.steps, ("sd1",))
            for row in rows(name, peers, numbers, {}):
                counted = isinstance(row, dict) and row["question"] in ("unet", "picture") and not options.small
                yield row | utilisation(row) if counted else row


def main(given: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser("python -m bench gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--save", metavar="KIND", help="append to bench/results/KIND.jsonl, such as h200")
    parser.add_argument("--size", default="full", choices=("full", "small"))
    parser.add_argument("--minutes", type=float, default=7.0, help="after which nothing new is begun")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to install first")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/ldm-bench"))
    args = parser.parse_args(given)
    until = time.monotonic() + 60 * args.minutes
    install(args.wheels)
    options = Options(args.cache, "bfloat16", args.size == "small")
    peers = installed([OURS, PEER], {}, args.cache)
    report.keep(machine(peers), args.save)
    kept(measured(options, [PEER] if PEER in peers else [OURS], until), args.save)
