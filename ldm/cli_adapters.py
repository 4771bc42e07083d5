"""What ``ldm generate`` is given beside a model: LoRAs, words, controls, image prompts: options, and what they mean."""

import argparse
import sys
from pathlib import Path

import numpy as np

import weights_convert
from ldm.adapters.control import RULES, Control
from ldm.adapters.image_prompt import ImagePrompt
from ldm.adapters.lora import with_lora
from ldm.adapters.textual_inversion import with_word
from ldm.bundle import Bundle
from ldm.hints import canny
from ldm.pictures import read_array, read_picture
from ldm.schedule import check_name

TOLD = ("lora", "embedding", "control", "hint", "guess_mode", "ip_adapter", "image_prompt", "image_encoder")
"""The options, as the picture records them."""


def adapter_options(make: argparse.ArgumentParser) -> None:
    """What ``ldm generate`` can be told of adapters."""
    many = {"action": "append", "default": []}
    make.add_argument("--lora", **many, metavar="SRC[@S]", help="with scale S; may be repeated")
    make.add_argument("--embedding", **many, metavar="SRC", help="a word for the prompt; repeatable")
    make.add_argument("--control", **many, metavar="SRC=IN.png[@S]", help="a net and its hint; repeatable")
    make.add_argument("--hint", choices=("canny",), help="the hints are photographs: make this of them first")
    make.add_argument("--guess-mode", metavar="RULE", help=f"controls steer prompts alone: {', '.join(RULES)}")
    make.add_argument("--ip-adapter", **many, metavar="SRC", help="what image prompts are seen through; repeatable")
    make.add_argument(
        "--image-prompt",
        **many,
        metavar="IN.png[@S]",
        help="a picture to resemble, with scale S (FaceID: a vector, IN.npy); repeatable: of one adapter, or one each",
    )
    make.add_argument("--image-encoder", metavar="SRC", help="the adapters' image tower, if it is not beside them")


def check_adapters(args: argparse.Namespace) -> None:
    """Raises ValueError, before any work is done, for options that do not go together."""
    if (args.hint or args.guess_mode) and not args.control:
        raise ValueError("--hint and --guess-mode are of controls: give --control too")
    check_name("guess mode", args.guess_mode or "uniform", RULES)
    adapters, prompts = len(args.ip_adapter), len(args.image_prompt)
    if not adapters and (prompts or args.image_encoder):
        raise ValueError("--image-prompt and --image-encoder are of IP-Adapters: give --ip-adapter too")
    if adapters and not prompts:
        raise ValueError("--ip-adapter has nothing to look at: give --image-prompt too")
    if adapters > 1 and adapters != prompts:
        raise ValueError(
            f"there are {adapters} of --ip-adapter and {prompts} of --image-prompt: give one adapter, or one for each"
        )


def with_adapters(bundle: Bundle, loras: list[str], embeddings: list[str]) -> Bundle:
    """The bundle with the changes of ``--lora SRC[@S]`` in its weights, and the words of ``--embedding``."""
    for given in loras:
        source, scale = scaled(given)
        bundle = with_lora(bundle, weights_convert.load_lora(source, bundle), scale, folded=True)
    for source in embeddings:
        found = weights_convert.load_embedding(source, bundle)
        bundle = with_word(bundle, found.word, found.vectors)
        print(f"{source}: write {found.word} in the prompt", file=sys.stderr)
    return bundle


def control_of(bundle: Bundle, given: str, args: argparse.Namespace) -> Control:
    """The net and the hint of one ``--control SRC=IN.png[@S]``. Raises ValueError."""
    source, mark, rest = given.rpartition("=")
    if not mark:
        raise ValueError(f"--control {given}: write it as SRC=HINT.png, a net and the picture that it is to follow")
    path, scale = scaled(rest)
    hint = read_picture(Path(path))
    hint = canny(hint) if args.hint == "canny" else hint
    net = weights_convert.load_control(source, bundle, args.dtype)
    guessing = args.guess_mode is not None
    return Control(net, hint, scale, rule=args.guess_mode if guessing else "uniform", prompts_only=guessing)


Shown = list[tuple[np.ndarray, float]]  # what is to be resembled, and how much


def shown_of(args: argparse.Namespace) -> Shown:
    """The pictures, or vectors, and scales of ``--image-prompt IN.png[@S]``. Raises ValueError."""
    given = [scaled(text) for text in args.image_prompt]
    read = lambda path: read_array(path) if path.suffix == ".npy" else read_picture(path)
    return [(read(Path(path)), scale) for path, scale in given]


def with_image_prompts(bundle: Bundle, shown: Shown, args: argparse.Namespace) -> tuple[Bundle, list[ImagePrompt]]:
    """The image prompts of a run, and the bundle with the LoRAs of those adapters that have one. Raises ValueError."""
    found = [weights_convert.load_ip_adapter(s, bundle, args.image_encoder, args.dtype) for s in args.ip_adapter]
    for adapter in found:
        if adapter.lora is not None:
            bundle = with_lora(bundle, adapter.lora, folded=True)
    each = found * len(shown) if len(found) == 1 else found
    return bundle, [ImagePrompt(adapter, *one) for adapter, one in zip(each, shown, strict=True)]


def scaled(given: str) -> tuple[str, float]:
    """ "file@0.8" -> ("file", 0.8); 1 where there is no scale. Raises ValueError."""
    source, mark, scale = given.rpartition("@")
    if not mark or Path(given).exists():
        return given, 1.0
    try:
        return source, float(scale)
    except ValueError:
        raise ValueError(f"{given}: {scale!r} is no scale; write it as SRC@0.8") from None
