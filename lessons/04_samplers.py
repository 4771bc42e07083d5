# %% [markdown]
# # 04. Samplers: orders, noise and spacing
#
# **Measured here:** how fast the error of a sampler falls with its cost; why ancestral samplers never settle; what
# Karras's spacing does; and how many steps are enough.
#
# **The claim in one sentence:** twice the network calls divide Euler's error by 2, and Heun's and DPM-Solver++(2M)'s
# by 4 (orders 1, 2 and 2: Karras et al. 2022, section 3; Lu et al. 2022, section 4), while an ancestral sampler comes
# to another picture however many steps it makes.
#
# **Time:** 3 minutes on 2 CPU cores, under 1 minute on a GPU; 80 minutes to read and do.
#
# **Before this one:** lesson 01 (noise and score) and lesson 03 (DDIM). The exercises are in
# `lessons/exercises/e04_samplers.py`.

# %%
import functools
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import ldm
from ldm import mixture
from ldm.course import check, claim, fast
from ldm.guidance import guide, scale_from_w
from ldm.mixture import Mixture
from ldm.samplers import (
    SAMPLERS,
    START,
    Plan,
    brownian_noise,
    image_keys,
    noise_per_step,
    sample,
    sample_path,
    unit_noise,
)
from ldm.samplers.multistep import dpmpp_2m_step, no_history, remember
from ldm.samplers.one_step import ancestral_sigmas, dpm2_step, euler_step, heun_step
from ldm.schedule import NoiseSchedule, noise_levels
from ldm.spacing import exponential_sigmas, karras_sigmas, levels

SEEDS = (0, 1, 2)
POINTS = 24 if fast() else 256  # points that are sampled at once
FINE = 200 if fast() else 4000  # steps of the run that stands for the truth; no run has more
jax.config.update("jax_disable_most_optimizations", fast())  # compiled sooner
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 100, "legend.frameon": False}
COLOURS = {"euler": "#2b6cb0", "heun": "#2f855a", "dpm2": "#b7791f", "dpmpp_2m": "#c53030", "unipc": "#6b46c1"}
TITLES = {
    "euler": "Euler",
    "heun": "Heun",
    "dpm2": "midpoint (DPM2)",
    "dpmpp_2m": "DPM++ 2M",
    "unipc": "UniPC",
}

# %% [markdown]
# ## 1. One equation
#
# Write a noisy sample as $x = x_0 + \sigma \cdot \text{noise}$. $\sigma$ is the noise level; $x_0$ is the clean
# sample. A denoiser is a function $D(x, \sigma)$, the expectation of $x_0$ given $x$ (lesson 01). The probability-flow
# ODE moves $x$ so that at every level it is distributed as the noisy data are:
#
# $$\frac{dx}{d\sigma} = \frac{x - x_0}{\sigma}, \qquad x_0 = D(x, \sigma) \tag{04.1}$$
#
# The right side is the predicted noise, eps. Sampling is the solution of (04.1) from the highest $\sigma$ down to 0.
# Nothing else is meant by a deterministic sampler: DDIM, Euler, Heun and the DPM-Solvers all solve this equation. They
# differ in how they get from one level to the next, and that is the subject of this lesson.
#
# Its price is counted in **network calls**, evaluations of $D$. All else costs nothing beside them.
#
# To know errors we need the truth. `ldm.mixture` is a world of eight Gaussians on a ring, of which $D$ is a formula.
# The truth is then the end of a very fine run of Heun's method. All of this is in float64, so that rounding is not
# what we measure. Levels are those of Stable Diffusion, from $\sigma = 14.6$ to $0.029$.

# %%
SD = NoiseSchedule()
LOWEST, HIGHEST = noise_levels(SD)[[0, -1]]
WORLD = mixture.ring(spread=0.25)


def plan_of(visited, eta=0.0, room=FINE):
    """A run over given levels that starts with noise of the first; padded, so that one program serves all lengths."""
    steps = len(visited) - 1
    padded = np.pad(np.asarray(visited, float), (0, room - steps))
    return Plan(padded, np.int32(steps), np.float64(eta), np.float64(visited[0]))


def plain(world):
    """The denoiser of a mixture."""
    return functools.partial(mixture.denoise, world)


@functools.partial(jax.jit, static_argnames=("sampler", "noise", "denoiser"))
def compiled(sampler, world, plan, start, seed, noise, denoiser):
    """The end of a run, in sigma space; noise: "none", "fresh" at every step, or of one Brownian "path"."""
    keys, shape = image_keys(seed, jnp.arange(len(start))), start.shape[1:]
    noises = {
        "none": lambda: lambda *_: jnp.zeros_like(start),
        "fresh": lambda: noise_per_step(keys, shape),
        "path": lambda: brownian_noise(keys, shape, plan.levels[0]),
    }
    end = sample(sampler, denoiser(world), plan.scale * start, plan, noises[noise]())
    return end * jnp.sqrt(1 + plan.levels[plan.steps] ** 2)


def run(sampler, visited, start, world=WORLD, noise="none", seed=0, denoiser=plain):
    """The end [N, D] of a run of a sampler, by its name or itself, over the levels `visited`."""
    sampler = SAMPLERS[sampler] if isinstance(sampler, str) else sampler
    plan = plan_of(visited, eta=float(noise != "none"))
    with jax.enable_x64(True):
        return np.asarray(compiled(sampler, world, plan, start, np.uint32(seed), noise, denoiser))


def starts(seed, count=POINTS):
    """Unit noise [N, 2] to begin from."""
    return np.asarray(unit_noise(image_keys(np.uint32(seed), jnp.arange(count)), START, (2,)), float)


def to_lowest(steps):
    """Karras levels from the highest to the lowest that the network knows, not to 0."""
    return karras_sigmas(steps + 1, LOWEST, HIGHEST)


def distance(a, b):
    """Root mean square difference."""
    return float(np.sqrt(np.mean((a - b) ** 2)))


