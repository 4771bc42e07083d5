"""How far each sampler is from the truth, by network calls: ``python bench/sampler_errors.py OUT.png``.

On a mixture of Gaussians, where the denoiser is a formula, from Stable Diffusion's highest noise level to its lowest by
Karras levels, in float64. The truth is the end of the ODE by a very fine run. Left: samplers of the ODE; those with
noise run without it (eta = 0). Right: with noise, the distance between a run and one of twice the steps: it stays where
fresh noise is drawn for every step, and falls where all of it comes from one Brownian path.

Prints a table and the slope of each line in the left half, -1 for first order, over its last three points.
"""

import argparse
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from jax import Array
from matplotlib.figure import Figure

from ldm import mixture
from ldm.files import check_png, write_whole
from ldm.samplers import SAMPLERS, START, Plan, brownian_noise, image_keys, noise_per_step, sample, unit_noise
from ldm.schedule import NoiseSchedule, noise_levels
from ldm.spacing import karras_sigmas

SHAPE, IMAGES = (8, 8, 2), 8
CALLS = (8, 16, 32, 64, 128, 256)
WORLD = mixture.Mixture(np.array([[-1.0], [1.2]]), 0.4, np.array([0.5, 0.5]))
NOT_ODE = ("ddpm", "lcm")
STOCHASTIC = [name for name, sampler in SAMPLERS.items() if sampler.eta]
ROOM, FINE = 512, 8000


def denoise(x: Array, sigma: Array) -> Array:
    """E[x0 | x], each number for itself."""
    return mixture.denoise(WORLD, x[..., None], sigma)[..., 0]


@functools.partial(jax.jit, static_argnames=("name", "path"))
def run(plan: Plan, name: str, path: bool = False) -> Array:
    """The end of a run in sigma space."""
    keys = image_keys(np.uint32(0), jnp.arange(IMAGES))
    noise_at = brownian_noise(keys, SHAPE, plan.levels[0]) if path else noise_per_step(keys, SHAPE)
    start = plan.scale * unit_noise(keys, START, SHAPE)
    end = sample(SAMPLERS[name], denoise, start.astype(plan.levels.dtype), plan, noise_at)
    return end * jnp.sqrt(1 + plan.levels[plan.steps] ** 2)


def plan_of(steps: int, eta: float, room: int = ROOM) -> Plan:
    """Karras levels down to the lowest that a network knows, not to 0: the order of a step to 0 is another matter."""
    table = noise_levels(NoiseSchedule())
    levels = np.pad(karras_sigmas(steps + 1, table[0], table[-1]), (0, room - steps))
    return Plan(levels, np.int32(steps), np.float64(eta), levels[0])


def distance(a: Array, b: Array) -> float:
    """Root mean square difference."""
    return float(jnp.sqrt(jnp.mean((a - b) ** 2)))


def errors() -> dict[str, list[float]]:
    """Of every ODE sampler at each number of calls."""
    truth = run(plan_of(FINE, 0.0, FINE), "heun")
    far = lambda name, calls: distance(run(plan_of(calls // SAMPLERS[name].calls, 0.0), name), truth)
    return {name: [far(name, calls) for calls in CALLS] for name in SAMPLERS if name not in NOT_ODE}


def changes() -> dict[tuple[str, bool], list[float]]:
    """Of every stochastic sampler, with fresh noise and on one path: from n steps to 2 n."""
    made = lambda name, path, calls: run(plan_of(calls // SAMPLERS[name].calls, 1.0), name, path)
    change = lambda *which: [distance(made(*which, calls), made(*which, 2 * calls)) for calls in CALLS]
    return {(name, path): change(name, path) for name in STOCHASTIC for path in (False, True)}


def alike(lines: dict[str, list[float]]) -> list[list[str]]:
    """Names in groups whose lines are the same."""
    groups: list[list[str]] = []
    for name, values in lines.items():
        same = [group for group in groups if np.allclose(lines[group[0]], values, rtol=1e-3)]
        same[0].append(name) if same else groups.append([name])
    return groups


def draw(left: dict, right: dict) -> Figure:
    """Both halves."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (a, b) = plt.subplots(1, 2, figsize=(13, 5.6), layout="constrained")
    colours = plt.get_cmap("tab20").colors
    colour = {name: colours[i % 20] for i, name in enumerate(SAMPLERS)}
    for i, names in enumerate(alike(left)):
        label, marker = " = ".join(names), "os^Dv<>P*X"[i % 10]
        a.loglog(CALLS, left[names[0]], marker=marker, ms=5, lw=1.4, color=colour[names[0]], label=label)
    for order in (1, 2):
        guide = 3.0 * np.array(CALLS, float) ** -order * CALLS[0] ** (order - 1)
        a.loglog(CALLS, guide, color="0.8", lw=4, zorder=0)
        a.text(CALLS[-1] * 1.03, guide[-1], f"order {order}", color="0.5", va="center", fontsize=8)
    a.set_title("The ODE: error against network calls")
    for (name, path), values in right.items():
        label = f"{name}, one path" if path else f"{name}, fresh noise"
        b.loglog(CALLS, values, ls="-" if path else ":", marker="o", ms=4, lw=1.4, color=colour[name], label=label)
    b.set_title("With noise: from n steps to 2 n")
    for axes, word in ((a, "distance from the end of the ODE"), (b, "distance between the two runs")):
        axes.set(xlabel="network calls", ylabel=word)
        axes.set_xticks(CALLS, [str(n) for n in CALLS])
        axes.minorticks_off()
        axes.legend(fontsize=7.5, ncol=1 if axes is a else 2, frameon=False, loc="lower left")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Measures, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT.png")
    path = parser.parse_args().out
    check_png(path)
    with jax.enable_x64(True):
        left, right = errors(), changes()
    print("calls       ", *(f"{calls:9d}" for calls in CALLS), "    slope")
    for name, values in left.items():
        slope = np.polyfit(np.log2(CALLS[-3:]), np.log2(values[-3:]), 1)[0]
        print(f"{name:12s}", *(f"{value:9.2e}" for value in values), f"{slope:9.2f}")
    for (name, one_path), values in right.items():
        print(f"{name:12s}", *(f"{value:9.2e}" for value in values), "  one path" if one_path else "  fresh noise")
    figure = draw(left, right)
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=110))


if __name__ == "__main__":
    main()
