"""The command ``ldm train``: one task, one configuration, one folder. What it needs is imported when it runs."""

import argparse
from importlib.util import find_spec
from pathlib import Path

TASKS = ("vae", "clip", "unet", "classifier")
EXTRA = ("grain", "matplotlib")  # beyond what the package always needs


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command and its options."""
    command = commands.add_parser("train", help="train one part of a model from a configuration")
    command.add_argument("task", choices=TASKS)
    command.add_argument("--config", type=Path, required=True, metavar="FILE", help=".toml or .json")
    command.add_argument("--steps", type=int, required=True, metavar="N", help="of the whole run")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoints, metrics, curve, samples")
    command.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")


def run(args: argparse.Namespace) -> None:
    """Trains. Raises ValueError or OSError of one sentence; KeyboardInterrupt after Ctrl-C, once all is saved."""
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise ValueError(f"training needs {' and '.join(missing)}: pip install 'ldm[train]'")
    if args.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {args.steps}")
    from ldm.training import config, loop, sharding, tasks

    settings = config.load(args.config)
    sharding.distributed()
    loop.check_out(args.out, loop.record(args.task, args.steps, settings), args.resume)  # before data are made ready
    loop.train(tasks.TASKS[args.task](settings, args.out), settings, args.out, args.steps, args.resume)
    print(args.out)
