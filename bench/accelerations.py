"""What leaving out work costs on the toybox's own model: ``python -m bench.accelerations measure|time``.

    measure [NAMES…] --count 64    score, likeness and arithmetic of each way; rows of JSON beside the page
    time --rounds 5                seconds of a picture, all ways in turn, medians

Each way draws the same prompts from the same noise: ``count`` of one toy and as many of two, 20 DDIM steps, the model's
own guidance, unless its name says otherwise.

    score    pictures with every kind, colour and relation right, by the recogniser, per cent
    PSNR     of all pictures together against those of the first way, dB
    GFLOP    of the U-Net for a picture, counted by the compiler
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ldm
from ldm import Guidance, Shortcuts
from ldm.acceleration import int8
from ldm.acceleration.cached_features import entrance, no_features, recalling
from ldm.bundle import Bundle, module
from ldm.conditioning import Conditioning
from ldm.inputs import guidance_of
from ldm.samplers import make_plan
from ldm.toybox.recipe.score import prompts_of, right

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/acceleration/measured.jsonl"
AT_ONCE = 32


class Way(NamedTuple):
    """A way to draw: its family, and what differs from the first one."""

    family: str
    shortcuts: Shortcuts = Shortcuts()
    steps: int = 20
    sampler: str = "ddim"
    interval: tuple[float, float] | None = None
    scale: float | None = None
    int8: bool = False


def cached(every: int, blocks: int) -> Way:
    """Deep features kept."""
    return Way("cached", Shortcuts(every=every, blocks=blocks))


def within(low: float, high: float, **more: Any) -> Way:
    """Guided for low < sigma <= high alone."""
    return Way("interval", Shortcuts(skip_negative=True, **more), interval=(low, high))


SKIP = Shortcuts(skip_negative=True)
WAYS = {
    "all of it, 20 steps": Way("fewer steps"),
    "10 steps": Way("fewer steps", steps=10),
    "5 steps": Way("fewer steps", steps=5),
    "10 steps, dpmpp_2m": Way("fewer steps", steps=10, sampler="dpmpp_2m"),
    "5 steps, dpmpp_2m": Way("fewer steps", steps=5, sampler="dpmpp_2m"),
    "no guidance": Way("interval", SKIP, scale=1.0),
    "guided 0.28 < σ ≤ 5.42": within(0.28, 5.42),
    "guided σ > 0.5": within(0.5, float("inf")),
    "guided σ > 1": within(1.0, float("inf")),
    "guided σ > 2": within(2.0, float("inf")),
    "guided σ ≤ 5": within(0.0, 5.0),
    "every 2nd whole, 2 blocks": cached(2, 2),
    "every 3rd whole, 2 blocks": cached(3, 2),
    "every 5th whole, 2 blocks": cached(5, 2),
    "every 3rd whole, 1 block": cached(3, 1),
    "every 3rd whole, 3 blocks": cached(3, 3),
    "every 3rd whole, 4 blocks": cached(3, 4),
    "a quarter of tokens merged": Way("merged", Shortcuts(merge=0.25)),
    "half of tokens merged": Way("merged", Shortcuts(merge=0.5)),
    "three quarters merged": Way("merged", Shortcuts(merge=0.75)),
    "weights in int8": Way("int8", int8=True),
    "guided σ > 1, every 2nd whole": Way("together", Shortcuts(True, 2, 2), interval=(1.0, float("inf"))),
    "guided σ > 1, 10 steps, dpmpp_2m": Way("together", SKIP, 10, "dpmpp_2m", (1.0, float("inf"))),
}
FIRST = next(iter(WAYS))


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


def model_of(way: Way) -> Bundle:
    """The toybox's model, float32, its U-Net in int8 where the way says so."""
    model = ldm.load("toybox")
    return replace(model, params={**model.params, "unet": int8.quantised(model.params["unet"])}) if way.int8 else model


def guidance(model: Bundle, way: Way) -> Guidance:
    """The numbers of guidance."""
    numbers = Guidance(model.guidance if way.scale is None else way.scale)
    return numbers if way.interval is None else numbers._replace(low=way.interval[0], high=way.interval[1])


def pictures(model: Bundle, way: Way, prompts: Sequence[str]) -> np.ndarray:
    """[P, H, W, 3] uint8, P a multiple of AT_ONCE or less than it."""
    settings = {"steps": way.steps, "sampler": way.sampler, "spacing": "trailing", "shortcuts": way.shortcuts}
    draw = lambda first: ldm.generate(
        model, prompts[first : first + AT_ONCE], guidance=guidance(model, way), index=first, progress=False, **settings
    )
    return np.concatenate([draw(first) for first in range(0, len(prompts), AT_ONCE)])


