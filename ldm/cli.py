"""The command line, ``ldm generate | inspect | convert | toybox | train | exercises``. Each calls a public function.

Exit status 0 where all went well, 2 with one sentence on standard error for a user's mistake.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import weights_convert
from ldm.bundle import DTYPES, Bundle
from ldm.course import command as course
from ldm.devices import on_devices
from ldm.files import check_png, check_vacant, check_writable, write_whole
from ldm.generate import decode, generate
from ldm.guidance import Guidance
from ldm.pictures import as_masks, composite, outpaint, read_picture
from ldm.program import NOISES
from ldm.samplers import SAMPLERS, named
from ldm.schedule import PREDICTIONS, check_name
from ldm.spacing import SPACINGS
from ldm.startup import cache_compilations
from ldm.toybox.dataset import Dataset, write_folder
from ldm.toybox.sampling import SPLITS
from ldm.toybox.sheets import SHEETS
from ldm.training import command as training
from weights_convert.inspection import inspect


def size_of(text: str) -> tuple[int, int]:
    """ "WxH" -> (width, height)."""
    try:
        width, height = text.lower().split("x")
        return int(width), int(height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it as WIDTHxHEIGHT, such as 512x512") from None


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = argparse.ArgumentParser(prog="ldm", description="Latent diffusion from scratch in JAX.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    make = commands.add_parser("generate", help="draw pictures from a text")
    make.add_argument("prompt")
    make.add_argument("--model", default="toybox", metavar="SRC", help="folder, file or hub id (default: the toybox's)")
    _source_options(make)
    _generate_options(make)
    look = commands.add_parser("inspect", help="say what a checkpoint is")
    look.add_argument("source", metavar="SRC")
    _source_options(look)
    convert = commands.add_parser("convert", help="read a public checkpoint, write this project's own folder")
    convert.add_argument("source", metavar="SRC")
    convert.add_argument("destination", type=Path, metavar="DST")
    _source_options(convert)
    toybox = commands.add_parser("toybox", help="draw the small world of toys, with the truth of every picture")
    _toybox_options(toybox)
    training.add(commands)
    course.add(commands)
    for command in (make, convert):
        command.add_argument("--dtype", default="float32", choices=DTYPES)
        command.add_argument("--vae", metavar="SRC", help="another autoencoder, or TAESD for quick previews")
    return top


def _generate_options(make: argparse.ArgumentParser) -> None:
    make.add_argument("--negative", default="", metavar="TEXT", help="what to steer away from")
    make.add_argument("--steps", type=int, default=20, metavar="N")
    make.add_argument("--guidance", type=float, metavar="S", help="the papers' w + 1; 1: off (default: the model's)")
    make.add_argument("--rescale", type=float, default=0.0, metavar="X", help="0..1: give back what guidance overdoes")
    make.add_argument("--sampler", default="ddim", metavar="NAME", help=", ".join(SAMPLERS))
    make.add_argument("--spacing", default="leading", metavar="NAME", help=", ".join(SPACINGS))
    make.add_argument("--eta", type=float, help="share of fresh noise, for samplers that have it")
    make.add_argument("--noise", default="steps", metavar="NAME", help=", ".join(NOISES))
    make.add_argument("--image", type=Path, metavar="IN.png", help="a picture to start from")
    make.add_argument("--strength", type=float, metavar="X", help="0..1: the share of the steps that is made on it")
    make.add_argument("--mask", type=Path, metavar="IN.png", help="white: to be painted; the rest of the picture stays")
    make.add_argument("--outpaint", type=int, nargs=4, metavar=("L", "T", "R", "B"), help="pixels to paint around it")
    make.add_argument("--syntax", action="store_true", help="read (word:1.3), BREAK, [a:b:0.5] in prompts")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--count", type=int, default=1, metavar="N", help="pictures; picture i has seed and index i")
    make.add_argument("--size", type=size_of, metavar="WxH", help="pixels, multiples of 8 (default: the model's own)")
    make.add_argument("--clip-skip", type=int, default=0, metavar="K", help="text layers left out (0 none)")
    make.add_argument("--latents", type=Path, metavar="IN.npy", help="starting noise [N,H/8,W/8,4]")
    make.add_argument("--save-latents", type=Path, metavar="OUT.npy", help="the latents before decoding")
    make.add_argument("--tile", type=int, metavar="N", help="decode in tiles of N latent pixels: less memory")
    make.add_argument("--devices", type=int, default=1, metavar="N", help="share the pictures of --count out over N")
    make.add_argument("--out", type=Path, default=Path("out.png"), help="a PNG; several pictures get -0, -1, …")


def _source_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", metavar="DIR", help="for a single file: a hub folder with its configurations")
    command.add_argument("--prediction", choices=PREDICTIONS, help="for a single file that does not say")
    command.add_argument("--ema", action="store_true", help="for a single file: the averaged U-Net")
    command.add_argument("--variant", help="for a folder: fp16, non_ema, …")


def _toybox_options(command: argparse.ArgumentParser) -> None:
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--grid", type=Path, metavar="OUT.png", help="a sheet of 8x8 scenes")
    what.add_argument("--truths", type=Path, metavar="OUT.png", help="every truth of three scenes, drawn")
    what.add_argument("--turntable", type=Path, metavar="OUT.png", help="one scene from all around")
    what.add_argument("--make", type=int, metavar="N", help="a folder of N pictures with all their truths")
    command.add_argument("--out", type=Path, metavar="DIR", help="the folder of --make: new or empty")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--split", default="train", metavar="NAME", help=", ".join(SPLITS))
    command.add_argument("--toys", type=int, metavar="N", help="of every scene (default: 1 to 3)")
    sizes = ", ".join(f"--{name} {size}" for name, (_, size) in SHEETS.items())
    command.add_argument("--size", type=int, metavar="N", help=f"pixels along each side ({sizes}, --make 64)")


def _options(args: argparse.Namespace) -> dict:
    return {"config": args.config, "prediction": args.prediction, "ema": args.ema, "variant": args.variant}


def run_generate(args: argparse.Namespace) -> None:
    """``ldm generate``."""
    if args.count < 1:
        raise ValueError(f"--count must be at least 1, got {args.count}")
    check_name("spacing", named(args.sampler, args.spacing)[1], SPACINGS)  # before the weights are read
    paths = [args.out] if args.count == 1 else [args.out.with_stem(f"{args.out.stem}-{i}") for i in range(args.count)]
    check_outputs(paths, args.save_latents)
    begin = picture_options(args)
    latents = None if args.latents is None else read_array(args.latents)
    bundle = weights_convert.load(args.model, args.dtype, vae=args.vae, **_options(args))
    bundle = bundle if args.devices == 1 else on_devices(bundle, args.devices)
    names = ("negative", "steps", "sampler", "spacing", "seed", "size", "clip_skip", "eta", "noise", "syntax")
    settings = {name: getattr(args, name) for name in names}
    scale = bundle.guidance if args.guidance is None else args.guidance
    run = settings | begin | {"guidance": Guidance(scale, args.rescale), "latents": latents}
    pictures = drawn(bundle, [args.prompt] * args.count, args.save_latents, args.tile, run)
    paths_of = {name: getattr(args, name) for name in ("model", "vae", "latents", "image", "mask")}
    told = _options(args) | {name: getattr(args, name) for name in ("rescale", "strength", "outpaint", "tile")}
    record = {"prompt": args.prompt, **{name: str(path) for name, path in paths_of.items() if path is not None}}
    record |= {name: value for name, value in told.items() if value is not None and value is not False}
    record |= {"dtype": args.dtype, "guidance": scale, **settings}
    for index, (path, picture) in enumerate(zip(paths, pictures, strict=True)):
        write_png(path, picture, record | {"index": index, "size": [picture.shape[1], picture.shape[0]]})
        print(path)


def drawn(bundle: Bundle, prompts: list[str], keep: Path | None, tile: int | None, run: dict[str, Any]) -> np.ndarray:
    """The pictures; by way of latents where those are to be kept or decoded in tiles."""
    if keep is None and tile is None:
        return generate(bundle, prompts, release=True, **run)
    final = generate(bundle, prompts, output="latents", release=True, **run)
    if keep is not None:
        write_whole(keep, lambda file: np.save(file, final))
    pictures = decode(bundle, final, tile)
    mask = run.get("mask")
    return pictures if mask is None else composite(pictures, run["image"], np.repeat(mask[None], len(pictures), 0))


def picture_options(args: argparse.Namespace) -> dict[str, Any]:
    """``image``, ``mask`` (as bool), ``strength`` and ``size`` of ``generate``. Raises ValueError."""
    if args.image is None:
        odd = [name for name in ("mask", "strength", "outpaint") if getattr(args, name) is not None]
        if odd:
            raise ValueError(f"--{odd[0]} is of a picture: give --image too")
        return {}
    image, mask = read_picture(args.image, args.size), None
    if args.mask is not None:
        mask = as_masks(read_picture(args.mask, args.size, "L"), 1, (image.shape[1], image.shape[0]))[0]
    if args.outpaint is not None:
        if mask is not None:
            raise ValueError("--mask and --outpaint: give one of them")
        image, mask = outpaint(image, args.outpaint)
    return {"image": image, "mask": mask, "strength": args.strength, "size": None}


def check_outputs(pictures: list[Path], latents: Path | None) -> None:
    """Raises ValueError, before any work is done, if one of the files to write cannot be."""
    for path in pictures:
        check_png(path)
    if latents:
        check_writable(latents)
    if latents in pictures:
        raise ValueError(f"{latents}: is to hold both the picture and the latents; give two names")


def read_array(path: Path) -> np.ndarray:
    """An array of numbers from a ``.npy`` file; never pickled objects. Raises ValueError."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: no readable .npy file of numbers ({error})") from None


def write_png(path: Path, picture: np.ndarray, settings: dict) -> None:
    """Writes [H, W, 3] uint8 as a PNG whose text chunk ``ldm`` holds the settings as JSON."""
    info = PngInfo()
    info.add_itxt("ldm", json.dumps(settings, ensure_ascii=False))
    write_whole(path, lambda file: Image.fromarray(picture).save(file, format="PNG", pnginfo=info))


def run_inspect(args: argparse.Namespace) -> None:
    """``ldm inspect``."""
    print(inspect(args.source, **_options(args)))


def run_convert(args: argparse.Namespace) -> None:
    """``ldm convert``."""
    check_vacant(args.destination)  # save would say so too, but only after the weights are read
    bundle = weights_convert.load(args.source, args.dtype, vae=args.vae, **_options(args))
    weights_convert.save(bundle, args.destination)
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
