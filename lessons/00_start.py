# %% [markdown]
# # 00. Start: arrays, keys, jit and scan; the toybox; how exercises work
#
# **Measured here.** How long a loop takes to compile, written as a Python loop and as a loop of JAX; whether a
# picture's noise depends on the batch that the picture is in; how many fresh pictures of the toybox its recogniser
# reads rightly.
#
# **Time.** 3 minutes on 2 CPU cores, and about as long on a GPU, since most of it is compiling; 60 to 90 minutes to
# read and to do.
#
# **The claim in one sentence.** A loop of 64 steps compiles in the same time as one of 4 (ratio between 0.5 and 2)
# where an unrolled loop takes some 10 to 16 times as long, because `scan` is compiled to a single loop of the machine
# (the documentation of `jax.lax.scan`; JAX is described in Frostig et al. 2018).
#
# **Before this.** Python, and some NumPy: shapes, broadcasting, indexing. No JAX.

# %%
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from ldm import mixture
from ldm.course import check, claim, fast
from ldm.models.layers import upsample_nearest
from ldm.samplers.multistep import no_history, remember
from ldm.samplers.noise import START, image_keys, unit_noise
from ldm.samplers.one_step import euler_step
from ldm.toybox import recogniser, sheets
from ldm.toybox.captions import PLAIN, VARIED, relations
from ldm.toybox.dataset import Dataset, batches, example, pictures
from ldm.toybox.parsing import parse
from ldm.toybox.scene import COLOURS, KINDS, MATERIALS, SIZES, stack, take, view
from ldm.toybox.world import render, to_uint8

INK, BLUE, RED, GRAY = "#22262e", "#0072b2", "#d55e00", "#9aa0a8"
plt.rcParams |= {"figure.dpi": 100, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}


def row(images, titles, size=1.6, ticks=False):
    """Pictures side by side; with the numbers of their first and last pixels."""
    figure, axes = plt.subplots(1, len(images), figsize=(size * len(images), size + 0.35), squeeze=False)
    for axis, image, title in zip(axes[0], images, titles, strict=True):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.set(xticks=[0, image.shape[1] - 1], yticks=[0, image.shape[0] - 1])
        axis.spines[:].set_visible(False)
        axis.axis(ticks)
    figure.tight_layout()


# %% [markdown]
# ## 1. A picture is an array
#
# Every picture of this course is an array of shape $[H, W, C]$: rows, columns, channels, with row 0 at the top. A batch
# is $[B, H, W, C]$. The values are red, green and blue as a screen shows them (sRGB), in $[0, 1]$, in float32.
#
# The pictures come from **the toybox**, a small world of solids on a table that this library draws by itself. Picture
# `index` of a seed is always the same one: nothing has to be downloaded, and there is no end of fresh ones.

# %%
data = Dataset(seed=1, split="test", wording=PLAIN)  # PLAIN: captions that say everything, in the plain words
batch = pictures(range(8), data)
print(batch["picture"].shape, batch["picture"].dtype, batch["picture"].min(), batch["picture"].max())
row(batch["picture"], [f"picture {i}" for i in batch["index"]], 1.35)
plt.show()

# %% [markdown]
# A file of bytes has 256 levels. The byte of a value $v$ is the level nearest to it,
#
# $$ b(v) = \lfloor 255\, v + \tfrac{1}{2} \rfloor. \tag{00.1} $$
#
# The half is easily forgotten: a cast to `uint8` cuts the fraction off. Then a picture becomes darker by half a level
# on average. Worse, bytes do not come back. Diffusion models work with pictures in $[-1, 1]$; on the way there and back
# some values end a little below their level, and the cast takes a whole level from them.

# %%
levels = np.arange(256)
there_and_back = ((2 * (levels / 255) - 1).astype(np.float32) + 1) / 2
cut = (255 * there_and_back).astype(np.uint8)
rounded = to_uint8(there_and_back)
print(f"levels that change on the way to [-1, 1] and back: {(cut != levels).sum()} of 256 if the fraction is cut off,")
print(f"                                                   {(rounded != levels).sum()} of 256 if rounded")
values = np.asarray(batch["picture"])
for name, made in (("cut off", (255 * values).astype(np.uint8)), ("rounded", to_uint8(values))):
    print(f"{name}: pictures change by {np.mean(made - 255 * values):+.3f} levels on average")

