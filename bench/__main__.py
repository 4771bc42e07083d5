"""``python -m bench QUESTION… [--peers a,b] [--save KIND]``: this project beside its peers, one after another.

    python -m bench unet --peers diffusers --rounds 3
    python -m bench all --save cpu-2-cores          every question, every peer that is installed
    python -m bench report                          tables and plots of what was saved, into bench/README.md
    python -m bench gpu --save h200                 what is asked of an accelerator, in one go
    python -m bench profile                         where the time of a U-Net call goes

Prints a row of JSON for each result; sentences about what is left out go to the error stream.
"""

import argparse
import sys
from pathlib import Path

import jax

from bench import gpu, profiling, report
from bench.machine import machine
from bench.peers import OURS, PEERS
from bench.questions import QUESTIONS, Options
from bench.turns import installed, kept, rows

OTHERS = {"report": report.main, "gpu": gpu.main, "profile": profiling.main}


def whole_numbers(text: str) -> tuple[int, ...]:
    """ "1,16" -> (1, 16)."""
    return tuple(int(number) for number in text.split(","))


def arguments(given: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "questions", nargs="+", choices=[*QUESTIONS, "all"], metavar="QUESTION", help=", ".join(QUESTIONS)
    )
    parser.add_argument(
        "--peers", default=",".join(PEERS), help="by commas; ldm alone: beside itself, which shows the noise"
    )
    parser.add_argument("--rounds", type=int, help="times that each is run, in turn")
    parser.add_argument("--steps", type=int, help="of the sampler")
    parser.add_argument("--batch", type=whole_numbers, metavar="N,…", help="pictures, texts, rows of the U-Net")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--size", default="full", choices=("full", "small"), help="small: tiny networks, to try it all")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "ldm-bench", help="models, 15 GB")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PATH", help="a peer's own interpreter")
    parser.add_argument("--save", metavar="KIND", help="append to bench/results/KIND.jsonl, such as cpu-2-cores")
    return parser.parse_args(given)


def run(args: argparse.Namespace) -> None:
    """Asks every question of every peer. Raises ValueError for a peer that is unknown."""
    names = args.peers.split(",")
    if unknown := [name for name in names if name not in PEERS]:
        raise ValueError(f"there is no peer {unknown[0]!r}; there are {', '.join(PEERS)}")
    pythons = dict(pair.split("=", 1) for pair in args.python)
    options = Options(args.cache, args.dtype, args.size == "small", args.batch, args.rounds, args.steps)
    peers = installed([OURS, *(name for name in names if name != OURS)], pythons, options.cache)
    report.keep(machine(peers), args.save)
    others = [name for name in names if name in peers and name != OURS] or [OURS]  # beside itself: what noise does
    for question in QUESTIONS if "all" in args.questions else args.questions:
        kept(rows(question, others, options, pythons), args.save)


def main() -> None:
    """The command."""
    jax.config.update("jax_platforms", "cpu")  # of this process, which only writes models: the device is the workers'
    given = sys.argv[1:]
    if given and given[0] in OTHERS:
        OTHERS[given[0]](given[1:])
        return
    try:
        run(arguments(given))
    except ValueError as error:
        raise SystemExit(f"bench: {error}") from None


if __name__ == "__main__":
    main()
