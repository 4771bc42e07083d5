"""What guidance, a negative prompt and strength do, measured on the toybox's own model by its recogniser.

    python bench/toybox_sampling.py guidance OUT.png    accuracy against diversity, by scale
    python bench/toybox_sampling.py negative OUT.png    how often a colour comes that the negative prompt names
    python bench/toybox_sampling.py strength OUT.png    img2img: strength times scale

Three seeds each; figures are means, and after ± half the range over the seeds.

    accuracy      share of pictures with every kind, colour and relation right
    diversity     entropy of what the prompt leaves open and the recogniser reads: size, material, left or right, front
                  or back; in bits, of 4 that are possible
    spread        mean distance of a picture's features (the recogniser's) from the mean of its prompt's pictures, as a
                  share of the same in renders of scenes that the prompts are true of
    closeness     PSNR to the picture that img2img started from, dB
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np

import ldm
from ldm.bundle import Bundle
from ldm.files import check_png, write_whole
from ldm.toybox import recogniser, world
from ldm.toybox.parsing import parse
from ldm.toybox.scene import COLOURS, Toy, scene, stack

SEEDS = (0, 1, 2)
STEPS, SPACING = 20, "trailing"
PROMPTS = ("a red cube", "a blue sphere", "a yellow cone", "a green cylinder", "a purple torus", "a cyan sphere")
EACH = 8  # pictures of a prompt
SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 12.0)
NEGATIVES = ("red", "blue", "yellow")
SUBJECTS = ("a cube", "a sphere", "a cone", "a torus")
STRENGTHS, MAP_SCALES = (0.2, 0.4, 0.6, 0.8, 1.0), (1.0, 3.0, 7.5, 15.0)
TURNS = (("red", "blue"), ("yellow", "purple"), ("green", "orange"), ("blue", "red"))  # from, to


def pictures(model: Bundle, prompts: list[str], **options) -> np.ndarray:
    """[N, H, W, 3] in 0..1."""
    drawn = ldm.generate(model, prompts, steps=STEPS, spacing=SPACING, progress=False, **options)
    return drawn.astype(np.float32) / 255


def accuracy(prompts: list[str], seen: np.ndarray) -> float:
    """Per cent."""
    readings = recogniser.read(seen)
    right = [recogniser.agrees(parse(text), reading) for text, reading in zip(prompts, readings, strict=True)]
    return 100 * float(np.mean(right))


def spread(seen: np.ndarray) -> float:
    """Mean distance of features from the mean of their prompt; pictures in runs of EACH."""
    features = np.asarray(recogniser.features(seen)).reshape(len(PROMPTS), EACH, -1)
    return float(np.linalg.norm(features - features.mean(1, keepdims=True), axis=-1).mean())


def said(value: list[float], digits: int = 1) -> str:
    """Mean ± half the range."""
    return f"{np.mean(value):6.{digits}f} ± {np.ptp(value) / 2:4.{digits}f}"


def renders(seed: int) -> np.ndarray:
    """Real pictures for which PROMPTS are true, EACH of each, elsewhere and of any size and material."""
    rng, scenes = np.random.default_rng(seed), []
    for text in PROMPTS:
        _, colour, kind = text.split()
        for _ in range(EACH):
            place, size = rng.uniform(-1.5, 1.5, 2), ("small", "large")[rng.integers(2)]
            toy = Toy(kind, colour, x=place[0], z=place[1], size=size, material=("matte", "shiny")[rng.integers(2)])
            scenes.append(scene([toy]))
    return np.asarray(world.render(stack(scenes), 64))


def entropy(seen: np.ndarray, depth: float) -> float:
    """Bits of size, material, left or right, before or behind ``depth``, of each picture's first toy, summed: 0..4."""
    toys = [reading.toys[0] for reading in recogniser.read(seen) if reading.toys]
    left_open = [[toy.size > 0, toy.material > 0, toy.column > 0.5, toy.depth > depth] for toy in toys]
    rates = np.mean(left_open, axis=0).clip(1e-9, 1 - 1e-9)
    return float(-(rates * np.log2(rates) + (1 - rates) * np.log2(1 - rates)).sum())