# %% [markdown]
# ## 2. How the exercises work
#
# An exercise is a function of the library that you write again. The file `lessons/exercises/e00_start.py` has its
# signature and its docstring; you write the body and run
#
#     pytest tests/test_00_start.py
#
# Each check runs twice: as `[ldm]` with the library's function, which passes, and as `[yours]`. The end of the report
# says what is done and what comes next; `--hints 1` shows the first hint of each exercise that is not done, `--hints 2`
# two. A check can also be called from a notebook, with any function. There are three answers. A function that is not
# begun is **still to write**:


# %%
def nothing_yet(pictures):
    """The stub, as the file has it."""
    raise NotImplementedError("00.1: roughly 1 line")


check("00.1", nothing_yet)

# %% [markdown]
# A function that is wrong is told what should hold, and the numbers. If its answers are those of a **mistake that is
# known**, the mistake is named:


# %%
def cut_off(pictures):
    """A wrong answer: this is the cast of section 1."""
    return (np.asarray(pictures) * 255).astype(np.uint8)


check("00.1", cut_off)

# %% [markdown]
# And the right one is **done**: each line below is a property that a check has proven of it. Here it is the library's
# own; your file must not import that, and a file that does is refused.

# %%
check("00.1", to_uint8)

# %% [markdown]
# **Exercise 00.1, `to_uint8`** (5 minutes). Equation (00.1) for a whole batch. Write it in
# `lessons/exercises/e00_start.py`, run `pytest tests/test_00_start.py`. Expected: the two lines above, with your
# function.

# %% [markdown]
# ## 3. Shapes, broadcasting, reshaping
#
# Two arrays of different shapes can be combined if each axis has the same length in both, or length 1 in one: that one
# is repeated without being copied. `None` in an index makes a new axis of length 1. A reshape moves nothing: the
# numbers keep their order, the last axis running fastest. So where a new axis is placed decides what a reshape makes of
# it.
#
# The network of lesson 07 doubles the size of its features by making a 2 x 2 block of each pixel. For
# $h$ of shape $[B, H, W, C]$ and the result $u$ of shape $[B, 2H, 2W, C]$,
#
# $$ u_{b,\,i,\,j,\,c} = h_{b,\,\lfloor i/2 \rfloor,\,\lfloor j/2 \rfloor,\,c}. \tag{00.2} $$

# %%
rows, columns = np.mgrid[:6, :6] / 5
h = jnp.asarray(np.stack([rows, columns, 1 - rows], -1) * (0.4 + 0.6 * (rows + columns < 1.1))[..., None])[None]
tiled = jnp.tile(h, (1, 2, 2, 1))
B, H, W, C = h.shape
mixed = jnp.broadcast_to(h[:, :, :, None, None], (B, H, W, 2, 2, C)).reshape(B, 2 * H, 2 * W, C)
names = ["h, 6 x 6", "wanted, 12 x 12", "jnp.tile", "copies in the wrong place"]
row([h[0], upsample_nearest(h)[0], tiled[0], mixed[0]], names, 2.1, ticks=True)
plt.show()

# %% [markdown]
# **Exercise 00.2, `upsample_nearest`** (10 minutes). Equation (00.2) by broadcasting and one reshape. Write it in
# `lessons/exercises/e00_start.py`, run `pytest tests/test_00_start.py`. Expected: the second picture above. The third
# and the fourth are known mistakes. When a check fails, the report names a file in which your picture stands beside the
# target.

# %% [markdown]
# ## 4. Pure functions, and keys
#
# JAX transforms functions: it differentiates them, applies them to batches, compiles them. That is sound only for
# functions that are **pure**: the result follows from the arguments, and nothing else is read or changed. A random
# number generator that moves on by itself is not pure. So in JAX random numbers are a function of a **key**, and the
# same key gives the same numbers:
#
# $$ z = \mathrm{normal}(k, \text{shape}), \qquad k' = \mathrm{fold\_in}(k, n). \tag{00.3} $$
#
# `fold_in` makes a new key of a key $k$ and a whole number $n$. Keys of different $n$ behave as independent ones. Under
# both lies a block cipher that is applied to a counter (Threefry; Salmon et al. 2011): there is no state, so any number
# of the stream can be had without those before it.

# %%
key = jax.random.key(0)
print("the same key twice:   ", jax.random.normal(key, 3), jax.random.normal(key, 3))
print("fold_in(key, 0 and 1):", *(jax.random.normal(jax.random.fold_in(key, n), 3) for n in (0, 1)))

