"""The command line, ``ldm generate | inspect | convert | toybox | train | exercises``. Each calls a public function.

Exit status 0 where all went well, 2 with one sentence on standard error for a user's mistake.
"""

import argparse
import sys
import warnings
from pathlib import Path

import jax

import weights_convert
from ldm.bundle import DTYPES
from ldm.cli_generate import generate_options, run_generate, source_of, source_options
from ldm.course import command as course
from ldm.files import check_png, check_vacant, write_whole
from ldm.schedule import check_name
from ldm.startup import cache_compilations
from ldm.toybox.dataset import Dataset, write_folder
from ldm.toybox.sampling import SPLITS
from ldm.toybox.sheets import SHEETS
from ldm.training import command as training
from weights_convert.adapters.control_inspection import is_control_source
from weights_convert.adapters.controlnet_export import LAYOUTS as CONTROL_LAYOUTS
from weights_convert.adapters.controlnet_export import export_control
from weights_convert.adapters.export import EMBEDDING_LAYOUTS, LORA_LAYOUTS, export_embedding, export_lora
from weights_convert.adapters.inspection import is_embedding
from weights_convert.adapters.ip_adapter import is_ip_adapter, load_alone
from weights_convert.adapters.ip_adapter_export import LAYOUTS as IP_ADAPTER_LAYOUTS
from weights_convert.adapters.ip_adapter_export import export_ip_adapter
from weights_convert.inspection import inspect
from weights_convert.load import located
from weights_convert.reading import read_file


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = argparse.ArgumentParser(prog="ldm", description="Latent diffusion from scratch in JAX.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    make = commands.add_parser("generate", help="draw pictures from a text")
    make.add_argument("prompt")
    make.add_argument("--model", default="toybox", metavar="SRC", help="folder, file or hub id (default: the toybox's)")
    source_options(make)
    generate_options(make)
    look = commands.add_parser("inspect", help="say what a checkpoint is")
    look.add_argument("source", metavar="SRC")
    source_options(look)
    convert = commands.add_parser(
        "convert", help="a public checkpoint as this project's own folder; adapters for others"
    )
    convert.add_argument("source", metavar="SRC")
    convert.add_argument("destination", type=Path, metavar="DST")
    source_options(convert)
    layouts = sorted({*LORA_LAYOUTS, *EMBEDDING_LAYOUTS, *CONTROL_LAYOUTS, *IP_ADAPTER_LAYOUTS})
    convert.add_argument("--to", metavar="LAYOUT", help=f"for an adapter: {', '.join(layouts)}")
    convert.add_argument("--model", metavar="SRC", help="for an adapter: the model that it is for")
    toybox = commands.add_parser("toybox", help="draw the small world of toys, with the truth of every picture")
    _toybox_options(toybox)
    training.add(commands)
    course.add(commands)
    for command in (make, convert):
        command.add_argument("--dtype", default="float32", choices=DTYPES)
        command.add_argument("--vae", metavar="SRC", help="another autoencoder, or TAESD for quick previews")
    return top


def _toybox_options(command: argparse.ArgumentParser) -> None:
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--grid", type=Path, metavar="OUT.png", help="a sheet of 8x8 scenes")
    what.add_argument("--truths", type=Path, metavar="OUT.png", help="every truth of three scenes, drawn")
    what.add_argument("--hints", type=Path, metavar="OUT.png", help="one scene and its hints for ControlNets")
    what.add_argument("--turntable", type=Path, metavar="OUT.png", help="one scene from all around")
    what.add_argument("--make", type=int, metavar="N", help="a folder of N pictures with all their truths")
    command.add_argument("--out", type=Path, metavar="DIR", help="the folder of --make: new or empty")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--split", default="train", metavar="NAME", help=", ".join(SPLITS))
    command.add_argument("--toys", type=int, metavar="N", help="of every scene (default: 1 to 3)")
    sizes = ", ".join(f"--{name} {size}" for name, (_, size) in SHEETS.items())
    command.add_argument("--size", type=int, metavar="N", help=f"pixels along each side ({sizes}, --make 64)")


def run_inspect(args: argparse.Namespace) -> None:
    """``ldm inspect``."""
    print(inspect(args.source, **source_of(args)))


def run_convert(args: argparse.Namespace) -> None:
    """``ldm convert``."""
    if args.to is not None or args.model is not None:
        convert_adapter(args)
        return
    check_vacant(args.destination)  # save would say so too, but only after the weights are read
    bundle = weights_convert.load(args.source, args.dtype, vae=args.vae, **source_of(args))
    weights_convert.save(bundle, args.destination)
    print(args.destination)


def convert_adapter(args: argparse.Namespace) -> None:
    """``ldm convert --to LAYOUT --model SRC``: any adapter for other tools. ValueError."""
    if args.to is None or args.model is None:
        raise ValueError("--to LAYOUT and --model SRC go together: how to write an adapter, and the model it is for")
    if args.destination.exists():
        raise ValueError(f"{args.destination}: exists; choose a new name")
    bundle = weights_convert.load(args.model)
    path = located(args.source)
    if path.is_file() and is_ip_adapter(read_file(path)):
        check_name("layout of IP-Adapters", args.to, IP_ADAPTER_LAYOUTS)
        export_ip_adapter(load_alone(path, bundle)[1], args.destination)
    elif args.to in CONTROL_LAYOUTS and is_control_source(path):
        export_control(weights_convert.load_control(path, bundle), args.destination, args.to)
    elif path.is_file() and is_embedding(read_file(path).tensors):
        found = weights_convert.load_embedding(path, bundle)
        export_embedding(found.word, found.vectors, args.destination, args.to)
    else:
        export_lora(weights_convert.load_lora(path, bundle), bundle.configs, args.destination, args.to)
    print(args.destination)


def run_toybox(args: argparse.Namespace) -> None:
    """``ldm toybox``."""
    if (args.make is None) != (args.out is None):
        raise ValueError("--make N and --out DIR go together: N pictures, and the folder for them")
    name = next(name for name in ("make", *SHEETS) if getattr(args, name) is not None)
    draw, size = SHEETS.get(name, (None, Dataset.size))
    data = Dataset(args.seed, args.split, args.toys, size if args.size is None else args.size)
    path = args.out or getattr(args, name)
    if draw is None:
        write_folder(path, args.make, data)
    else:
        check_png(path)
        sheet = draw(data)
        write_whole(path, lambda file: sheet.save(file, format="PNG", optimize=True))
    print(path)


COMMANDS = {
    "generate": run_generate,
    "inspect": run_inspect,
    "convert": run_convert,
    "toybox": run_toybox,
    "train": training.run,
    "exercises": course.run,
}


COMPILING = ("generate", "toybox", "train")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            if args.command in COMPILING:
                cache_compilations()
            COMMANDS[args.command](args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MemoryError:
        print("error: this machine has not the memory for it; try a smaller --size or --count", file=sys.stderr)
        return 2
    except jax.errors.JaxRuntimeError as error:  # no memory left, most often
        print(f"error: the accelerator gave up: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
