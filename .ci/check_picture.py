"""Checks that a picture came out: ``check_picture.py picture.png 64 64 "the prompt"``.

A whole PNG of that width and height, of many colours (an untrained or broken decoder can give a flat one), that records
the prompt it was made from, and shows it: the toybox's recogniser reads it, and agrees with the prompt. Exit status 1,
with a sentence, where it is not so.
"""

import json
import sys

import numpy as np
from PIL import Image

from ldm.toybox import recogniser
from ldm.toybox.parsing import parse

FEWEST_COLOURS = 1000


def check(path: str, size: tuple[int, int], prompt: str) -> str:
    """What the picture is, in words. Raises ValueError or OSError where it is not what it must be."""
    with Image.open(path, formats=["PNG"]) as picture:
        picture.load()
        pixels, found, record = np.asarray(picture), picture.size, picture.text.get("ldm", "{}")
    if found != size or pixels.shape[2:] != (3,):
        raise ValueError(f"it is {found} pixels of shape {pixels.shape}, not {size} in three colours")
    colours = len(np.unique(pixels.reshape(-1, 3), axis=0))
    if colours < FEWEST_COLOURS:
        raise ValueError(f"it has only {colours} different colours; a picture has {FEWEST_COLOURS} and more")
    if json.loads(record).get("prompt") != prompt:
        raise ValueError(f"it says that it was made from {record}, not from {prompt!r}")
    reading = recogniser.read(pixels[None].astype(np.float32) / 255)[0]
    if not recogniser.agrees(parse(prompt), reading):
        raise ValueError(f"it does not show {prompt!r}: it reads as {reading}")
    return f"{found[0]}x{found[1]} pixels, {colours} colours, mean {pixels.mean():.1f}, and it shows {prompt!r}"


def main() -> int:
    """The command line; returns the exit status."""
    path, width, height, prompt = sys.argv[1:]
    try:
        print(f"{path}: {check(path, (int(width), int(height)), prompt)}")
    except (OSError, ValueError) as error:
        print(f"error: {path}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
