"""The command ``ldm train``: one task, one configuration, one folder. What it needs is imported when it runs."""

import argparse
from importlib.util import find_spec
from pathlib import Path

TASKS = ("vae", "clip", "unet", "classifier", "lora", "textual_inversion", "dreambooth", "controlnet", "ip_adapter")
EXTRA = ("grain", "matplotlib")  # beyond what the package always needs


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command and its options."""
    command = commands.add_parser("train", help="train one part of a model from a configuration")
    command.add_argument("task", choices=TASKS)
    command.add_argument("--config", type=Path, required=True, metavar="FILE", help=".toml or .json")
    command.add_argument("--steps", type=int, required=True, metavar="N", help="of the whole run")
    command.add_argument("--until", type=int, metavar="N", help="end after N of them (the learning rate is of --steps)")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoints, metrics, curve, samples")
    command.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")


def run(args: argparse.Namespace) -> None:
    """Trains. Raises ValueError or OSError of one sentence; KeyboardInterrupt after Ctrl-C, once all is saved."""
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise ValueError(f"training needs {' and '.join(missing)}: pip install 'ldm[train]'")
    for name, value in (("steps", args.steps), ("until", args.until)):
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    from ldm.training import config, controlnet, ip_adapter, loop, personal, sharding, tasks

    settings = config.load(args.config)
    sharding.distributed()
    loop.check_out(args.out, loop.record(args.task, args.steps, settings), args.resume)  # before data are made ready
    task = (tasks.TASKS | personal.TASKS | controlnet.TASKS | ip_adapter.TASKS)[args.task](settings, args.out)
    loop.train(task, settings, args.out, args.steps, args.resume, until=args.until)
    print(args.out)