# %% [markdown]
# A sampler needs noise for each image of a batch, at each step. Call $s$ the seed, $i$ the index of an image, $k$ the
# step. The library's rule is
#
# $$ z_{s,i,k} = \mathrm{normal}\big(\mathrm{fold\_in}(\mathrm{fold\_in}(\mathrm{key}(s),\, i),\, k)\big). \tag{00.4} $$
#
# **A picture must not depend on its batch.** If picture 5 of a seed is good, you want it again: alone, larger, from a
# machine with room for a batch of 2, or from eight devices that hold a few pictures each. By (00.4) the noise of image
# $i$ knows nothing of the other images. Compare one draw for the whole batch from one key: there an image's noise
# belongs to the *place* that it happens to have.

# %%
shape, wanted = (8, 8, 3), 5
lists = [[5], [4, 5, 6, 7], [9, 2, 0, 5]]


def noise_by_image(seed, indices):
    """Noise [B, 8, 8, 3] by equation (00.4), as the library starts every sampler."""
    return unit_noise(image_keys(np.uint32(seed), jnp.array(indices)), START, shape)


def noise_by_place(seed, indices):
    """Noise [B, 8, 8, 3] of one draw for the whole batch."""
    return jax.random.normal(jax.random.key(seed), (len(indices), *shape))


figure, axes = plt.subplots(2, len(lists), figsize=(5.9, 3.9))
for r, (name, draw) in enumerate((("a key per image", noise_by_image), ("one draw per batch", noise_by_place))):
    for axis, indices in zip(axes[r], lists, strict=True):
        axis.imshow(np.clip(0.5 + draw(0, indices)[indices.index(wanted)] / 4, 0, 1))
        axis.set(xticks=[], yticks=[], title=f"in {indices}" if r == 0 else "")
        axis.title.set_fontsize(9)
        axis.spines[:].set_visible(False)
    axes[r, 0].set_ylabel(name)
figure.suptitle("Noise of image 5, in three batches of images")
figure.tight_layout()
plt.show()

# %%
seeds = (0, 1, 2)


def largest_change(draw, seed):
    """How much the noise of image 5 changes at most when its batch does."""
    drawn = [np.asarray(draw(seed, indices)[indices.index(wanted)]) for indices in lists]
    return max(float(np.abs(one - drawn[0]).max()) for one in drawn)


by_image = [largest_change(noise_by_image, seed) for seed in seeds]
by_place = [largest_change(noise_by_place, seed) for seed in seeds]
print("largest change of a number of image 5, over the batches, for three seeds")
print("  a key per image:   ", by_image)
print("  one draw per batch:", np.round(by_place, 2))

# %% [markdown]
# **Exercise 00.3, `image_keys`** (10 minutes), and **exercise 00.4, `unit_noise`** (10 minutes). The two halves of
# (00.4): keys of images, then noise of a step. A step of some samplers has two parts that need noise of their own; part
# 1 and higher is folded in after the step. Write them in `lessons/exercises/e00_start.py`, run
# `pytest tests/test_00_start.py`. Expected: the upper row of the figure, one picture three times, and the numbers
# below.

# %%
keys = image_keys(np.uint32(0), jnp.array([5, 6]))
print("keys of images 5 and 6 of seed 0:", jax.random.key_data(keys).tolist())
print("their noise at step 3, [2, 1, 2, 1]:", unit_noise(keys, 3, (1, 2, 1)).ravel())

# %% [markdown]
# ## 5. Pytrees
#
# A scene is thirteen arrays, four of them in a camera inside of it. JAX takes such nested containers as they are: a
# **pytree** is tuples, lists, dictionaries and registered classes, and its *leaves* are arrays. Every transformation of
# JAX accepts pytrees, and `jax.tree.map(f, a, b)` applies `f` to the leaves of `a` and `b` that belong together.

# %%
one = example(2, data).scene
for path, leaf in jax.tree_util.tree_leaves_with_path(one):
    numbers = " ".join(np.array2string(np.asarray(leaf), precision=2, separator=", ", threshold=6, edgeitems=2).split())
    print(f"{jax.tree_util.keystr(path):18s} {leaf.dtype!s:8s} {list(leaf.shape)!s:8s} {numbers}")

# %% [markdown]
# A batch of scenes is again one `Scene`, whose leaves have a first axis more. `stack` makes it and `take` undoes it.
# Below eight scenes that differ in one leaf, the azimuth of the camera, are stacked and drawn by one call.

