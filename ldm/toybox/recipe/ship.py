"""Puts a trained model into the package: ``python -m ldm.toybox.recipe.ship MODEL``.

Parameters become float16, half the bytes. What is no longer needed to draw, read or compare is left out. Writes the
folder that ``ldm.load("toybox")`` reads, in place of the one before. The figures on the model's card are then measured
from there: ``python -m ldm.toybox.recipe.score toybox``.
"""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from ldm import bundle
from ldm.bundle import PACKAGED, Bundle

SHIPPED = ("unet", "vae", "text", "image")
MOST = 24_000_000  # bytes of all parts together


def shipped(model: Bundle) -> Bundle:
    """The parts to ship, as float16. Raises ValueError for one that is missing, not finite in float16, or too large."""
    model.require(*SHIPPED)
    with np.errstate(over="ignore"):  # what does not fit is named below
        params = {p: {n: np.asarray(a, np.float16) for n, a in model.params[p].items()} for p in SHIPPED}
    for part, arrays in params.items():
        odd = [name for name, array in arrays.items() if not np.isfinite(array).all()]
        if odd:
            raise ValueError(f"{part}: {odd[0]} does not fit into float16")
    size = sum(array.nbytes for arrays in params.values() for array in arrays.values())
    if size > MOST:
        raise ValueError(f"the parts take {size:,} bytes, and {MOST:,} is the most that the package holds")
    return replace(model, params=params)


def main() -> None:
    """Writes the packaged model; prints the bytes of each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="the folder of a trained model: OUT/model of the U-Net's run")
    parser.add_argument("--out", type=Path, default=PACKAGED["toybox"], help="where it goes (default: the package)")
    parser.add_argument("--guidance", type=float, default=3.0, help="at which it draws best: what `score` found")
    args = parser.parse_args()
    small = replace(shipped(bundle.load(args.model)), guidance=args.guidance)
    new = args.out.with_name(f".{args.out.name}-new")
    shutil.rmtree(new, ignore_errors=True)
    bundle.save(small, new)
    shutil.rmtree(args.out, ignore_errors=True)
    new.rename(args.out)
    print(json.dumps({part: sum(a.nbytes for a in arrays.values()) for part, arrays in small.params.items()}))


if __name__ == "__main__":
    main()
