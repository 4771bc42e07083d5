"""What half precision does to samples of the toybox's model: ``python bench/number_formats.py OUT.md``.

Every sampler, with Stable Diffusion's schedule and with its zero-terminal-SNR form, in bfloat16 and float16 against
float32: the relative error of the latents, ||half - full|| / ||full||, mean of the pictures; and how many are not
finite. Weights and the network's arithmetic are in half precision; schedule, sampler, softmax and the statistics of
norms are float32 always. Same noise, ten steps, guidance 3.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

import ldm
from ldm.bundle import Bundle
from ldm.files import check_writable, write_whole
from ldm.samplers import SAMPLERS

PROMPTS = ["a red cube", "a blue sphere to the left of a yellow cone"]
DTYPES = ("bfloat16", "float16")
SETTINGS = {"steps": 10, "guidance": 3.0, "output": "latents", "spacing": "trailing", "progress": False}


def models() -> dict[str, dict[str, Bundle]]:
    """Bundles by schedule and dtype."""
    made = {dtype: ldm.load("toybox", dtype) for dtype in ("float32", *DTYPES)}
    own = made["float32"].configs.schedule
    schedules = {"own schedule": own, "zero terminal SNR": replace(own, zero_terminal_snr=True)}
    with_schedule = lambda bundle, schedule: replace(bundle, configs=replace(bundle.configs, schedule=schedule))
    return {name: {d: with_schedule(b, s) for d, b in made.items()} for name, s in schedules.items()}


def drift(full: np.ndarray, half: np.ndarray) -> tuple[float, int]:
    """Mean relative error of those pictures that are finite, and how many are not."""
    finite = np.isfinite(half).all(axis=(1, 2, 3))
    norm = lambda x: np.linalg.norm(x.reshape(len(x), -1), axis=1)
    errors = norm(half - full)[finite] / norm(full)[finite]
    return float(errors.mean()) if finite.any() else float("nan"), int((~finite).sum())


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT.md")
    out = parser.parse_args().out
    check_writable(out)
    made = models()
    columns = [(schedule, dtype) for schedule in made for dtype in DTYPES]
    lines = ["| sampler | " + " | ".join(f"{dtype}, {schedule}" for schedule, dtype in columns) + " |"]
    lines.append("|---|" + "---|" * len(columns))
    broken = 0
    for sampler in SAMPLERS:
        full = {s: ldm.generate(made[s]["float32"], PROMPTS, sampler=sampler, **SETTINGS) for s in made}
        cells = []
        for schedule, dtype in columns:
            half = ldm.generate(made[schedule][dtype], PROMPTS, sampler=sampler, **SETTINGS)
            error, lost = drift(full[schedule], half)
            broken += lost
            cells.append(f"{100 * error:.1f} %" + (f", {lost} not finite" if lost else ""))
        lines.append(f"| {sampler} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
        jax.clear_caches()  # a process may not hold as many programs as this would make
    lines.append("")
    lines.append(f"Pictures that are not finite: {broken} of {len(SAMPLERS) * len(columns) * len(PROMPTS)}.")
    write_whole(out, lambda file: file.write("\n".join([*lines, ""]).encode()))


if __name__ == "__main__":
    main()