# %%
turns = [replace(one, camera=view(45.0 * i, 32, 14.0)) for i in range(8)]
around = stack(turns)
print(
    "kind of one scene",
    one.kind.shape,
    "and of the batch",
    around.kind.shape,
    "; azimuths",
    around.camera.azimuth.shape,
)
print("take(batch, 3) is scene 3:", all(jax.tree.leaves(jax.tree.map(np.array_equal, take(around, 3), turns[3]))))
row(np.asarray(render(around)), [f"{45 * i}°" for i in range(8)], 1.35)
plt.show()

# %% [markdown]
# **Exercise 00.5, `stack`** (10 minutes). A list of scenes to one batch. Write it in `lessons/exercises/e00_start.py`,
# run `pytest tests/test_00_start.py`. Expected: the line "take(batch, 3) is scene 3: True" for your batch, and a
# different camera for each scene.

# %% [markdown]
# ## 6. vmap: written for one, applied to many
#
# `jax.vmap(f)` makes of a function of one thing a function of a batch of them, without a loop: it rewrites each
# operation for arrays with one axis more. Together with `jax.grad` it says much in few words. The density of a mixture
# of Gaussians at noise level $\sigma$ is a formula in this library, $\log p(x; \sigma)$; its gradient by $x$, the
# *score*, is another one. The first can be differentiated at one point, and mapped over all points:

# %%
ring = mixture.ring()  # eight Gaussians on a circle, in the plane: [K=8, D=2]
points = np.random.default_rng(1).standard_normal((512, 2), np.float32)
by_autodiff = jax.vmap(jax.grad(lambda x: mixture.log_density(ring, x, 0.3)))(points)
print("shape:", by_autodiff.shape)
print("largest difference from the closed form:", jnp.abs(by_autodiff - mixture.score(ring, points, 0.3)).max())

# %% [markdown]
# ## 7. jit, and what it compiles again
#
# `jax.jit(f)` runs `f` once with *tracers* in the place of arrays. A tracer has a shape and a dtype, but no values.
# What the operations do to it is written down as a program, and XLA compiles that. The program is kept, and used again
# for arguments of the same shapes and dtypes. Python itself, and what it prints or appends, runs **while tracing
# only**. That makes compilations easy to count:

# %%
traced = []


@jax.jit
def scaled(x, by):
    """x times by; says when it is traced."""
    traced.append(x.shape)
    return x * by


x = jnp.ones(3)
calls = {
    "first call": (x, 2.0),
    "other values": (x + 1, 3.5),
    "another shape": (jnp.ones(4), 2.0),
    "another dtype": (x.astype(jnp.bfloat16), 2.0),
    "an int for the float": (x, 2),
    "an array for the Python float": (x, jnp.float32(2)),
    "the first call again": (x, 2.0),
}
for name, arguments in calls.items():
    before = len(traced)
    scaled(*arguments)
    print(f"{name:30s} {'compiled' if len(traced) > before else 'used again'}")

# %% [markdown]
# The last two compilations surprise many: a Python float adapts to the dtype of the array beside it (it is "weakly
# typed"), an int is not a float, and an array has a dtype of its own; so these are three different programs.
#
# Two consequences. A number that you want to change between runs must be an *argument*: the seed, the number of steps,
# the guidance of a sampler. A number that the function reads from outside is compiled in as it was then, and later
# changes go unseen. And a function is only as fast as jit says if it is called again: the first call pays for the
# compilation. JAX also returns before the work is done, so a clock must wait for it (`block_until_ready`).

# %%
factor = 2.0
outside = jax.jit(lambda x: factor * x)
before = float(outside(1.0))
factor = 100.0
print(f"factor 2 gave {before:g}; after factor = 100 it still gives {float(outside(1.0)):g}")

walk = jax.jit(lambda x: mixture.langevin(lambda x: mixture.score(ring, x, 0.3), jax.random.key(2), x, 1e-3, 100))
for call in ("first", "second", "third"):
    begun = time.perf_counter()
    jax.block_until_ready(walk(points))
    print(f"{call:6s} call: {1e3 * (time.perf_counter() - begun):7.1f} ms")

# %% [markdown]
# ## 8. Loops: unrolled, or one loop of the machine
#
# A sampler is a loop: from noise level $\sigma_0$ down to $\sigma_N = 0$, each step moves the points a little. One step
# of the simplest, Euler's, is the following. Here $\hat{x}_0(x, \sigma)$ is the best guess of the clean point; for a
# mixture it is a formula, `mixture.denoise`.
#
# $$ x_{n+1} = x_n + (\sigma_{n+1} - \sigma_n)\, \frac{x_n - \hat{x}_0(x_n, \sigma_n)}{\sigma_n}. \tag{00.5} $$
#
# Lesson 03 derives it. Here it matters how the loop is written. A Python loop is run while tracing: $N$ steps leave $N$
# copies of the step in the program. `lax.fori_loop` and `lax.scan` trace the step **once**, and leave one loop. What a
# step hands to the next is the *carry*; its shapes and dtypes must stay the same.