def guidance(model: Bundle, axes: Callable) -> None:
    """Accuracy and diversity by scale."""
    prompts = [text for text in PROMPTS for _ in range(EACH)]
    drawn = [renders(seed) for seed in SEEDS]
    depth = np.median([reading.toys[0].depth for one in drawn for reading in recogniser.read(one) if reading.toys])
    real, limit = np.mean([spread(one) for one in drawn]), np.mean([entropy(one, depth) for one in drawn])
    right, wide, bits = [], [], []
    print("scale        accuracy %     diversity, bits      spread %")
    for scale in SCALES:
        seen = [pictures(model, prompts, guidance=scale, seed=seed) for seed in SEEDS]
        right.append([accuracy(prompts, one) for one in seen])
        bits.append([entropy(one, depth) for one in seen])
        wide.append([100 * spread(one) / real for one in seen])
        print(f"{scale:5.1f}    {said(right[-1])}   {said(bits[-1], 2)}   {said(wide[-1])}", flush=True)
    print(f"renders                    {limit:6.2f}           100.0")
    shown = ((right, "accuracy, %", 100.0), (bits, "diversity, bits", limit), (wide, "spread of features, %", 100.0))
    for a, (values, label, top) in zip(axes(3), shown, strict=True):
        a.axhline(top, color="0.8", lw=3)
        a.errorbar(
            range(len(SCALES)), np.mean(values, 1), np.ptp(values, 1) / 2, marker="o", color="#2b6cb0", capsize=3
        )
        a.set_xticks(range(len(SCALES)), [f"{scale:g}" for scale in SCALES])
        a.set(xlabel="guidance scale", ylabel=label, title=f"{label.split(',')[0]}; grey: renders", ylim=(0, None))


def negative(model: Bundle, axes: Callable) -> None:
    """How often each colour comes, and how often when the negative prompt names it."""
    prompts = [text for text in SUBJECTS for _ in range(12)]
    names = list(COLOURS)
    rates: dict[str, list] = {"without": [], "with": []}
    print("colour       without          named in the negative prompt, %")
    for colour in NEGATIVES:
        for name, text in (("without", ""), ("with", colour)):
            shares = []
            for seed in SEEDS:
                readings = recogniser.read(pictures(model, prompts, negative=text, seed=seed))
                found = [names[toy.colour] for reading in readings for toy in reading.toys[:1]]
                shares.append(100 * float(np.mean([each == colour for each in found])))
            rates[name].append(shares)
        print(f"{colour:8s}  {said(rates['without'][-1])}   {said(rates['with'][-1])}", flush=True)
    (a,) = axes(1)
    at = np.arange(len(NEGATIVES))
    for shift, (name, colour) in zip((-0.18, 0.18), {"without": "#a0aec0", "with": "#c53030"}.items(), strict=True):
        values = np.array(rates[name])
        label = f"{name} the colour as negative prompt"
        a.bar(at + shift, values.mean(1), 0.34, yerr=np.ptp(values, 1) / 2, color=colour, capsize=3, label=label)
    a.set_xticks(at, NEGATIVES)
    a.legend(frameon=False)
    a.set(ylabel="pictures of that colour, %", title="A negative prompt: “a cube”, “a sphere”, …")


def strength(model: Bundle, axes: Callable) -> None:
    """From a picture of one colour, asked for another: does the new one come, and what is left of the old picture."""
    kinds = ("cube", "sphere", "cone", "cylinder")
    begin = stack([scene([Toy(kind, old, x=0.4)]) for old, _ in TURNS for kind in kinds])
    images = np.round(np.asarray(world.render(begin, 64)) * 255).astype(np.uint8)
    prompts = [f"a {new} {kind}" for _, new in TURNS for kind in kinds]
    right, near = np.zeros((2, len(STRENGTHS), len(MAP_SCALES)))
    print("strength  scale      accuracy %      PSNR to the start, dB")
    for i, share in enumerate(STRENGTHS):
        for j, scale in enumerate(MAP_SCALES):
            options = {"image": images, "strength": share, "guidance": scale}
            seen = [pictures(model, prompts, seed=seed, **options) for seed in SEEDS]
            found = [accuracy(prompts, one) for one in seen]
            psnr = [-10 * np.log10(np.mean((one - images / 255) ** 2)) for one in seen]
            right[i, j], near[i, j] = np.mean(found), np.mean(psnr)
            print(f"{share:8.1f}  {scale:5.1f}    {said(found)}   {said(psnr)}", flush=True)
    for a, values, title in zip(axes(2), (right, near), ("what was asked, %", "PSNR to the start, dB"), strict=True):
        a.imshow(values, cmap="viridis", aspect="auto", origin="lower")
        middle = (values.max() + values.min()) / 2
        for (i, j), value in np.ndenumerate(values):
            a.text(j, i, f"{value:.0f}", ha="center", va="center", color="black" if value > middle else "white")
        a.set_xticks(range(len(MAP_SCALES)), [f"{s:g}" for s in MAP_SCALES])
        a.set_yticks(range(len(STRENGTHS)), STRENGTHS)
        a.set(xlabel="guidance scale", ylabel="strength", title=title)


MEASURES = {"guidance": guidance, "negative": negative, "strength": strength}


def main() -> None:
    """Measures, prints and draws one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=MEASURES)
    parser.add_argument("out", type=Path, metavar="OUT.png")
    args = parser.parse_args()
    check_png(args.out)
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figures = []

    def axes(count: int) -> list:
        figure, made = plt.subplots(1, count, figsize=(5.6 * count, 4.4), layout="constrained", squeeze=False)
        figures.append(figure)
        return list(made[0])

    MEASURES[args.what](ldm.load("toybox"), axes)
    write_whole(args.out, lambda file: figures[0].savefig(file, format="png", dpi=110))


if __name__ == "__main__":
    main()
