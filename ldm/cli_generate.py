"""``ldm generate``: its options, and what is done with them; those of adapters are in ``ldm.cli_adapters``."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import weights_convert
from ldm.ahead import compile_ahead
from ldm.bundle import Bundle
from ldm.cli_adapters import (
    TOLD,
    adapter_options,
    check_adapters,
    control_of,
    shown_of,
    with_adapters,
    with_image_prompts,
)
from ldm.devices import on_devices
from ldm.files import check_png, check_writable, write_whole
from ldm.generate import decode, generate
from ldm.guidance import Guidance
from ldm.pictures import as_masks, composite, outpaint, read_array, read_picture
from ldm.program import NOISES
from ldm.samplers import SAMPLERS, named
from ldm.schedule import PREDICTIONS, check_name
from ldm.spacing import SPACINGS


def size_of(text: str) -> tuple[int, int]:
    """ "WxH" -> (width, height)."""
    try:
        width, height = text.lower().split("x")
        return int(width), int(height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it as WIDTHxHEIGHT, such as 512x512") from None


def generate_options(make: argparse.ArgumentParser) -> None:
    """What ``ldm generate`` can be told beside the model."""
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
    adapter_options(make)
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


def source_options(command: argparse.ArgumentParser) -> None:
    """What can be said of a checkpoint, whatever is done with it."""
    command.add_argument("--config", metavar="DIR", help="for a single file: a hub folder with its configurations")
    command.add_argument("--prediction", choices=PREDICTIONS, help="for a single file that does not say")
    command.add_argument("--ema", action="store_true", help="for a single file: the averaged U-Net")
    command.add_argument("--variant", help="for a folder: fp16, non_ema, …")


def source_of(args: argparse.Namespace) -> dict:
    """The options of :func:`source_options`, as ``weights_convert`` takes them."""
    return {"config": args.config, "prediction": args.prediction, "ema": args.ema, "variant": args.variant}


def run_generate(args: argparse.Namespace) -> None:
    """``ldm generate``."""
    if args.count < 1:
        raise ValueError(f"--count must be at least 1, got {args.count}")
    check_name("spacing", named(args.sampler, args.spacing)[1], SPACINGS)  # before the weights are read
    paths = [args.out] if args.count == 1 else [args.out.with_stem(f"{args.out.stem}-{i}") for i in range(args.count)]
    check_outputs(paths, args.save_latents)
    begin = picture_options(args)
    check_adapters(args)
    shown = shown_of(args)
    latents = None if args.latents is None else read_array(args.latents)
    bundle = weights_convert.load(
        args.model, args.dtype, vae=args.vae, **source_of(args), meanwhile=lambda found: ready(found, args)
    )
    bundle = with_adapters(bundle, args.lora, args.embedding)
    bundle, prompts = with_image_prompts(bundle, shown, args)
    controls = [control_of(bundle, given, args) for given in args.control]
    bundle = bundle if args.devices == 1 else on_devices(bundle, args.devices)
    names = ("negative", "steps", "sampler", "spacing", "seed", "size", "clip_skip", "eta", "noise", "syntax")
    settings = {name: getattr(args, name) for name in names}
    scale = bundle.guidance if args.guidance is None else args.guidance
    run = settings | begin | {"guidance": Guidance(scale, args.rescale), "latents": latents, "controls": controls}
    run["image_prompts"] = prompts
    pictures = drawn(bundle, [args.prompt] * args.count, args.save_latents, args.tile, run)
    paths_of = {name: getattr(args, name) for name in ("model", "vae", "latents", "image", "mask")}
    others = ("rescale", "strength", "outpaint", "tile", *TOLD)
    told = source_of(args) | {name: getattr(args, name) for name in others}
    record = {"prompt": args.prompt, **{name: str(path) for name, path in paths_of.items() if path is not None}}
    record |= {name: value for name, value in told.items() if value not in (None, False, [])}
    record |= {"dtype": args.dtype, "guidance": scale, **settings}
    for index, (path, picture) in enumerate(zip(paths, pictures, strict=True)):
        write_png(path, picture, record | {"index": index, "size": [picture.shape[1], picture.shape[0]]})
        print(path)


def ready(bundle: Bundle, args: argparse.Namespace) -> None:
    """Compiles what will be run, unless only the picture, the noise or an adapter can say what that is."""
    adapters = args.embedding or args.control or args.ip_adapter
    if adapters or args.image is not None or args.latents is not None or args.devices > 1:
        return
    output = "uint8" if args.save_latents is None and args.tile is None else "latents"
    names = ("negative", "sampler", "noise", "syntax")
    settings = {name: getattr(args, name) for name in names} | {"size": args.size, "output": output}
    compile_ahead(bundle, [args.prompt] * args.count, args.dtype, **settings)


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


def write_png(path: Path, picture: np.ndarray, settings: dict) -> None:
    """Writes [H, W, 3] uint8 as a PNG whose text chunk ``ldm`` holds the settings as JSON."""
    info = PngInfo()
    info.add_itxt("ldm", json.dumps(settings, ensure_ascii=False))
    write_whole(path, lambda file: Image.fromarray(picture).save(file, format="PNG", pnginfo=info))