# %%
def euler(ring):
    """A step from one level to the next, (00.5), for a mixture."""
    return lambda x, sigma, sigma_next: euler_step(x, mixture.denoise(ring, x, sigma), sigma, sigma_next)


def unrolled(step, x, sigmas):
    """Steps as a Python loop."""
    for i in range(len(sigmas) - 1):
        x = step(x, sigmas[i], sigmas[i + 1])
    return x


def looped(step, x, sigmas):
    """The same as one loop: the carry is x."""
    return jax.lax.fori_loop(0, len(sigmas) - 1, lambda i, x: step(x, sigmas[i], sigmas[i + 1]), x)


def scanned(step, x, sigmas):
    """The same, and every state on the way: [N+1, B, 2]."""

    def body(x, pair):
        after = step(x, *pair)
        return after, after

    end, states = jax.lax.scan(body, x, (sigmas[:-1], sigmas[1:]))
    return end, jnp.concatenate([x[None], states])


def sigmas(steps):
    """Noise levels from 10 to 0, evenly in the cube root: [N+1]."""
    return np.linspace(10 ** (1 / 3), 0, steps + 1, dtype=np.float32) ** 3


start = 10 * jax.random.normal(jax.random.key(3), (512, 2))
ends = [jax.jit(run, static_argnums=0)(euler(ring), start, sigmas(16)) for run in (unrolled, looped)]
end, states = jax.jit(scanned, static_argnums=0)(euler(ring), start, sigmas(16))
states = np.asarray(states)
print("largest difference between the three:", max(float(jnp.abs(other - end).max()) for other in ends))

# %% [markdown]
# What `scan` kept of each step can be drawn: noise becomes the eight Gaussians, whose weights grow around the circle.
# This is the whole of a diffusion sampler; in later lessons the formula for $\hat{x}_0$ is replaced by a network.

# %%
figure, axes = plt.subplots(1, 5, figsize=(11, 2.7))
for axis, n in zip(axes, (0, 5, 9, 12, 16), strict=True):
    width = 1.6 + 2.4 * float(sigmas(16)[n])
    axis.scatter(*states[n].T, s=3, color=BLUE, alpha=0.6, linewidths=0)
    axis.scatter(*ring.means.T, s=26, facecolors="none", edgecolors=RED, linewidths=1)
    axis.set(xlim=(-width, width), ylim=(-width, width), aspect="equal", title=f"step {n}, σ = {sigmas(16)[n]:.2f}")
    axis.tick_params(labelsize=8)
figure.suptitle("512 points on their way from noise to the mixture (circles: its means). Axes shrink with σ.", y=1.02)
figure.tight_layout()
plt.show()

# %% [markdown]
# Now the time to compile. With $N$ steps of $c$ operations each, an unrolled program has about $c N$ operations, a loop
# $c$, and compiling takes time roughly in proportion:
#
# $$ t_\text{unrolled}(N) \approx a + b\,N, \qquad t_\text{loop}(N) \approx a + b. \tag{00.6} $$
#
# The ratio of the times at 64 and at 4 steps is then up to 16 for the one and 1 for the other. The program's length,
# and the seconds of processor time, for three mixtures of different radius so that nothing is compiled before:


# %%
def seconds(run, radius, steps):
    """CPU seconds of one compilation, tracing included: other programs on the machine do not count."""
    step = euler(mixture.ring(radius=radius))
    begun = time.process_time()
    jax.jit(lambda x, s: run(step, x, s)).lower(start, sigmas(steps)).compile()
    return time.process_time() - begun


lengths = (4, 8) if fast() else (4, 8, 16, 32, 64)
for n in (lengths[0], lengths[-1]):
    texts = [
        jax.jit(run, static_argnums=0).lower(euler(ring), start, sigmas(n)).as_text() for run in (unrolled, looped)
    ]
    counts = [len(text.splitlines()) for text in texts]
    print(f"lines of the program for {n:2d} steps: unrolled {counts[0]:5d}, loop {counts[1]:4d}")