TRUTH = {seed: run("heun", to_lowest(FINE), starts(seed)) for seed in SEEDS}
truth_error = distance(TRUTH[0], run("heun", to_lowest(FINE // 2), starts(0))) / 3  # second order: (4 - 1) times it
print(f"the truth itself is off by about {truth_error:.0e}; the data's own deviation is {TRUTH[0].std():.2f}")

# %% [markdown]
# ## 2. Euler: hold the slope still
#
# Take the slope where the step begins, and follow it in a straight line to the next level $\sigma'$:
#
# $$x' = x + (\sigma' - \sigma)\,\frac{x - x_0}{\sigma} = r\,x + (1 - r)\,x_0, \qquad r = \sigma'/\sigma \tag{04.2}$$
#
# The second form says what happens: $x$ becomes a mean of itself and of the prediction. A step to $\sigma' = 0$ gives
# the prediction itself. Lesson 03's DDIM step without noise is this very step.
#
# **Exercise 04.1.** Write `euler_step` in `lessons/exercises/e04_samplers.py`, then run
# `pytest tests/test_04_samplers.py`. In a notebook, `check("04.1", your_function)` says the same. This is what a right
# answer is told:

# %%
check("04.1", euler_step)

# %% [markdown]
# Below: four starting points, the true way of each (grey), and Euler's with six steps. Everything is divided by
# $\sqrt{1 + \sigma^2}$, the form in which networks see it; otherwise the start would be fourteen times as far out as
# the data. True ways bend when the parts of the ring come apart, at $\sigma$ of about 1. That is where a straight line
# errs.


# %%
@functools.partial(jax.jit, static_argnames=("name", "fresh"))
def recorded(name, plan, start, fresh):
    """Every state and every prediction of a run."""
    keys = image_keys(np.uint32(0), jnp.arange(len(start)))
    noise_at = noise_per_step(keys, start.shape[1:]) if fresh else lambda *_: jnp.zeros_like(start)
    return sample_path(SAMPLERS[name], plain(WORLD), plan.scale * start, plan, noise_at)[1]


def way(name, visited, start, fresh=False):
    """All states of a run [steps + 1, N, D], divided as networks see them, and all predictions [steps, N, D]."""
    with jax.enable_x64(True):
        path = recorded(name, plan_of(visited, float(fresh), room=200), start, fresh)
        states = path.x[: len(visited)] / jnp.sqrt(1 + np.asarray(visited)[:, None, None] ** 2)
        return np.asarray(states), np.asarray(path.x0[: len(visited) - 1])


def ring_behind(axes, text):
    """The data's density, in grey."""
    side = np.linspace(-2.1, 2.1, 120)
    grid = np.stack(np.meshgrid(side, side), -1)
    axes.contourf(side, side, np.exp(mixture.log_density(WORLD, grid, 0.0)), 12, cmap="Greys", alpha=0.55)
    axes.set(title=text, xlabel="$x_1$ (first coordinate)", ylabel="$x_2$", aspect="equal")


few = starts(7, 4)
figure, axes = plt.subplots(figsize=(5.2, 5.2), layout="constrained")
ring_behind(axes, "Six Euler steps beside the true way")
true, rough = way("heun", to_lowest(200), few)[0], way("euler", to_lowest(6), few)[0]
for i in range(len(few)):
    axes.plot(*true[:, i].T, color="0.35", lw=2, label="true way" if i == 0 else None)
    axes.plot(*rough[:, i].T, "o-", color=COLOURS["euler"], ms=4, lw=1.2, label="Euler" if i == 0 else None)
axes.legend(loc="upper right")
plt.show()

# %% [markdown]
# ## 3. Heun and midpoint: ask twice
#
# A better slope than the one at the beginning is the mean of the slopes at both ends. The end is not known, so Euler's
# step guesses it. With $d = (x - x_0)/\sigma$:
#
# $$\hat x = x + (\sigma' - \sigma)\,d, \qquad d' = \frac{\hat x - D(\hat x, \sigma')}{\sigma'}, \qquad
# x' = x + (\sigma' - \sigma)\,\frac{d + d'}{2} \tag{04.3}$$
#
# This is **Heun's** method, the sampler of Karras et al. 2022 (alg. 1). Or take the slope in the middle, $\sigma_m =
# \sqrt{\sigma\sigma'}$, and use that one alone for the whole step. This is the **midpoint** method with its middle in
# $\log \sigma$: DPM-Solver-2, "DPM2" in the tools. Both pay two calls a step. At $\sigma' = 0$ the second slope would
# be 0/0, so the last step is Euler's, and saves a call.
#
# **Exercise 04.2.** Write `heun_step`. The run must also work under `jax.jit`, where $\sigma'$ is not known when the
# program is made: `jax.lax.cond` decides. Same file, same command: `pytest tests/test_04_samplers.py`. One large step
# of each method, in a world of two points on a line, should look like this:

# %%
LINE = Mixture(np.array([[-1.0], [1.0]]), 0.3, np.array([0.5, 0.5]))
two_points = jax.jit(functools.partial(mixture.denoise, LINE))
high, low, x = 1.2, 0.5, jnp.array([[0.9]])
fine = np.geomspace(high, low, 80)
curve = [x]
for above, below in itertools.pairwise(fine):
    curve.append(euler_step(curve[-1], two_points(curve[-1], above), above, below))
x0 = two_points(x, high)
steps = {"euler": euler_step(x, x0, high, low)}
steps |= {name: f(two_points, x, x0, high, low) for name, f in (("heun", heun_step), ("dpm2", dpm2_step))}
figure, axes = plt.subplots(figsize=(7, 3.9), layout="constrained")
at_sigma, at_x = np.linspace(0.45, 1.25, 18), np.linspace(0.6, 1.0, 12)
field = np.stack([(at_x - two_points(at_x[:, None], sigma)[:, 0]) / sigma for sigma in at_sigma], axis=1)
axes.quiver(at_sigma, at_x, -np.ones_like(field), -field, angles="xy", color="0.8", scale=32, width=0.0022)
axes.plot(fine, np.ravel(curve), color="0.3", lw=2.5, label="the ODE")
for name, end in steps.items():
    axes.plot([high, low], [x[0, 0], end[0, 0]], "o-", color=COLOURS[name], label=TITLES[name])
axes.set(xlabel=r"noise level $\sigma$ (sampling goes to the left)", ylabel="$x$", title="One step of each method")
axes.legend(loc="lower right")
plt.show()
print({TITLES[name]: f"error {abs(float(end[0, 0] - curve[-1][0, 0])):.3f}" for name, end in steps.items()})

# %% [markdown]
# ## 4. DPM-Solver++(2M): remember
#
# A second call is not the only way to learn how things change. The last step's prediction is known already.
#
# Let $\lambda = -\log \sigma$, and $h = \lambda' - \lambda$ the length of the step, so that $r = e^{-h}$. In $\lambda$
# (04.1) is $dx/d\lambda = x_0 - x$, with the solution
#
# $$x' = r\,x + \int_\lambda^{\lambda'} e^{-(\lambda' - s)}\,x_0(s)\,ds \tag{04.4}$$
#
# The first part is exact. Only $x_0(s)$ along the step has to be guessed. Hold it still, and the integral is
# $(1-r)\,x_0$: Euler's step again, (04.2). A straight line through the last two predictions is better. Over a short
# step its mean is its value in the middle:
#
# $$\bar x_0 = x_0 + \frac{h}{2 h_{\text{last}}}\,\bigl(x_0 - x_{0,\text{last}}\bigr), \qquad
# x' = r\,x + (1 - r)\,\bar x_0 \tag{04.5}$$
#
# That is all of **DPM-Solver++(2M)**: second order for one call a step. Two cases need care. The first step has
# nothing to remember; a step to 0 has $h = \infty$. Both fall back to Euler's.

# %%
visited = exponential_sigmas(121, LOWEST, HIGHEST)
predicted = way("heun", visited, few)[1][:, 0, 0]
lam, (last, now, then) = -np.log(visited[:-1]), (42, 54, 66)
rise = (predicted[now] - predicted[last]) / (lam[now] - lam[last])
figure, axes = plt.subplots(figsize=(7, 3.9), layout="constrained")
axes.plot(lam, predicted, color="0.3", lw=2.5, label="$x_0$ along the true way")
axes.axvspan(lam[now], lam[then], color="0.93", zorder=0)
axes.text((lam[now] + lam[then]) / 2, axes.get_ylim()[0], "the step", ha="center", va="bottom", color="0.45")
axes.plot(lam[[now, then]], predicted[[now, now]], color=COLOURS["euler"], lw=2, label="Euler: held still")
ahead = predicted[now] + rise * (lam[then] - lam[now])
axes.plot(
    lam[[last, then]], [predicted[last], ahead], color=COLOURS["dpmpp_2m"], lw=2, label="2M: through the last two"
)
axes.plot(lam[[last, now]], predicted[[last, now]], "o", color="0.3", ms=7)
axes.plot((lam[now] + lam[then]) / 2, (predicted[now] + ahead) / 2, "D", color=COLOURS["dpmpp_2m"], ms=8)
axes.set(xlabel=r"$\lambda = -\log\,\sigma$ (sampling goes to the right)", ylabel="first coordinate of the prediction")
axes.set(title=r"What stands for $x_0$ during a step (diamond: $\bar x_0$)", xlim=(-2.7, 3.5))
axes.legend(loc="best")
plt.show()

# %% [markdown]
# **Exercise 04.3.** Write `dpmpp_2m_step`. Its `past` is a `History`, the last three steps with the newest first:
# `past.x0[0]` is the last prediction, `past.sigma[0]` the level at which it was made, and infinite if there was no
# step before. `ldm.samplers.multistep.length(sigma, sigma_next)` is $h$; it is infinite from an infinite level, and
# large but finite to 0. You may use it.
#
# The same function runs along an SDE when `eta` > 0: it keeps $r^{1+\eta}$ of $x$ in place of $r$, gives the rest to
# $\bar x_0$, and adds fresh noise of deviation $\sigma'\sqrt{1 - r^{2\eta}}$. With $\eta = 0$ that is (04.5). Here is
# what `pytest tests/test_04_samplers.py` compares with, for numbers: $x_0$ was 0.5 at $\sigma = 4$ and is 0.7 at
# $\sigma = 2$; $x = 1$; the step goes to $\sigma' = 1$.

# %%
one, two, four = (jnp.float32(v) for v in (1, 2, 4))
x, x0 = jnp.ones((1, 1)), jnp.full((1, 1), 0.7)
past = remember(no_history(x), x, jnp.full((1, 1), 0.5), four)
print("nothing to remember:", dpmpp_2m_step(x, x0, two, one, no_history(x))[0, 0], "= (1 + 0.7) / 2, Euler's step")
print("one step remembered:", dpmpp_2m_step(x, x0, two, one, past)[0, 0], "= (1 + 0.8) / 2")

# %% [markdown]
# ## 5. Orders
#
# A method has **order** $p$ if the error at the end falls like $1/n^p$ with the number of steps $n$. On logarithmic
# axes that is a straight line of slope $-p$. Euler's step leaves out the curvature, an error of size $h^2$ in each of
# $n \sim 1/h$ steps: order 1. Heun, midpoint and 2M get the curvature right: order 2. UniPC is 2M that mends each step
# once the next prediction is known, at no further call: order 3.
#
# The runs below stop at $\sigma = 0.029$, the lowest level that the network knows. The step from there to 0 is Euler's
# for everybody, and would hide the orders.

# %%
CALLS = (8, 16, 32) if fast() else (8, 16, 32, 64, 128, 256)
FIVE = ("euler", "heun", "dpmpp_2m") if fast() else tuple(COLOURS)


def errors_of(sampler, seed, calls_of_step):
    """Distance from the truth, for each number of calls."""
    return [distance(run(sampler, to_lowest(calls // calls_of_step), starts(seed)), TRUTH[seed]) for calls in CALLS]


errors = {name: np.array([errors_of(name, seed, SAMPLERS[name].calls) for seed in SEEDS]) for name in FIVE}
slopes = {name: -np.polyfit(np.log2(CALLS[-3:]), np.log2(errors[name][:, -3:].T), 1)[0] for name in FIVE}
figure, axes = plt.subplots(figsize=(7, 4.8), layout="constrained")
for name in FIVE:
    label = f"{TITLES[name]}: order {slopes[name].mean():.2f}"
    axes.loglog(CALLS, errors[name].mean(0), "o-", color=COLOURS[name], ms=5, label=label)
axes.axhline(truth_error, color="0.6", ls=":")
axes.text(CALLS[0], truth_error, "error of the truth itself", color="0.45", va="bottom")
axes.set_xticks(CALLS, [str(calls) for calls in CALLS])
axes.minorticks_off()
axes.set(xlabel="network calls", ylabel="distance from the end of the ODE", title="Error against cost, three seeds")
axes.legend(loc="lower left", bbox_to_anchor=(0, 0.12))
plt.show()
print(f"{'calls':16s}", *(f"{calls:9d}" for calls in CALLS))
for name in FIVE:
    print(f"{TITLES[name]:16s}", *(f"{value:9.1e}" for value in errors[name].mean(0)))

# %% [markdown]
# Two things to see. **Order is a statement about many steps.** With 8 calls Heun, of order 2, is the worst of all: it
# can make only 4 steps. **The order is not the whole story:** 2M and Heun have the same, and 2M is four times as near
# at equal cost, since it makes twice as many steps for the same calls.
#
# A sampler of yours can be measured the same way. `run` takes any `Sampler`; this one is built from a step alone:
#
# `from ldm.samplers import Sampler; run(Sampler(lambda s: your_step(*s.here)), to_lowest(32), starts(0))`
#
# ### Where pictures jump
#
# Orders presuppose that the ODE is smooth. When the parts of the data are far apart and narrow, it nearly is not. Two
# starting points on either side of a watershed end in different parts. Near it a small error decides. So the error of
# a few points is a whole distance between parts, and the mean over points does not fall evenly. This is why the world
# above has wide parts, 0.25. With 0.08, below, the median over points still halves with every doubling of Euler's
# steps; the error, led by a few points, does not. It is the same with pictures: a few more steps may change one detail
# into another one, while all others barely move.

# %%
NARROW = mixture.ring(spread=0.08)


def part_of(ends):
    """Which part of the ring is nearest [N]."""
    return np.argmin(np.linalg.norm(ends[:, None] - NARROW.means, axis=-1), axis=-1)


many = starts(1)
true = run("heun", to_lowest(FINE // 2), many, NARROW)
for calls in CALLS:
    end = run("euler", to_lowest(calls), many, NARROW)
    far = np.linalg.norm(end - true, axis=-1)
    jumped = 100 * np.mean(part_of(end) != part_of(true))
    print(
        f"Euler, {calls:3d} steps: error {distance(end, true):.4f}, its median over points {np.median(far):.4f},",
        end=" ",
    )
    print(f"largest {far.max():.2f}; {jumped:.1f} % jumped")

# %% [markdown]
# ## 6. Ancestral samplers: down, then up
#
# An ancestral sampler goes below the next level without noise, to `down`, and then adds fresh noise of deviation `up`.
# Fresh noise is independent of what is left of the old, so variances add. With $r = \sigma'/\sigma$:
#
# $$\text{down}^2 + \text{up}^2 = \sigma'^2, \qquad \text{up} = \eta\,\sigma' \sqrt{1 - r^2} \tag{04.6}$$
#
# $\eta = 0$ is the ODE. With $\eta = 1$, `up` is the deviation of DDPM's posterior, and $\text{down} =
# \sigma'^2/\sigma$. The tools' "Euler a", "DPM2 a" and "DPM++ 2S a" are Euler, midpoint and DPM-Solver++(2S) to
# `down`, and then noise.
#
# **Exercise 04.4.** Write `ancestral_sigmas`, and mind the digits: $\sqrt{\sigma'^2 - \text{up}^2}$ is the same in
# mathematics and is not in float32. Then run `pytest tests/test_04_samplers.py`. The expected split of a step from
# $\sigma = 2$ to $\sigma' = 1$:

# %%
for eta in (0.0, 0.5, 1.0):
    down, up = (float(part) for part in ancestral_sigmas(*(jnp.float32(v) for v in (2.0, 1.0, eta))))
    print(f"eta {eta:.1f}: down {down:.4f}, up {up:.4f}, down² + up² = {down**2 + up**2:.4f}")
small, tall = np.float32(0.001), np.float32(14.6)
up = small * np.sqrt(1 - (small / tall) ** 2)
subtracted, ours = np.sqrt(small**2 - up**2), float(ancestral_sigmas(tall, small, jnp.float32(1.0))[0])
print(f"14.6 to 0.001 at once: down should be {0.001**2 / 14.6:.3e}; ours {ours:.3e}; by subtraction {subtracted:.3e}")

# %% [markdown]
# Below, the same seed and the same starts with 16 and with 128 steps. The ODE's two runs end in almost the same
# places. With fresh noise they do not: step 5 of 16 and step 5 of 128 draw the same numbers at different levels, and
# all later steps are other draws altogether. More steps are not a finer version of the same picture. They are another
# picture.

# %%
figure, both = plt.subplots(1, 2, figsize=(10.4, 5), layout="constrained", sharex=True, sharey=True)
for axes, (name, fresh, text) in zip(
    both, (("euler", False, "Euler"), ("euler_a", True, "Euler a, fresh noise")), strict=True
):
    ring_behind(axes, text)
    for steps_made, colour, wide in ((16, "#dd6b20", 1.6), (32 if fast() else 128, "#2c5282", 0.9)):
        states = way(name, to_lowest(steps_made), few[:2], fresh)[0]
        for i in range(2):
            axes.plot(*states[:, i].T, color=colour, lw=wide, label=f"{steps_made} steps" if i == 0 else None)
            axes.plot(*states[-1, i], "o", color=colour, ms=9 if wide > 1 else 5, zorder=4)
    axes.legend(loc="upper right")
plt.show()

# %% [markdown]
# How far a run moves when its steps are doubled tells whether it settles. The ODE's change goes to 0. With fresh noise
# it stays near the distance of two pictures that have nothing to do with each other (dotted).
#
# So do stochastic samplers not converge? They do, if the noise of a long step is the **sum** of the noises of the
# short steps that replace it. `brownian_noise` draws a single random path over all levels, and each step takes its
# increment. Then more steps approach one picture: the solution of the SDE along that path. Its error falls like $1/n$,
# order 1, also with the second-order steps of DPM2: it is now the noise within a step that is left out.

# %%
DOUBLED = (8, 16) if fast() else (8, 16, 32, 64, 128, 256)
CASES = (
    ("euler", "none", "#2b6cb0", "-", "Euler (no noise)"),
    ("euler_a", "fresh", "#c53030", "--", "Euler a, fresh noise"),
    ("dpm2_a", "fresh", "#dd6b20", "--", "DPM2 a, fresh noise"),
    ("euler_a", "path", "#c53030", "-", "Euler a, one path"),
    ("dpm2_a", "path", "#dd6b20", "-", "DPM2 a, one path"),
)
CASES = (*CASES[:2], CASES[3]) if fast() else CASES


def changes(name, noise, seed):
    """Distance between n and 2n steps, for each n."""
    ends = [run(name, to_lowest(n), starts(seed), noise=noise, seed=seed) for n in (*DOUBLED, 2 * DOUBLED[-1])]
    return [distance(few_steps, more) for few_steps, more in itertools.pairwise(ends)]


moved = {case[:2]: np.array([changes(*case[:2], seed) for seed in SEEDS]) for case in CASES}
pairs = [[np.asarray(mixture.draw(WORLD, jax.random.key(10 * s + i), 4096)) for i in (0, 1)] for s in SEEDS]
apart = np.array([distance(*pair) for pair in pairs])
figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
for name, noise, colour, line, label in CASES:
    axes.loglog(DOUBLED, moved[name, noise].mean(0), line, marker="o", ms=5, color=colour, label=label)
axes.axhline(apart.mean(), color="0.6", ls=(0, (1, 1)), label="two independent draws of the data")
axes.set_xticks(DOUBLED, [str(n) for n in DOUBLED])
axes.minorticks_off()
axes.set(xlabel="steps n", ylabel="distance between n and 2n steps", title="Who settles", ylim=(None, 2.5))
axes.legend(loc="lower left")
plt.show()
for case in CASES:
    print(f"{case[-1]:22s}", *(f"{value:7.3f}" for value in moved[case[:2]].mean(0)))

# %% [markdown]
# Not to settle is not to be wrong. Each of these runs is a fair draw from the data, and the fresh noise even corrects
# errors of earlier steps. What you lose is a picture that stays the same while you look for the number of steps.
#
# ## 7. Spacing: where the levels lie
#
# The same $n$ steps can be spent anywhere between $\sigma_{\max}$ and $\sigma_{\min}$. **Uniform** spacing takes every
# $T/n$-th timestep of the training schedule. **Karras** spacing (Karras et al. 2022, eq. 5) is even in
# $\sigma^{1/\rho}$ with $\rho = 7$. **Exponential** spacing is even in $\log\sigma$, the limit of large $\rho$.
#
# $$\sigma_i = \Bigl(\sigma_{\max}^{1/\rho} + \tfrac{i}{n-1}\bigl(\sigma_{\min}^{1/\rho} -
# \sigma_{\max}^{1/\rho}\bigr)\Bigr)^{\rho}, \quad i = 0 \ldots n-1, \qquad \sigma_n = 0 \tag{04.7}$$
#
# **Exercises 04.5 and 04.6.** Write `karras_sigmas` and `exponential_sigmas`: one or two lines each, in NumPy's
# float64. Both end at $\sigma_{\min}$; the 0 is appended by `ldm.spacing.levels`, for every spacing. Run
# `pytest tests/test_04_samplers.py`. With 30 steps the levels should lie like this (right: how many are below $\sigma
# = 1$):

# %%
SPACINGS = {"uniform": "#4a5568", "karras": "#c53030", "exponential": "#2b6cb0"}
figure, axes = plt.subplots(figsize=(8.4, 2.7), layout="constrained")
for row, (name, colour) in enumerate(SPACINGS.items()):
    visited = levels(SD, "euler", name, 30)
    axes.plot(visited[:-1], [row] * 30, "|", ms=24, mew=1.8, color=colour)
    axes.text(0.021, row, f"{np.sum(visited[:-1] < 1)} below 1", ha="left", va="center", color=colour)
axes.axvline(1, color="0.7", lw=1, zorder=0)
axes.set_yticks(range(3), SPACINGS)
axes.set(xscale="log", xlim=(18, 0.0135), ylim=(2.6, -0.6), xlabel=r"$\sigma$ (sampling goes to the right; then 0)")
axes.set_xticks([10, 1, 0.1], ["10", "1", "0.1"])
plt.show()

# %% [markdown]
# ### Where the articles, or common belief, are wrong: "Karras leaves a little noise at the end"
#
# It is said that Karras's schedule differs from others by ending at a little noise in place of none. The last levels
# of each, below, show that it does not: **all end at exactly 0**, and the level before is the same $\sigma_{\min}$ for
# Karras, for exponential and for uniform spacing. What differs is how many steps are spent where. From (04.7), the
# share of the way from $\sigma_{\max}$ to $\sigma_{\min}$ that lies above $\sigma = 1$ is $(\sigma_{\max}^{1/7} - 1) /
# (\sigma_{\max}^{1/7} - \sigma_{\min}^{1/7}) = 0.54$. So of 30 steps 14 are below 1. With uniform spacing it is 11.

# %%
above = (HIGHEST ** (1 / 7) - 1) / (HIGHEST ** (1 / 7) - LOWEST ** (1 / 7))
print(f"share of Karras's way above sigma 1: {above:.3f}; levels below: {30 - int(np.ceil(29 * above + 1e-9))} of 30")
for name in SPACINGS:
    print(f"{name:12s} last four levels:", *(f"{value:.4f}" for value in levels(SD, "euler", name, 30)[-4:]))

# %% [markdown]
# Does it help? Equal network calls, three samplers, three seeds, and all runs to $\sigma = 0$. The floor (dotted) is
# what the last step leaves: from $\sigma_{\min}$ to 0 everyone takes the prediction as it is.

# %%
BUDGETS = (10, 20) if fast() else (10, 20, 30, 60, 120)
END = np.append(karras_sigmas(FINE, 1e-4, HIGHEST), 0.0)  # the truth now goes all the way
CLEAN = {seed: run("heun", END, starts(seed)) for seed in SEEDS}


def steps_for(name, calls):
    """Steps to 0 that cost at most so many calls: the last one is Euler's, of one call."""
    return (calls + SAMPLERS[name].calls - 1) // SAMPLERS[name].calls


def error_at(name, spacing, calls, seed):
    """Distance from the clean truth."""
    visited = levels(SD, "euler", spacing, steps_for(name, calls))
    return distance(run(name, visited, starts(seed)), CLEAN[seed])


THREE = ("euler", "heun", "dpmpp_2m")
spaced = {
    (name, spacing): np.array([[error_at(name, spacing, calls, seed) for calls in BUDGETS] for seed in SEEDS])
    for name in THREE
    for spacing in SPACINGS
}
last_step = np.mean([distance(plain(WORLD)(TRUTH[seed], LOWEST), CLEAN[seed]) for seed in SEEDS])
figure, all_axes = plt.subplots(1, 3, figsize=(11.5, 3.8), layout="constrained", sharey=True)
for axes, name in zip(all_axes, THREE, strict=True):
    for spacing, colour in SPACINGS.items():
        axes.loglog(BUDGETS, spaced[name, spacing].mean(0), "o-", color=colour, ms=5, label=spacing)
    axes.axhline(last_step, color="0.6", ls=":", label="the last step alone")
    axes.set_xticks(BUDGETS, [str(calls) for calls in BUDGETS])
    axes.minorticks_off()
    axes.set(title=TITLES[name], xlabel="network calls")
all_axes[0].set_ylabel("distance from the clean truth")
all_axes[0].legend(loc="lower left")
plt.show()
for name in THREE:
    ratio = spaced[name, "uniform"] / spaced[name, "karras"]
    print(
        f"{TITLES[name]:10s} uniform / Karras:",
        *(f"{c} calls {v:.2f};" for c, v in zip(BUDGETS, ratio.mean(0), strict=True)),
    )
thirty = levels(SD, "euler", "uniform", 30)
before = run("dpmpp_2m", thirty[:-2], starts(0))
there = run("heun", karras_sigmas(FINE, thirty[-3], HIGHEST), starts(0))
after = distance(run("dpmpp_2m", thirty, starts(0)), CLEAN[0])
by_euler = plain(WORLD)(euler_step(before, plain(WORLD)(before, thirty[-3]), thirty[-3], LOWEST), LOWEST)
print(f"2M, 30 uniform levels: error {distance(before, there):.4f} before the jump, {after:.4f} at the end;", end=" ")
print(f"with the jump by Euler {distance(by_euler, CLEAN[0]):.4f}")

# %% [markdown]
# At 30 calls Karras's spacing is better than uniform for all three: a little for Euler and Heun, many times for 2M.
# The last is not all to Karras's credit. Uniform spacing ends in a jump from 0.18 to 0.029, in $\log\sigma$ over four
# times the step before, and most of 2M's error is made there, as the last line says: (04.5) extrapolates over it. Nor
# is Karras best everywhere. With 10 calls Heun does better with uniform levels, and 2M does better still with
# exponential ones. With 120 calls Heun's uniform line dips below the floor, because its own error and that of the last
# step have opposite signs there. And this is one world: its smallest detail is 0.25 wide. Data with finer detail wants
# more low levels. Spacing is a bet on where $x_0$ changes.
#
# ## 8. Are more steps better?
#
# "20 to 32 steps; more are not better; more are needed with strong guidance." Three measurements.
#
# **First, against each sampler's own run of 1000 steps**, which is how such advice is found. The distance keeps
# falling, at the rate of the order, for ever. But a network is never exact. Let ours be a mixture whose means are
# displaced by about 0.03 and whose parts are a little too wide: a model that has learnt the data imperfectly.
# **Against the truth** its error falls to the model's own, and stays. Beyond that point steps buy precision in the
# solution of the wrong equation.

# %%
shift = np.random.default_rng(5).standard_normal(WORLD.means.shape)
LEARNT = WORLD._replace(means=np.float32(WORLD.means + 0.03 * shift), spread=np.float32(0.26))
STEPS = (5, 10, 20) if fast() else (5, 10, 20, 32, 64, 128, 256)
MANY = 48 if fast() else 1000


def to_zero(steps):
    """Karras levels, and 0."""
    return levels(SD, "euler", "karras", steps)


own, off = {}, {}
for name in FIVE:
    ends = [[run(name, to_zero(n), starts(seed), LEARNT) for n in (*STEPS, MANY)] for seed in SEEDS]
    own[name] = np.array([[distance(end, each[-1]) for end in each[:-1]] for each in ends])
    off[name] = np.array([[distance(end, CLEAN[seed]) for end in each] for seed, each in zip(SEEDS, ends, strict=True)])
figure, both = plt.subplots(1, 2, figsize=(10.4, 4.4), layout="constrained")
for name in FIVE:
    both[0].loglog(STEPS, own[name].mean(0), "o-", color=COLOURS[name], ms=5, label=TITLES[name])
    both[1].loglog((*STEPS, MANY), off[name].mean(0), "o-", color=COLOURS[name], ms=5)
both[0].set(title=f"from its own run of {MANY} steps", xlabel="steps", ylabel="distance")
both[1].axhline(off["heun"][:, -1].mean(), color="0.6", ls=":")
both[1].text(MANY, off["heun"][:, -1].mean() * 0.97, "floor: the model's own error", color="0.45", va="top", ha="right")
both[1].set(title="from the truth", xlabel="steps", ylabel="distance", ylim=(0.015, None))
both[0].legend(loc="lower left")
plt.show()

# %% [markdown]
# DPM++ 2M is at the floor with 32 steps. Euler is still a tenth above it with 64. That is the true kernel of "more is
# not better": it is not worse either; it is the same. (Only an ancestral sampler gives *other* pictures with more
# steps, and one may happen to like an earlier one.)
#
# **Second, the guidance scale.** Guidance (lesson 08) replaces $x_0$ by $x_0^{u} + s\,(x_0^{c} - x_0^{u})$: the
# prediction for one part of the ring, pushed away from the prediction for all. The larger the scale $s$, the more the
# slope changes along the way, and the larger the error at equal steps.

# %%
WANTED = Mixture(WORLD.means[:1], WORLD.spread, np.ones(1))


def guided(world):
    """The guided denoiser of everything, of what is wanted, and a scale."""
    everything, wanted, scale = world
    return lambda x, sigma: guide(plain(everything)(x, sigma), plain(wanted)(x, sigma), scale)


SCALES = (1.0, 7.5) if fast() else (1.0, 2.0, 4.0, 7.5, 15.0)
guided_errors = []
for scale in SCALES:
    world = (WORLD, WANTED, np.float64(scale))
    ends = [run("dpmpp_2m", to_zero(n), starts(0), world, denoiser=guided) for n in (*STEPS, MANY)]
    guided_errors.append([distance(end, ends[-1]) for end in ends[:-1]])
figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
shades = plt.get_cmap("plasma")(np.linspace(0, 0.85, len(SCALES)))
for scale, line, colour in zip(SCALES, guided_errors, shades, strict=True):
    axes.loglog(STEPS, line, "o-", color=colour, ms=5, label=f"scale {scale:g}")
axes.axhline(off["heun"][:, -1].mean(), color="0.6", ls=":", label="the model's own error, as above")
axes.set_xticks(STEPS, [str(n) for n in STEPS])
axes.minorticks_off()
axes.set(xlabel="steps", ylabel=f"distance from {MANY} steps", title="DPM++ 2M under guidance")
axes.legend(loc="lower left")
plt.show()

# %% [markdown]
# **Third, a trained network**: the toybox's own model, which comes with the package. DPM++ 2M with Karras's levels,
# three pictures, two scales, each against a run of 160 steps. As a measure for latents: how far two of these pictures
# are from each other.

# %%
TOYS = ldm.load("toybox")
PROMPTS = ["a red cube", "a blue sphere", "a yellow cone"]
FEW, LONG = (5, 10, 20, 40), 160


def latents(steps, scale):
    """[N, 16, 16, 4]."""
    if fast():  # a fast run does without the network: numbers of no meaning
        return scale / steps + np.random.default_rng(0).standard_normal((len(PROMPTS), 16, 16, 4))
    options = {"sampler": "dpmpp_2m", "spacing": "karras", "output": "latents", "progress": False}
    return ldm.generate(TOYS, PROMPTS, steps=steps, guidance=scale, **options)


toys = {scale: {n: latents(n, scale) for n in (*FEW, LONG)} for scale in (2.0, 7.5)}


def apart_from_long(scale, steps):
    """[N]: distance from the long run, as a share of the distance between two pictures."""
    rms = lambda d: np.sqrt(np.mean(d**2, axis=(1, 2, 3)))
    end = toys[scale][LONG]
    return rms(toys[scale][steps] - end) / (rms(end - np.roll(end, 1, 0)).mean())


for scale in toys:
    for n in FEW:
        print(f"scale {scale:3.1f}, {n:3d} steps:", *(f"{100 * v:6.1f} %" for v in apart_from_long(scale, n)))

# %%
rows = np.concatenate([toys[scale][n][:1] for scale in toys for n in (*FEW, LONG)])
seen = rows[..., 0] if fast() else ldm.decode(TOYS, rows)
across = len(FEW) + 1
figure, grid = plt.subplots(2, across, figsize=(2.1 * across, 4.9), layout="constrained")
for i, axes in enumerate(grid.ravel()):
    steps_made, scale = (*FEW, LONG)[i % across], list(toys)[i // across]
    axes.imshow(seen[i])
    axes.set_title(f"{steps_made} steps", fontsize=11)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if i % across == 0:
        axes.set_ylabel(f"scale {scale:g}")
figure.suptitle(f"“{PROMPTS[0]}”, DPM++ 2M Karras")
plt.show()

# %% [markdown]
# With 20 steps the latents are within two per cent of their end at scale 2. At 7.5 they are about three times as far
# from it, and 5 steps do not make a picture at all: here too, strong guidance wants more steps. From 40 steps on
# little is gained, and no longer at the rate of the order. A network need not be as smooth in $\sigma$ as a formula,
# and float32 rounds; which of the two it is was not measured here.
#
# ## 9. Which sampler for which budget
#
# The error of the five samplers with Karras's levels to 0, in the exact world; a star marks the best. Read it as an
# order of preference, not as numbers for your data.

# %%
TABLE = (6, 10, 20) if fast() else (6, 10, 16, 20, 30, 50, 100)
table = {name: [np.mean([error_at(name, "karras", calls, seed) for seed in SEEDS]) for calls in TABLE] for name in FIVE}
best = np.min(list(table.values()), axis=0)
print(f"{'network calls':18s}", *(f"{calls:9d}" for calls in TABLE))
for name in FIVE:
    marks = ("*" if value == top else " " for value, top in zip(table[name], best, strict=True))
    print(f"{TITLES[name]:18s}", *(f"{value:8.4f}{mark}" for value, mark in zip(table[name], marks, strict=True)))
print(f"{'last step alone':18s}", *(f"{last_step:8.4f} " for _ in TABLE))

# %% [markdown]
# - **Up to 30 calls:** a multistep method, UniPC or DPM++ 2M. Nothing that calls twice a step comes near.
# - **10 and fewer:** the same. Heun makes too few steps to be of use; even Euler is better.
# - **50 and more:** 2M and UniPC are at the floor of the last step, midpoint and Heun arrive there by 100, and Euler
#   is still on its way. Differences at the floor mean nothing.
# - **An ancestral sampler** if variety is wanted and the number of steps is fixed. For a picture that stays while
#   steps are added: `noise="brownian"`.
#
# ## 10. Where the articles, or common belief, are wrong: in short
#
# | what is said | what is so |
# |---|---|
# | Karras's schedule ends at a little noise | it ends at 0, as all do; 14 of 30 levels, not 11, are below 1 |
# | more steps do not make better pictures | true once the sampler's error is below the model's; not worse either |
# | ancestral samplers never converge | with fresh noise at each step; along one Brownian path they do, with order 1 |
# | a sampler is a distribution of noise over the steps | that is the spacing; a sampler is the step. Any two combine |
#
# ## 11. What was measured
#
# The ranges of the orders are the theory's: 1 and 2 within a tenth, and 1 within 0.3 for an SDE with additive noise.
# The other ranges are round numbers, set after first runs of a smaller kind; the world's width and the 30 calls of
# Karras's claim were chosen then too. At 10 and at 120 calls that claim would not hold of Heun, as section 7 shows.

# %%
claim(
    "Euler's order of convergence on a mixture",
    slopes["euler"],
    0.9,
    1.1,
    source="Karras et al. 2022, section 3; arXiv:2206.00364",
    floor=0,
    unit="(slope)",
)

# %%
claim(
    "Heun's order of convergence on a mixture",
    slopes["heun"],
    1.8,
    2.2,
    source="Karras et al. 2022, section 3; arXiv:2206.00364",
    floor=0,
    unit="(slope)",
)

# %%
claim(
    "DPM-Solver++(2M)'s order of convergence on a mixture",
    slopes["dpmpp_2m"],
    1.8,
    2.2,
    source="Lu et al. 2022, section 4.2; arXiv:2211.01095",
    floor=0,
    unit="(slope)",
)

# %%
ode = float(np.mean(moved["euler", "none"][:, -1] / apart))
claim(
    f"Euler a, fresh noise: change from {DOUBLED[-1]} to {2 * DOUBLED[-1]} steps, of the distance of independent draws",
    moved["euler_a", "fresh"][:, -1] / apart,
    0.5,
    1.1,
    source="a web article; k-diffusion's samplers",
    floor=ode,
    row=48,
)

# %%
path_order = -np.polyfit(np.log2(DOUBLED[-3:]), np.log2(moved["euler_a", "path"][:, -3:].T), 1)[0]
claim(
    "Euler a along one Brownian path: order at which it settles",
    path_order,
    0.7,
    1.3,
    source="Li et al. 2020, section 4; arXiv:2001.01328",
    floor=0,
    unit="(slope)",
    row=48,
)

# %%
below = {
    name: np.array([np.sum(levels(SD, "euler", name, n)[:-1] < 1) for n in (30, 60, 120)])
    for name in ("karras", "uniform")
}
print("steps below sigma = 1 of 30, 60 and 120:", {name: counts.tolist() for name, counts in below.items()})
claim(
    "steps below sigma = 1, Karras over uniform (30, 60 and 120 steps in place of seeds; 14 / 11 at 30)",
    below["karras"] / below["uniform"],
    1.2,
    1.35,
    source="Karras et al. 2022, eq. 5",
    floor=1,
    row=49,
)

# %%
where = BUDGETS.index(10 if fast() else 30)
ratios = np.array([(spaced[name, "uniform"] / spaced[name, "karras"])[:, where] for name in THREE])
claim(
    "error of uniform over Karras's levels at 30 calls, least of Euler, Heun, 2M (not so for Heun at 10 and 120 calls)",
    ratios.min(0),
    1.0,
    source="Karras et al. 2022, appendix D.1",
    floor=1,
    row=49,
)

# %%
claim(
    f"DPM++ 2M with an imperfect model: error to the truth with {20 if fast() else 32} steps over that with {MANY}",
    off["dpmpp_2m"][:, STEPS.index(20 if fast() else 32)] / off["dpmpp_2m"][:, -1],
    0.9,
    1.1,
    source="a web article: 20 to 32 steps, and more is not better",
    floor=1,
    row=47,
)

# %%
claim(
    f"the toybox's model, DPM++ 2M: distance of 20 steps from {LONG}, of that between pictures (one per picture)",
    apart_from_long(2.0, 20),
    0.0,
    0.05,
    source="a web article: 20 to 32 steps",
    floor=1,
    row=47,
)

# %%
claim(
    "the same distance at guidance scale 7.5 over scale 2, 20 steps (one per picture)",
    apart_from_long(7.5, 20) / apart_from_long(2.0, 20),
    1.0,
    source="a web article: steps grow with the scale",
    floor=1,
    row=47,
)


# %%
def conventions_apart(seed):
    """Of two ways to write guidance, at w from -1 to 14: largest relative difference; then with s = w, the floor."""
    given, wanted = np.random.default_rng(seed).standard_normal((2, 64, 2), np.float32)  # for nothing; for the prompt
    w = np.linspace(-1, 14, 16, dtype=np.float32)[:, None, None]
    paper = (1 + w) * wanted - w * given
    return [float(np.abs(guide(given, wanted, s) - paper).max() / np.abs(paper).max()) for s in (scale_from_w(w), w)]


apart_by_convention = np.array([conventions_apart(seed) for seed in SEEDS])
claim(
    "(1 + w) eps(z, c) - w eps(z) is the scale s = 1 + w: largest relative difference (floor: s = w)",
    apart_by_convention[:, 0],
    0.0,
    1e-6,
    source="Ho & Salimans 2022, arXiv:2207.12598, eq. 6; two articles behind this course write one form each",
    floor=apart_by_convention[:, 1].min(),
    row=2,
)

# %% [markdown]
# ## Further reading
#
# - Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv:2206.00364: sigma
#   space, Heun, the spacing, and when noise helps.
# - Lu et al. 2022, "DPM-Solver", arXiv:2206.00927, and "DPM-Solver++", arXiv:2211.01095: the exact part of the
#   solution, 2S and 2M.
# - Zhao et al. 2023, "UniPC", arXiv:2302.04867: a corrector at no cost.
# - Song et al. 2021, "Denoising Diffusion Implicit Models", arXiv:2010.02502: eq. 12 and 16, the split into down and
#   up.
# - Li et al. 2020, "Scalable Gradients for Stochastic Differential Equations", arXiv:2001.01328: the Brownian tree.
# - Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv:2305.08891, and Sabour et
#   al. 2024, "Align Your Steps", arXiv:2404.14507: more on spacing.
# - In the library: `ldm/samplers/one_step.py`, `ldm/samplers/multistep.py`, `ldm/spacing.py`.
#   `bench/sampler_errors.py` measures all sixteen samplers.