def asked(count: int) -> list[str]:
    """``count`` prompts of one toy, then as many of two."""
    return [*prompts_of(count, 1, False, 0), *prompts_of(count, 2, False, 0)]


# ---------------------------------------------------------------------------------------------------------------------
# Counting


def flops(model: Bundle, way: Way, rows: int, whole: bool) -> float:
    """Of one call of the U-Net for one picture, by the compiler's count: ``rows`` 1 or 2 conditions, whole or not."""
    unet, side = model.configs.unet, model.size[0] // model.configs.vae.factor
    hooks = way.shortcuts.hooks(unet, (side, side))
    kept = None if whole else no_features(unet, way.shortcuts.blocks, rows, (side, side), jnp.float32)

    def call(params: Any, x: Any, context: Any, kept: Any) -> Any:
        own = hooks if whole else recalling(entrance(unet, way.shortcuts.blocks), kept, hooks)
        return module(model.configs, params, "unet")(x, jnp.float32(500), Conditioning(context), hooks=own)

    x, context = jnp.zeros((rows, side, side, 4)), jnp.zeros((rows, model.configs.text.length, unet.context_dim))
    compiled = jax.jit(call).lower({"unet": model.params["unet"]}, x, context, kept).compile()
    return compiled.cost_analysis()["flops"]


def picture_flops(model: Bundle, way: Way) -> float:
    """Of the U-Net for one picture: the sum over the steps of what each computes."""
    levels = make_plan(model.configs.schedule, way.sampler, "trailing", way.steps).levels[: way.steps]
    g, total, known = guidance_of(model, guidance(model, way)), 0.0, {}
    for k, sigma in enumerate(levels):
        guided = g.low < sigma <= g.high and g.scale != 1
        kind = (2 if guided or not way.shortcuts.skip_negative else 1, k % way.shortcuts.every == 0)
        if kind not in known:
            known[kind] = flops(model, way, *kind)
        total += known[kind]
    return total


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """dB, of uint8 pictures."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def compared(prompts: Sequence[str], kept: Path | None) -> np.ndarray:
    """The first way's pictures: from the file ``kept`` if it is there, else drawn, and left there if it has a name."""
    if kept is not None and kept.exists():
        return np.load(kept)
    first = pictures(model_of(WAYS[FIRST]), WAYS[FIRST], prompts)
    if kept is not None:
        np.save(kept, first)
    return first


def measure(names: Sequence[str], count: int, kept: Path | None) -> None:
    """Appends a row for each way."""
    prompts = asked(count)
    first = compared(prompts, kept)
    for name in names:
        model, way = model_of(WAYS[name]), WAYS[name]
        seen = first if name == FIRST else pictures(model, way, prompts)
        read = lambda part, seen=seen: right(prompts[part], seen[part].astype(np.float32) / 255)["all right"]
        row = {"way": name, "count": count, "one toy": read(slice(count)), "two toys": read(slice(count, None))}
        row |= {"psnr": round(min(psnr(seen, first), 99.0), 2), "gflop": round(picture_flops(model, way) / 1e9, 2)}
        if way.int8:
            sizes = (int8.size(model_of(WAYS[FIRST]).params["unet"]), int8.size(model.params["unet"]))
            row |= dict(zip(("bytes before", "bytes"), sizes, strict=True))
        keep(row)
        jax.clear_caches()


def keep(row: dict[str, Any]) -> None:
    """Prints a row, and appends it to the results."""
    print(json.dumps(row, ensure_ascii=False), flush=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def timed(names: Sequence[str], rounds: int, batch: int) -> None:
    """Seconds a picture of each way, one after another, round by round; medians, and ratios to the first way."""
    prompts = asked(batch)[:batch]
    runs: dict[str, Callable] = {}
    for name in names:
        model = model_of(WAYS[name])
        runs[name] = lambda model=model, way=WAYS[name]: pictures(model, way, prompts)
        runs[name]()
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            taken[name].append((time.perf_counter() - start) / batch)
    ratios = {name: float(np.median(np.array(t) / np.array(taken[names[0]]))) for name, t in taken.items()}
    for name, seconds in taken.items():
        keep({"way": name, "seconds": round(float(np.median(seconds)), 4), "ratio": round(ratios[name], 3)})


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("measure", "time"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="ways; all if none is named")
    parser.add_argument("--count", type=int, default=64, help="prompts of each kind")
    parser.add_argument("--kept", type=Path, metavar="FILE.npy", help="where the first way's pictures are kept, or are")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    names = args.names or list(WAYS)
    if args.what == "measure":
        measure(names, args.count, args.kept)
    else:
        timed(names, args.rounds, args.batch)


if __name__ == "__main__":
    main()
