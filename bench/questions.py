"""The questions: what each worker is asked to do, and at which sizes.

A question is of one of three kinds. ``call``: both programs are made ready, and then run in turn, A B A B. ``process``:
what a fresh process does is the answer, and processes are started in turn. ``own``: figures of this project's compiled
program, which no peer has.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import models

PROMPT = "a red cube to the left of a blue sphere, on a wooden table, in soft light"
GUIDANCE = 7.5


@dataclass(frozen=True)
class Question:
    """A question and its usual numbers: pictures ``batch``, rounds in turn, steps of the sampler."""

    what: str  # a sentence for the tables
    kind: str  # call, process, own
    families: tuple[str, ...] = ("sd1",)
    batch: int = 1
    rounds: int = 5
    steps: int = 0
    sizes: tuple[int, ...] = ()  # sides of the picture; none: the family's own


QUESTIONS = {
    "text": Question("text tower, 2 × 77 tokens", "call", batch=2, rounds=9),
    "unet": Question("U-Net, one call at 64×64 latents", "call", ("sd1", "sd2"), batch=2, sizes=(512,)),
    "decode": Question("latent to 512×512 picture", "call"),
    "encode": Question("512×512 picture to latent", "call"),
    "picture": Question("text to 512×512 picture, 20 steps, guidance", "call", rounds=3, steps=20),
    "load": Question("a float32 folder into memory", "process", rounds=3),
    "start": Question("a process, from its start to its first picture", "process", rounds=3, steps=2),
    "memory": Question("peak memory against size", "process", rounds=1, steps=1, sizes=(256, 512, 768, 1024)),
    "train": Question("a training step, from the compiled program", "own", rounds=1),
}
SMALL_SIDES = {256: 32, 512: 64, 768: 96, 1024: 128}  # ``--size small``
TRAININGS = ("full", "controlnet")  # bench.training


@dataclass(frozen=True)
class Options:
    """The command line's: what is changed of every question; None leaves the question's own number."""

    cache: Path
    dtype: str = "float32"
    small: bool = False
    batch: tuple[int, ...] | None = None
    rounds: int | None = None
    steps: int | None = None
    families: tuple[str, ...] | None = None


def asks(name: str, options: Options) -> Iterator[dict[str, Any]]:
    """What the workers are asked: one dictionary for each family, size, batch or way of training of a question."""
    question = QUESTIONS[name]
    for family in ("small",) if options.small else options.families or question.families:
        sides = [SMALL_SIDES[s] if options.small else s for s in question.sizes] or models.FAMILIES[family].size[:1]
        for side in sides:
            for batch in options.batch or (question.batch,):
                one = {"question": name, "family": family, "batch": batch, "size": [side, side]}
                one |= {"dtype": options.dtype, "prompt": PROMPT, "guidance": GUIDANCE, "cache": str(options.cache)}
                one |= {"steps": question.steps if options.steps is None else options.steps}
                yield from ({**one, "how": how} for how in TRAININGS) if name == "train" else (one,)


def with_files(ask: dict[str, Any], single: bool = False) -> dict[str, Any]:
    """The same question with the model's folder, or the ``single`` file of it, which is written if it is not there."""
    if ask["question"] == "train":
        return ask
    cache = Path(ask["cache"])
    path = models.single_file(cache) if single else models.folder(ask["family"], ask["dtype"], cache)
    return {**ask, "model": str(path)}