radii = (1.0, 1.25) if fast() else (1.0, 1.25, 1.5)
runs = {"unrolled": unrolled, "fori_loop": looped, "scan": scanned}
times = {name: np.full((len(radii), len(lengths)), np.inf) for name in runs}  # the shortest of some compilations
for name, run in runs.items():
    for _ in range(1 if fast() or name == "unrolled" else 3):
        for r, radius in enumerate(radii):
            times[name][r] = np.minimum(times[name][r], [seconds(run, radius, n) for n in lengths])
ratios = {name: taken[:, -1] / taken[:, 0] for name, taken in times.items()}
for name, taken in times.items():
    print(
        f"{name:9s} {lengths[0]} steps {taken[:, 0].mean():.2f} s, {lengths[-1]} steps {taken[:, -1].mean():.2f} s:",
        end=" ",
    )
    print("ratios", np.round(ratios[name], 2))

# %%
figure, axis = plt.subplots(figsize=(6.4, 3.8))
for (name, taken), colour, mark in zip(times.items(), (RED, BLUE, INK), "os^", strict=True):
    axis.plot(lengths, taken.mean(0), mark + "-", color=colour, label=name, markersize=5)
    axis.fill_between(lengths, taken.min(0), taken.max(0), color=colour, alpha=0.15, linewidth=0)
line = times["unrolled"].mean(0)[0] * np.array(lengths) / lengths[0]
axis.plot(lengths, line, ":", color=GRAY, label="in proportion to the steps")
axis.set(xscale="log", yscale="log", xlabel="steps of the loop", ylabel="CPU seconds to compile", xticks=lengths)
axis.set_xticklabels(lengths)
axis.set_yticks([0.1, 0.2, 0.5, 1, 2, 5], ["0.1", "0.2", "0.5", "1", "2", "5"])
axis.minorticks_off()
axis.legend(frameon=False)
axis.set_title("A loop of JAX compiles in the same time for any number of steps", fontsize=10)
figure.tight_layout()
plt.show()

# %% [markdown]
# The step of a network has thousands of operations where this one has some twenty, so every sampler of the library is
# one `fori_loop` (`ldm/samplers/loop.py`). The price is the carry. A sampler that uses its last predictions cannot
# append them to a list, because the carry would grow, and JAX refuses that. It keeps a fixed number of them and pushes
# the oldest out:

# %%
try:
    jax.lax.fori_loop(0, 3, lambda i, kept: jnp.concatenate([jnp.ones(1), kept]), jnp.zeros(3))
except TypeError as error:
    print(str(error).splitlines()[2])

past = no_history(jnp.zeros((1, 1, 1, 1)))
for n, sigma in enumerate((9.0, 4.0, 1.0, 0.3)):
    past = remember(past, jnp.full((1, 1, 1, 1), n + 1.0), jnp.zeros((1, 1, 1, 1)), jnp.float32(sigma))
    print(f"after step {n + 1}: states {past.x.ravel()}, levels {past.sigma}")

# %% [markdown]
# **Exercise 00.6, `remember`** (10 minutes). The history of a sampler, one step later: its three fields are pushed in
# the same way. A level of infinity says that there was no such step. Write it in `lessons/exercises/e00_start.py`, run
# `pytest tests/test_00_start.py`. Expected: the four lines above.

# %% [markdown]
# ## 9. The toybox: pictures whose truth is known
#
# Most claims on image models are hard to test because nobody knows what is in the pictures. In the toybox everything is
# known, because the renderer drew it: one to three toys of seven kinds, eight colours, two sizes and two materials, on
# a table, with a lamp and a camera. A **caption** is a true sentence about a scene. A relation such as "to the left of"
# is said only where the camera sees it clearly. Captions can be read back: `parse` gives the meaning of a sentence.

# %%
scene, caption = example(2, data)
print("caption: ", caption)
print("varied:  ", example(2, replace(data, wording=VARIED)).caption)
meaning = parse(caption)
for toy in meaning.descriptions:
    print("meaning: ", toy)
print("relations said:", meaning.relations)
print("all that are clear:", relations(scene))

# %% [markdown]
# For every picture the library also has the truth of each condition that later lessons use: boxes and masks of the toys
# (lessons 07 and 13), depth, normals and edges (lesson 12), the keypoints of faces (lesson 13). They are computed with
# the renderer's own rays, so a mask ends exactly where its toy does.

# %%
if not fast():  # large pictures: some seconds
    shown = [sheets.showcase(toys, data) for toys in (2, 3)]
    sheet = sheets.truth_sheet(shown, size=160)
    figure = plt.figure(figsize=(sheet.width / 100, sheet.height / 100))
    figure.add_axes([0, 0, 1, 1]).imshow(sheet)
    plt.axis("off")
    plt.show()

# %% [markdown]
# ## 10. The examiner
#
# Does a model that was asked for "a red cube to the left of a blue sphere" draw that? To answer this for thousands of
# samples there is the **recogniser**, a small convolutional network. Toys are the peaks of a map of centres (Zhou et
# al. 2019); for each it says kind, colour, size, material, box and depth. It can also refuse: a picture may be
# **unreadable**. An accuracy is worth little without that rate beside it, since an examiner that refuses every hard
# picture looks perfect on the rest. Here a refused picture counts as wrong.

# %%
readings = recogniser.read(np.asarray(batch["picture"]))
words = lambda toy: f"{SIZES[toy.size]} {MATERIALS[toy.material]}\n{COLOURS[toy.colour]} {KINDS[toy.kind]}"
figure, axes = plt.subplots(2, 4, figsize=(10.4, 5.6))
inks = ("#0072b2", "#d55e00", "#00916e")
for axis, picture, reading in zip(axes.ravel(), batch["picture"], readings, strict=True):
    axis.imshow(picture, extent=(0, 1, 1, 0))
    for toy, ink in zip(reading.toys, inks, strict=False):
        x0, y0, x1, y1 = toy.box
        axis.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=ink, linewidth=2))
    small = 8 if len(reading.toys) < 3 else 6.3
    for i, (toy, ink) in enumerate(zip(reading.toys, inks, strict=False)):
        axis.text((i + 0.5) / len(reading.toys), 1.03, words(toy), color=ink, fontsize=small, ha="center", va="top")
    axis.axis("off")
figure.suptitle("What the recogniser reads in the eight pictures of section 1", y=0.98)
figure.subplots_adjust(left=0.01, right=0.99, top=0.92, bottom=0.09, wspace=0.05, hspace=0.25)
plt.show()

# %% [markdown]
# `agrees(parse(caption), reading)` is the question that all later lessons ask. With full captions it is strict: the
# right number of toys, four attributes of each, and every relation that is said. For a picture to count, all must be
# right.
#
# How good is it? Fresh scenes, which it was not trained on, of three seeds with 64 pictures each. Two floors:
#
# - **Shuffled captions.** The same readings held to the captions of other pictures: what agreement by chance would be.
# - **Guessing.** The chance to guess even one toy: $\frac{1}{6} \cdot \frac{1}{8} \cdot \frac{1}{2} \cdot \frac{1}{2}
#   = 0.5\,\%$. (Six kinds: the handset is in no ordinary scene.)
#
# The range was set before measuring. The recogniser's card reports 96.3 % of whole pictures right; the standard
# deviation of a share of 64 is 2.4 points, and relations near a margin may cost a point or two. So 87 % to 100 %.

# %%
count = 8 if fast() else 64
right, shuffled, unreadable = [], [], []
for seed in (101, 102, 103):
    drawn = list(batches(range(count), 8, Dataset(seed=seed, split="test", wording=PLAIN)))  # eights: one program
    said = [parse(text) for part in drawn for text in part["caption"]]
    seen = recogniser.read(np.concatenate([part["picture"] for part in drawn]))
    agree = lambda meanings, readings: np.mean(
        [recogniser.agrees(m, r) for m, r in zip(meanings, readings, strict=True)]
    )
    right.append(agree(said, seen))
    shuffled.append(np.mean([agree(np.roll(np.array(said, object), k), seen) for k in range(1, count)]))
    unreadable.append(np.mean([not reading.readable for reading in seen]))
    print(
        f"seed {seed}: right {right[-1]:6.1%}, shuffled captions {shuffled[-1]:5.2%}, unreadable {unreadable[-1]:.1%}"
    )

noise_pictures = np.random.default_rng(0).random((count, 64, 64, 3), np.float32)
blended = np.concatenate([part["picture"] for part in drawn])
blended = (blended + blended[::-1]) / 2  # ghosts: each picture with another one shining through
refused = [np.mean([not r.readable for r in recogniser.read(bad)]) for bad in (noise_pictures, blended)]
print(
    f"of pictures that show nothing it calls unreadable: {refused[0]:.0%} of noise, {refused[1]:.0%} of blends of two"
)

# %%
figure, axis = plt.subplots(figsize=(7.6, 3.2))
place = np.arange(3)
bars = (("own captions", right, BLUE), ("shuffled (floor)", shuffled, RED), ("unreadable", unreadable, GRAY))
for i, (name, shares, colour) in enumerate(bars):
    drawn_bars = axis.bar(place + 0.27 * (i - 1), 100 * np.array(shares), 0.25, color=colour, label=name)
    axis.bar_label(drawn_bars, fmt="%.1f", fontsize=8, padding=2)
axis.axhspan(87, 100, color=BLUE, alpha=0.1, linewidth=0)
axis.text(2.6, 93.5, "expected", color=BLUE, fontsize=9, va="center")
axis.set(
    xticks=place, xticklabels=[f"seed {seed}" for seed in (101, 102, 103)], ylabel="% of fresh pictures", ylim=(0, 112)
)
axis.set_xlim(-0.5, 3.05)
axis.legend(frameon=False, loc="center right", fontsize=9)
axis.set_title("Pictures in which the recogniser sees exactly what the caption says", fontsize=10)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## 11. Where common belief is wrong
#
# **"`split(key, n)` gives other keys for other n."** That is what older texts warn of, and it was so. With the
# counter-based keys that are the default now (`jax_threefry_partitionable`), key $i$ of a split is the same for every
# $n$, and it equals `fold_in(key, i)`. It still counts *places*: an image that comes fifth gets the fifth key, whatever
# its index. `fold_in` with the image's index is right in both modes.

# %%
for modern in (False, True):
    with jax.threefry_partitionable(modern):
        parts = [jax.random.split(jax.random.key(0), n)[1] for n in (2, 4, 8)]
        parts = [jax.random.key_data(k).tolist() for k in [*parts, jax.random.fold_in(jax.random.key(0), 1)]]
    print(f"partitionable {modern!s:5s}: key 1 of split into 2, 4, 8:", *parts[:3], " fold_in:", parts[3])

# %% [markdown]
# **"The same seed gives the same picture."** Only if noise is keyed per image, as section 4 measured: with one draw for
# the batch the same seed gives image 5 another noise in each batch. And equal noise gives equal pictures only as far as
# the arithmetic agrees: another shape of batch may sum in another order. The renderer is written so that it does not;
# check it to the bit:

# %%
eight = np.asarray(render(around))
reversed_batch = np.asarray(render(stack(turns[::-1])))[::-1]
print("the same scenes in another order, to the bit:", np.array_equal(eight, reversed_batch))

# %% [markdown]
# **"jit makes a function faster."** It makes the *next* call faster. In section 7 the first call took many times as
# long as the second; a function that is called once, or with a new shape each time, is slower with jit.

# %% [markdown]
# ## 12. What was measured

# %%
loops = np.concatenate([ratios["fori_loop"], ratios["scan"]])
claim(
    f"CPU time to compile a sampler's loop, {lengths[-1]} steps to {lengths[0]} (fori_loop and scan, 3 mixtures each)",
    loops,
    0.5,
    2.0,
    floor=float(ratios["unrolled"].mean()),
    source="JAX documentation, jax.lax.scan; the floor is the same loop unrolled",
    unit="times",
)

# %%
claim(
    f"the recogniser sees exactly what a full caption says, fresh renders ({np.mean(unreadable):.1%} unreadable)",
    100 * np.array(right),
    87,
    100,
    floor=100 * float(np.mean(shuffled)),
    source="the recogniser's card; method: Zhou et al. 2019, sections 3 and 4; the floor is shuffled captions",
    unit="% of pictures",
)

# %%
claim(
    "largest change of an image's noise when its batch changes",
    by_image,
    0.0,
    0.0,
    floor=float(np.mean(by_place)),
    source="Salmon et al. 2011, on counter-based generators; the floor is one draw for the whole batch",
)

# %% [markdown]
# ## Further reading
#
# - Frostig, Johnson, Leary 2018, *Compiling machine learning programs via high-level tracing* (SysML): how tracing
#   makes programs of Python functions.
# - Salmon, Moraes, Dror, Shaw 2011, *Parallel random numbers: as easy as 1, 2, 3* (SC'11): counter-based random
#   numbers, and Threefry, the cipher behind JAX's keys.
# - Zhou, Wang, Krähenbühl 2019, *Objects as Points*, arXiv:1904.07850: how the recogniser finds toys.
# - Johnson et al. 2017, *CLEVR*, arXiv:1612.06890: a world of solids with questions whose answers are known, and the
#   toybox's ancestor.
# - Hart 1996, *Sphere tracing*, The Visual Computer 12: how the toybox is drawn.
# - JAX's own pages on pytrees, on randomness, and "The sharp bits".
#
# Next: lesson 01, noise and the score.
