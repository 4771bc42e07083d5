# %% [markdown]
# # 01. Noise and score
#
# A diffusion model is trained on one thing: to say, of a noisy array, what the noise in it is. This lesson is about the
# noise. What is added, how much, in what units; and what the best possible answer to "what is the noise?" must be.
# There is a world in which that answer is a formula, a mixture of Gaussians (`ldm.mixture`), so nothing is trained
# here.
#
# **Measured here.** (a) A thousand small steps of noise against one big one. (b) What Stable Diffusion's schedule
# leaves of a picture at its last timestep. (c) How many of the timesteps bfloat16 can hold. (d) The best noise
# predictor against draws. (e) Langevin dynamics with one noise level and with many.
#
# **Claim.** At the last timestep of Stable Diffusion 6.8 % of the picture's amplitude is still there: the schedule
# never reaches pure noise (Lin et al. 2023, arXiv:2305.08891, section 3.1).
#
# **Time.** 60 to 90 minutes for you, with the exercises. The notebook runs 2 minutes on 2 CPU cores; a GPU is
# not needed, as compiling takes much of that. **Before this:** lesson 00 (arrays, keys, `jit`). You should know what a
# Gaussian, an expectation and a gradient are.
#
# **Exercises.** Six functions in `lessons/exercises/e01_noise.py`, graded by `pytest tests/test_01_noise.py`. The
# notebook itself calls the library's own functions, so it runs before you have written anything.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from ldm import denoiser, mixture, schedule
from ldm.course import check, claim, fast
from ldm.schedule import NoiseSchedule
from ldm.toybox import sampling, world

plt.rcParams.update(
    {
        "figure.dpi": 110,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "axes.prop_cycle": plt.cycler(color=["#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#718096"]),
    }
)
SD = NoiseSchedule()  # the defaults are Stable Diffusion's
SEEDS = (0, 1, 2)

# Compiled as a whole, once for each shape: faster here than operation by operation.
draw = jax.jit(mixture.draw, static_argnums=2)
score, denoise = jax.jit(mixture.score), jax.jit(mixture.denoise)
log_density, shares = jax.jit(mixture.log_density), jax.jit(mixture.shares)

# %% [markdown]
# ## 1. A process that destroys
#
# Let $x_0$ be a clean sample: a picture, a latent, a point. Noise is added in $T$ small steps. Step $t$ shrinks what is
# there a little and adds a little Gaussian noise $n_t$, fresh in every number:
#
# $$x_t = \sqrt{1-\beta_t}\; x_{t-1} + \sqrt{\beta_t}\; n_t, \qquad n_t \sim \mathcal N(0, 1). \tag{01.1}$$
#
# $\beta_t$ is the variance that step $t$ adds. The table of all $\beta_t$ is the **schedule**; it is fixed before
# training and nothing about it is learned. The shrinking is there to keep the variance in bounds: if $x_{t-1}$ has
# variance 1, then $x_t$ has variance $(1-\beta_t) + \beta_t = 1$ again.
#
# What $t$ steps leave of the variance of $x_0$ is the product of what each step leaves:
#
# $$\bar\alpha_t = \prod_{s \le t} (1-\beta_s), \qquad
# \sigma_t = \sqrt{\frac{1-\bar\alpha_t}{\bar\alpha_t}}. \tag{01.2}$$
#
# $\bar\alpha_t$ (`alpha_bar`) is the signal's share of the variance, $1-\bar\alpha_t$ the noise's. $\sigma_t$ (`sigma`)
# is the ratio of the two deviations: how strong the noise is if the signal is left at its own size. It is the number in
# which the whole library thinks. Timesteps are counted from 0, and $t = 0$ has had one step already.

# %%
SCHEDULES = {
    "Stable Diffusion (scaled linear)": SD,
    "DDPM (linear)": NoiseSchedule(beta_start=1e-4, beta_end=0.02, betas="linear"),
    "improved DDPM (cosine)": NoiseSchedule(betas="squaredcos_cap_v2"),
}
figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.1), layout="constrained")
for name, numbers in SCHEDULES.items():
    alpha_bar = schedule.alpha_bars(numbers)
    axes[0].semilogy(schedule.beta_table(numbers), label=name)
    axes[1].plot(np.sqrt(alpha_bar))
    axes[2].semilogy(schedule.sigmas(numbers))
axes[2].set_ylim(5e-3, 1e3)
axes[0].legend(loc="upper left", fontsize=8)
titles = r"$\beta_t$, added by one step", r"$\sqrt{\bar\alpha_t}$, amplitude left", r"$\sigma_t$, noise over signal"
for axis, title in zip(axes, titles, strict=True):
    axis.set(title=title, xlabel="timestep t")
plt.show()

# %% [markdown]
# Three schedules of published models. "Scaled linear" is linear in $\sqrt\beta$, from $\sqrt{0.00085}$ to
# $\sqrt{0.012}$; it destroys more slowly in the middle than DDPM's, which is linear in $\beta$. The cosine schedule
# (Nichol & Dhariwal 2021) is defined the other way round, by a curve for $\bar\alpha_t$ from which the $\beta_t$
# follow.
#
# **Exercise 01.1.** Write `alpha_bars` in `lessons/exercises/e01_noise.py`: from a schedule to the table of
# $\bar\alpha_t$. `ldm.schedule` has `beta_table`, and `rescale_to_zero_terminal_snr` for schedules that ask for it
# (section 4). Then run `pytest tests/test_01_noise.py`. For Stable Diffusion the table must hold the numbers below. The
# second line shows how a notebook grades a function: here the library's own, which passes.

# %%
print({t: float(schedule.alpha_bars(SD)[t].round(5)) for t in (0, 250, 500, 799, 999)})
check("01.1", schedule.alpha_bars)

# %% [markdown]
# ## 2. A thousand steps, or one
#
# Nobody trains by taking a thousand steps. Put (01.1) into itself: $x_1$ is a multiple of $x_0$ plus two independent
# Gaussians, and a sum of independent Gaussians is one Gaussian whose variance is the sum. So after any number of steps
#
# $$x_t = \sqrt{\bar\alpha_t}\; x_0 + \sqrt{1-\bar\alpha_t}\; \varepsilon,
# \qquad \varepsilon \sim \mathcal N(0, 1). \tag{01.3}$$
#
# Proof by the two recursions. The factor before $x_0$ obeys $m_t = \sqrt{1-\beta_t}\, m_{t-1}$ with $m = 1$ at the
# start, so $m_t = \sqrt{\bar\alpha_t}$. The variance of all the noise obeys $v_t = (1-\beta_t)\, v_{t-1} + \beta_t$
# with $v = 0$ at the start, and $v_t = 1 - \bar\alpha_t$ solves it. Let us see both, in float64.

# %%
m, v, worst = 1.0, 0.0, 0.0
for t, beta in enumerate(schedule.beta_table(SD)):
    m, v = np.sqrt(1 - beta) * m, (1 - beta) * v + beta
    sigma = schedule.noise_levels(SD)[t]
    worst = max(worst, abs(m - 1 / np.sqrt(1 + sigma**2)), abs(v - sigma**2 / (1 + sigma**2)))
print(f"largest difference between the recursions and eq. (01.3) over {t + 1} steps: {worst:.1e}")

# %% [markdown]
# The equality is one of distributions. It is also one of numbers, if $\varepsilon$ is made of the very noises that the
# single steps drew: $\sqrt{1-\bar\alpha_t}\,\varepsilon$ is what the steps make of $x_0 = 0$. `steps_of_noise` below
# takes single steps; from the same key it draws the same noises.

# %%
BETA = jnp.asarray(schedule.beta_table(SD), jnp.float32)


@jax.jit
def steps_of_noise(x, key, first, last):
    """Single steps, eq. (01.1), t = first .. last - 1."""

    def step(t, x):
        noise = jax.random.normal(jax.random.fold_in(key, t), x.shape)
        return jnp.sqrt(1 - BETA[t]) * x + jnp.sqrt(BETA[t]) * noise

    return jax.lax.fori_loop(first, last, step, x)


def closed_form(x0, noise, t):
    """Eq. (01.3) in the library's words: noise is added in sigma space, then the whole is scaled."""
    sigma = schedule.sigmas(SD)[t]
    return denoiser.to_variance_preserving(denoiser.add_noise(x0, noise, sigma), sigma)


key = jax.random.key(0)
x0 = draw(mixture.ring(), key, 4)
by_steps = steps_of_noise(x0, key, 0, 300)
made_by_them = steps_of_noise(jnp.zeros_like(x0), key, 0, 300)  # sqrt(1 - alpha_bar) * epsilon
at_once = np.sqrt(schedule.alpha_bars(SD)[299]) * x0 + made_by_them
print(np.round(np.concatenate([by_steps, at_once], axis=1), 5))

# %% [markdown]
# Left two columns: 300 single steps. Right two: one, with the same noises. In the picture below each thin line is a
# walk of single steps from one of two places; the bands are two deviations of (01.3) about its mean. After some 800
# steps you can hardly tell where a walk began.

# %%
generator, walks = np.random.default_rng(0), 12
x = np.repeat([3.0, -2.0], walks)
paths = []
for beta in schedule.beta_table(SD):
    x = np.sqrt(1 - beta) * x + np.sqrt(beta) * generator.standard_normal(2 * walks)
    paths.append(x)
paths, kept = np.array(paths), schedule.alpha_bars(SD)
figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
for start, colour, columns in ((3.0, "C0", slice(0, walks)), (-2.0, "C1", slice(walks, None))):
    mean, two = np.sqrt(kept) * start, 2 * np.sqrt(1 - kept)
    axis.plot(paths[:, columns], color=colour, lw=0.5, alpha=0.6)
    axis.fill_between(np.arange(1000), mean - two, mean + two, color=colour, alpha=0.15, lw=0)
    axis.plot(mean, color=colour, lw=2, label=f"from {start:g}: mean and band of eq. (01.3)")
axis.set(xlabel="timestep t", ylabel="$x_t$", ylim=(-3.5, 5.2))
axis.legend(loc="upper right")
plt.show()

# %% [markdown]
# Now the distributions, over many points. From the same clean points of a ring of eight Gaussians we take 300 single
# steps, and in another run one step with fresh noise. For each coordinate we measure the largest gap between the two
# cumulative distributions (the Kolmogorov–Smirnov distance). Two samples of the same distribution have a gap too: that
# is the floor. The law of the gap is known, and in one test of a thousand it exceeds $1.95\sqrt{2/N}$.

# %%
POINTS = 800 if fast() else 20_000


def gap(a, b):
    """The largest distance between the cumulative distributions of the coordinates of two samples [N, 2]."""
    gaps = []
    for one, other in zip(np.asarray(a).T, np.asarray(b).T, strict=True):
        both = np.sort(np.concatenate([one, other]))
        below = [np.searchsorted(np.sort(values), both, side="right") / len(values) for values in (one, other)]
        gaps.append(np.abs(below[0] - below[1]).max())
    return max(gaps)


gaps, floors, forgotten = [], [], []
for seed in SEEDS:
    keys = jax.random.split(jax.random.key(seed), 6)
    first, second = (draw(mixture.ring(), k, POINTS) for k in keys[:2])
    fresh, other = (jax.random.normal(k, first.shape) for k in keys[2:4])
    stepped = steps_of_noise(first, keys[4], 0, 300)
    gaps.append(gap(stepped, closed_form(second, fresh, 299)))
    floors.append(gap(closed_form(first, other, 299), closed_form(second, fresh, 299)))
    forgotten.append(gap(stepped, closed_form(second, fresh, 399)))
print("300 steps against 300 at once", np.round(gaps, 4))
print("300 at once against itself   ", np.round(floors, 4))
print("300 steps against 400 at once", np.round(forgotten, 4))

# %%
claim(
    "t single steps and the closed form give one distribution: largest gap between their cumulative distributions",
    gaps,
    0,
    1.95 * np.sqrt(2 / POINTS),
    source="Ho et al. 2020, arXiv:2006.11239, eq. (4)",
    floor=np.mean(floors),
)

# %% [markdown]
# ## 3. Two scalings of one process
#
# (01.3) keeps the variance: its $x_t$ is called **variance preserving** (VP). Divide it by $\sqrt{\bar\alpha_t}$:
#
# $$\frac{x_t}{\sqrt{\bar\alpha_t}} = x_0 + \sigma_t\, \varepsilon. \tag{01.4}$$
#
# This is the **variance exploding** (VE) form: the signal keeps its size and the noise grows. It is the same process,
# seen through a zoom. Whoever knows one form knows the other, as $\bar\alpha = 1/(1+\sigma^2)$:
#
# $$x_{\mathrm{VP}} = \frac{x_{\mathrm{VE}}}{\sqrt{1+\sigma^2}}, \qquad
# \sqrt{\bar\alpha} = \frac1{\sqrt{1+\sigma^2}}, \qquad
# \sqrt{1-\bar\alpha} = \frac{\sigma}{\sqrt{1+\sigma^2}}. \tag{01.5}$$
#
# The library computes in the VE form, in **sigma space**: `x = x0 + sigma * noise`. A network is fed the VP form, since
# networks like inputs of one size. `to_variance_preserving` stands between them. From here on $x$ without an index
# means the VE form.

# %%
RING = mixture.ring()
COLOURS = plt.cm.twilight_shifted(np.linspace(0.08, 0.92, 8))
key = jax.random.key(1)
x0 = draw(RING, key, 800)
noise = jax.random.normal(jax.random.key(2), x0.shape)
owner = np.argmax(shares(RING, x0, 0.0), axis=-1)
columns = (0.0, 0.2, 0.6, 2.0, 6.0)
figure, axes = plt.subplots(2, len(columns), figsize=(10.5, 4.4), layout="constrained", sharex="row", sharey="row")
for column, sigma in enumerate(columns):
    x = denoiser.add_noise(x0, noise, sigma)
    for axis, points in zip(axes[:, column], (x, denoiser.to_variance_preserving(x, sigma)), strict=True):
        axis.scatter(*points.T, s=2, color=COLOURS[owner], lw=0)
        axis.set_aspect("equal")
    axes[0, column].set_title(rf"$\sigma$ = {sigma:g}")
axes[0, 0].set(ylabel="sigma space (VE)", xlim=(-16, 16), ylim=(-16, 16))
axes[1, 0].set(ylabel="variance preserving", xlim=(-3, 3), ylim=(-3, 3))
plt.show()

# %% [markdown]
# The same points with the same noise, above in sigma space, below in the VP form. Each column differs by a zoom only.
# Colours are the parts of the ring that the points came from: at $\sigma = 2$ they are mixed, and at 6 nothing of the
# ring can be seen in either form.
#
# **Exercise 01.2.** Write `to_variance_preserving`. Mind that every example of a batch may have a level of its own.
# `pytest tests/test_01_noise.py` must then say `01.2  to_variance_preserving  done`. Expected: with
# $\sigma = \sqrt{0.64 / 0.36}$ you get $0.6\,x_0 + 0.8\,\varepsilon$.

# %%
sigma = np.sqrt(0.64 / 0.36)
print(float(denoiser.to_variance_preserving(1.0, sigma)), float(denoiser.to_variance_preserving(sigma * 1.0, sigma)))

# %% [markdown]
# Now a picture. A scene of the toybox, its values scaled to $[-1, 1]$, under the noise of Stable Diffusion's schedule.
# Stable Diffusion adds this noise to a latent and not to pixels (lesson 05), with the same numbers.

# %%
if fast():  # a disc: to compile the renderer takes seconds
    across = np.linspace(-1, 1, 64)
    picture = np.where(np.hypot(across, across[:, None])[..., None] < 0.5, np.float32([0.8, -0.5, 0.1]), 0.4)
else:
    picture = 2 * world.render(sampling.random_scenes(range(1, 2)), 64, samples=1)[0] - 1
noise = jax.random.normal(jax.random.key(0), picture.shape)
moments = (0, 50, 150, 300, 563, 799, 999)
figure, axes = plt.subplots(1, len(moments), figsize=(10.5, 1.95), layout="constrained")
for axis, t in zip(axes, moments, strict=True):
    axis.imshow(np.clip(closed_form(picture, noise, t) / 2 + 0.5, 0, 1))
    axis.set_title(rf"t = {t}, {100 * (1 - kept[t]):.{1 if t else 2}f} %", fontsize=9)
    axis.axis("off")
figure.supxlabel("per cent: the noise's share of the variance, 1 − alpha_bar; grey is 0", fontsize=9)
plt.show()

# %% [markdown]
# ## 4. The last timestep is not pure noise
#
# A sampler begins with pure noise. Training never shows pure noise: at $t = 999$ the factor before $x_0$ is
# $\sqrt{\bar\alpha_{999}} = 0.068$. That is little for one pixel and much for what all pixels share. If a picture is
# brighter than the middle by $b$ on average, the mean of its $N$ noisy values is $0.068\,b$, and the noise in that mean
# is only $1/\sqrt N$. Guessing the sign of $b$ from the mean is right with probability
#
# $$\Phi\!\left(\frac{b\,\sqrt{\bar\alpha_t}}{\sqrt{1-\bar\alpha_t}}\sqrt N\right)
# = \Phi\!\left(\frac{b\,\sqrt N}{\sigma_t}\right), \tag{01.6}$$
#
# where $\Phi$ is the cumulative distribution of a unit Gaussian. So a network learns at $t = 999$ to read the
# brightness off its input. Pure noise has no brightness to read, the network reads "middle", and that is what the
# samples get: this is why Stable Diffusion's pictures are so hard to make very dark or very bright.
#
# The remedy of Lin et al. 2023 (algorithm 1): shift and stretch $\sqrt{\bar\alpha_t}$ so that it ends at exactly 0 and
# begins where it did. `NoiseSchedule(zero_terminal_snr=True)` does so. (SNR, the signal-to-noise ratio, is
# $1/\sigma^2$.) An epsilon network has nothing to learn at such a $t$, since there $\varepsilon = x_t$: one trains v or
# x0 (lesson 02).

# %%
ZERO = NoiseSchedule(zero_terminal_snr=True)
BRIGHTNESS = 0.5
t = np.arange(0, 1000, 3)
Phi = lambda z: np.asarray(jax.scipy.stats.norm.cdf(z))
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.3), layout="constrained")
for name, numbers, style in (("Stable Diffusion", SD, "-"), ("zero terminal SNR", ZERO, "--")):
    left.plot(np.sqrt(schedule.alpha_bars(numbers)), style, color="C0", label=name)
left.annotate("6.8 %", (999, 0.068), (880, 0.25), arrowprops={"arrowstyle": "-", "color": "0.5"})
left.set(xlabel="timestep t", ylabel=r"amplitude left, $\sqrt{\bar\alpha_t}$", ylim=(0, 1.02))
left.legend()
for i, (count, tries) in enumerate(((1, 4000), (64, 4000), (4096, 60 if fast() else 600))):
    for numbers, style in ((SD, "-"), (ZERO, "--")):
        right.plot(t, 100 * Phi(BRIGHTNESS * np.sqrt(count) / schedule.sigmas(numbers)[t]), style, color=f"C{i}")
    for at in (500, 700, 850, 999):
        sign = np.sign(generator.standard_normal((tries, 1)))
        seen = generator.standard_normal((tries, count), np.float32)
        guess = np.sign(closed_form(BRIGHTNESS * sign, seen, at).mean(axis=1))
        right.plot(at, 100 * np.mean(guess == sign[:, 0]), "o", color=f"C{i}", ms=4)
    right.plot([], [], "o-", color=f"C{i}", label=f"{count} value{'s' * (count > 1)}")
right.axhline(50, color="0.5", lw=1, ls=":")
right.text(5, 51, "guessing", color="0.4")
right.set(xlabel="timestep t", ylabel="bright or dark: right (%)", ylim=(45, 102))
right.legend(loc="lower left", bbox_to_anchor=(0, 0.12))
plt.show()

# %% [markdown]
# Right: how often the mean of the noisy values tells a bright array ($b = 0.5$) from a dark one. Lines are (01.6), dots
# are measured on noise drawn with Stable Diffusion's schedule; dashed is the rescaled one. At $t = 999$ one value says
# nothing, 4096 values (one channel of Stable Diffusion's latent of 512×512 pixels) say it nearly always. With the
# rescaled schedule all lines fall to guessing at the end.
#
# Two figures of this kind are worth measuring, not only computing. We let points of known size take all the single
# steps, and regress what they have become on what they were: the slope is the amplitude left, the rest is noise.

# %%
amplitude, noise_share = [], []
for seed in SEEDS:
    key = jax.random.key(100 + seed)
    x0 = 10 * jnp.sign(jax.random.normal(jax.random.fold_in(key, 1000), (20_000 if fast() else 200_000,)))
    at_799 = steps_of_noise(x0, key, 0, 800)
    at_999 = steps_of_noise(at_799, key, 800, 1000)
    amplitude.append(100 * float((at_999 * x0).mean() / (x0**2).mean()))
    slope = float((at_799 * x0).mean() / (x0**2).mean())
    noise_share.append(100 * float(((at_799 - slope * x0) ** 2).mean()))
print(
    "amplitude left at t = 999 (%):",
    np.round(amplitude, 3),
    " noise's variance at t = 799 (%):",
    np.round(noise_share, 2),
)

# %%
claim(
    "Amplitude of the picture that is left at the last timestep of Stable Diffusion's schedule",
    amplitude,
    6.7,
    6.95,
    source="Lin et al. 2023, arXiv:2305.08891, section 3.1 and table 1",
    floor=0.0,
    unit="%",
    row=46,
)

# %%
claim(
    "Share of noise in the variance at t = 799, where img2img at strength 0.8 begins; the floor is the share of steps",
    noise_share,
    95.5,
    97.1,
    source="an article behind this course: 'strength 0.8 covers 80 %'; the schedule gives 96.3 %",
    floor=80.0,
    unit="%",
    row=46,
)

# %% [markdown]
# ## 5. Why the schedule is never bfloat16
#
# bfloat16 has the range of float32 (8 bits of exponent) with 7 bits of fraction. Between 0.5 and 1 its numbers are
# $2^{-8} = 0.0039$ apart. Networks bear that; the schedule does not, in two places.
#
# - $\bar\alpha_0 = 0.99915$ is nearer to 1 than to its neighbour. Rounded, $\sigma_0 = 0$, and dividing by it is NaN.
# - From 256 to 512 bfloat16 holds every second whole number, from 512 to 1024 every fourth. The timestep 999 becomes
#   1000, which the schedule does not have.

# %%
ALL = np.arange(1000)
rounded = np.asarray(jnp.asarray(ALL, jnp.bfloat16), np.float32)
coarse = np.asarray(jnp.asarray(schedule.alpha_bars(SD), jnp.bfloat16), np.float32)
print("alpha_bar, t = 0..5: float32 ", schedule.alpha_bars(SD)[:6], "\n                     bfloat16", coarse[:6])
with np.errstate(divide="ignore"):
    sigma_coarse = np.sqrt((1 - coarse) / coarse)
print("sigma_0 in float32", schedule.sigmas(SD)[0], "and from a bfloat16 alpha_bar", sigma_coarse[0])

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
left.plot(ALL, rounded - ALL, lw=0.6)
left.set(
    xlabel="timestep t", ylabel="t in bfloat16 − t", title=f"{(rounded != ALL).sum()} of 1000 timesteps do not exist"
)
right.plot(ALL, 100 * np.abs(sigma_coarse / schedule.sigmas(SD) - 1), lw=0.8)
right.set(xlabel="timestep t", ylabel=r"error of $\sigma_t$ (%)", xscale="symlog", yscale="log", ylim=(1e-4, 200))
right.set_title(r"$\sigma_t$ from $\bar\alpha_t$ in bfloat16")
plt.show()

# %% [markdown]
# Three ways to count the missing timesteps: round and compare; look at the bits, since a float32 is a bfloat16 exactly
# if its lower 16 bits are 0; and by arithmetic, half of the 256 numbers in $[256, 512)$ and three quarters of the 488
# in $[512, 999]$.

# %%
by_rounding = (rounded != ALL).sum()
by_bits = (ALL.astype(np.float32).view(np.uint32) & 0xFFFF != 0).sum()
by_arithmetic = 256 / 2 + 488 * 3 / 4
claim(
    "Whole timesteps 0 to 999 that bfloat16 cannot hold, counted in three ways",
    [by_rounding, by_bits, by_arithmetic],
    494,
    494,
    source="8 exponent and 7 fraction bits; an article behind this course recommends the type without this exception",
    floor=0,
    row=9,
)

# %% [markdown]
# ## 6. The score
#
# Under noise of level $\sigma$ the data have a density of their own, $p(x; \sigma)$: that of $x_0 + \sigma\varepsilon$.
# It is the data's density, blurred. The gradient of its logarithm is the **score**:
#
# $$s(x; \sigma) = \nabla_x \log p(x; \sigma). \tag{01.7}$$
#
# It is an arrow at every place, of as many numbers as $x$ has. It points to where data are denser. The logarithm makes
# it independent of how $p$ is normalised, which for pictures nobody knows.
#
# A mixture of $K$ Gaussians with means $m_k$, one deviation $s$ (`spread`) and weights $w_k$ stays a mixture under
# noise, each part wider, and so $p$ and its score are formulas at every level:
#
# $$p(x; \sigma) = \sum_k w_k\, \mathcal N(x;\, m_k,\, s^2 + \sigma^2). \tag{01.8}$$

# %%
side = np.linspace(-2.2, 2.2, 160, dtype=np.float32)
plane = np.stack(np.meshgrid(side, side), axis=-1)
few = plane[5::10, 5::10]
figure, axes = plt.subplots(1, 4, figsize=(11, 2.95), layout="constrained")
for axis, sigma in zip(axes, (0.05, 0.2, 0.5, 1.5), strict=True):
    density = np.exp(log_density(RING, plane, sigma))
    arrows = np.asarray(score(RING, few, sigma))
    size = np.linalg.norm(arrows, axis=-1, keepdims=True)
    axis.imshow(density, extent=(-2.2, 2.2, -2.2, 2.2), origin="lower", cmap="Blues", vmax=density.max() * 0.8)
    axis.quiver(
        *np.moveaxis(few, -1, 0), *np.moveaxis(arrows / size, -1, 0), size[..., 0], cmap="YlOrRd", scale=24
    ).set_clim(-size.max(), size.max())
    axis.set(title=rf"$\sigma$ = {sigma:g}, longest {size.max():.3g}", xticks=(-2, 0, 2), yticks=(-2, 0, 2))
plt.show()

# %% [markdown]
# Density (blue) and score of the ring. Arrows show the direction; the redder, the longer, the longest being written
# above each. At small $\sigma$ they point to the nearest part and know nothing of the others. At large $\sigma$ all
# point to the middle of the whole. What lies between is where a sampler decides.
#
# ## 7. The best denoiser
#
# Let a function $D(x; \sigma)$ guess $x_0$ from $x$. Which has the least squared error? For each $x$ separately, the
# number with the least mean squared distance to a random quantity is that quantity's mean. So
#
# $$D(x; \sigma) = \mathbb E[\,x_0 \mid x\,] \tag{01.9}$$
#
# and no network does better, however large. It is not a sample: it is the mean of all clean points that may have become
# $x$, and under much noise it lies where no data are. For one Gaussian part it is a point between $m_k$ and $x$; for
# the mixture these are weighed by how likely each part is to have made $x$, $p(k \mid x)$ (`mixture.shares`):
#
# $$D(x; \sigma) = \sum_k p(k \mid x) \left( m_k + \frac{s^2}{s^2+\sigma^2}\,(x - m_k) \right), \qquad
# p(k \mid x) = \frac{w_k\, \mathcal N(x;\, m_k,\, s^2 + \sigma^2)}{p(x; \sigma)}. \tag{01.10}$$
#
# **Exercise 01.3.** Write `denoise`, eq. (01.10); `pytest tests/test_01_noise.py`. Expected: the curves of the left
# picture, which are two points at ±1 with weights 0.2 and 0.8, that is $\tanh(x/\sigma^2 + \tfrac12\log 4)$.

# %%
TWO = mixture.Mixture(np.float32([[-1], [1]]), np.float32(0.0), np.float32([0.2, 0.8]))
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9), layout="constrained", width_ratios=(1.5, 1))
x = np.linspace(-3, 3, 241, dtype=np.float32)[:, None]
for i, sigma in enumerate((0.3, 0.8, 2.0)):
    left.plot(x, denoise(TWO, x, sigma), color=f"C{i}", label=rf"$\sigma$ = {sigma:g}")
    clean = np.where(generator.random(40_000) < 0.2, -1.0, 1.0)
    noisy = clean + sigma * generator.standard_normal(clean.shape)
    bins = np.digitize(noisy, np.linspace(-3, 3, 25))
    enough = [b for b in range(1, 25) if (bins == b).sum() > 30]
    left.plot(
        [noisy[bins == b].mean() for b in enough], [clean[bins == b].mean() for b in enough], "o", ms=3.5, color=f"C{i}"
    )
left.axhline(0.6, color="0.5", lw=1, ls=":")
left.text(-2.95, 0.63, "mean of the data", color="0.4")
left.set(
    xlabel="x", ylabel=r"$\mathrm{E}[x_0\,|\,x]$", title="lines: eq. (01.10); dots: means of 40,000 draws, binned by x"
)
left.legend(loc="lower right")
few = np.asarray(3.6 * (np.random.default_rng(3).random((60, 2)) - 0.5), np.float32)
for sigma, colour in ((0.2, "C0"), (0.6, "C1")):
    ends = np.asarray(denoise(RING, few, sigma))
    right.plot(*np.stack([few, ends]).transpose(2, 0, 1), color=colour, lw=0.6, alpha=0.7)
    right.plot(*ends.T, ".", color=colour, ms=5, label=rf"$\sigma$ = {sigma:g}")
right.plot(*few.T, ".", color="0.6", ms=3)
right.scatter(*RING.means.T, s=60, facecolors="none", edgecolors="k", lw=0.8, zorder=3)
right.set(aspect="equal", title="the ring: from x (grey) to D(x)", xlim=(-1.9, 1.9), ylim=(-1.9, 1.9))
right.legend(loc="upper right", handlelength=0.5)
plt.show()

# %% [markdown]
# ## 8. Tweedie's formula: denoiser, noise and score are one thing
#
# Differentiate $p(x;\sigma) = \int p(x_0)\, \mathcal N(x;\, x_0,\, \sigma^2)\, dx_0$ by $x$. The Gaussian gives a
# factor $(x_0 - x)/\sigma^2$; divide by $p(x;\sigma)$, and the integral becomes the mean over $x_0$ given $x$:
#
# $$s(x; \sigma) = \frac{\mathbb E[\,x_0 \mid x\,] - x}{\sigma^2}
# \qquad\Longleftrightarrow\qquad D(x; \sigma) = x + \sigma^2\, s(x; \sigma). \tag{01.11}$$
#
# This is Tweedie's formula. Nothing was assumed of the data. The noise in $x$ is $\varepsilon = (x - x_0)/\sigma$, so
# its best prediction is
#
# $$\varepsilon^*(x; \sigma) = \mathbb E[\,\varepsilon \mid x\,] = \frac{x - D(x; \sigma)}{\sigma}
# = -\sigma\, s(x; \sigma). \tag{01.12}$$
#
# A network trained to predict noise by squared error is a network that learns the score, in units of $-1/\sigma$. The
# library goes between the forms with `denoiser.eps_from_x0`, `denoiser.x0_from_eps` and `mixture.eps_from_score`.
#
# **Exercise 01.4.** Write `score`: by Tweedie's formula from your own `denoise`, or part by part, which also holds at
# $\sigma = 0$. If a check fails, a picture of your field is saved beside the right one.
#
# **Exercise 01.5.** Write `eps_from_score`, one line. Both: `pytest tests/test_01_noise.py`. Expected: the three
# columns below agree, though one comes from the denoiser, one from the score and one from automatic differentiation.

# %%
sigma = 0.5
x = denoiser.add_noise(draw(RING, jax.random.key(3), 4), jax.random.normal(jax.random.key(4), (4, 2)), sigma)
from_denoiser = denoiser.eps_from_x0(x, denoise(RING, x, sigma), sigma)
from_score = mixture.eps_from_score(score(RING, x, sigma), sigma)
by_gradient = -sigma * jax.grad(lambda x: log_density(RING, x, sigma).sum())(x)
print(np.round(np.concatenate([from_denoiser, from_score, by_gradient], axis=1), 4))

# %% [markdown]
# ### Is it the best? Ask the draws
#
# Formulas can be wrong in the same way twice. So we ask without them. Draw many pairs of a clean point and a noise, add
# them up, and cut the plane into small squares. In each square the mean of the drawn noise is the regression of noise
# on $x$: no model, only counting. Compare it with the mean of $\varepsilon^* = -\sigma s$ over the same points. If
# (01.12) is exact, they differ by sampling error alone, which is known for each square from the scatter within it. We
# report the root mean square of the differences **in units of the sampling error**: exactly right is 1. There are some
# 2000 differences, so chance moves that figure by some $1/\sqrt{2 \cdot 2000} = 0.016$, somewhat more as both
# coordinates share their points; we ask for 1 ± 0.08.

# %%
DRAWS = 60_000 if fast() else 1_000_000
draws_of = jax.jit(lambda key: (draw(RING, key, DRAWS), jax.random.normal(jax.random.fold_in(key, 7), (DRAWS, 2))))
best_noise = jax.jit(lambda x, sigma: mixture.eps_from_score(score(RING, x, sigma), sigma))


def residual(seed, factor=1.0):
    """Mean noise of the draws in each square less factor * eps*, root mean square in units of its sampling error."""
    x0, noise = draws_of(jax.random.key(seed))
    x = denoiser.add_noise(x0, noise, sigma)
    error = np.asarray(noise - factor * best_noise(x, sigma), np.float64)
    cell = np.clip(np.floor((np.asarray(x) + 2) * 10), -1, 40).astype(int)
    inside = ((cell >= 0) & (cell < 40)).all(axis=1)
    square = cell[inside] @ [40, 1]
    count = np.bincount(square, minlength=1600)
    total, squares = (
        np.stack([np.bincount(square, column, minlength=1600) for column in (error[inside] ** power).T])
        for power in (1, 2)
    )
    full = count >= (20 if fast() else 200)
    mean = total[:, full] / count[full]
    variance = squares[:, full] / count[full] - mean**2
    return np.sqrt((mean**2 * (count[full] - 1) / variance).mean()), 2 * full.sum()


residuals = [residual(seed)[0] for seed in SEEDS]
nothing = residual(0, 0.0)[0]
print(f"differences compared: {residual(0)[1]};  eps*: {np.round(residuals, 3)}")
print(
    "scaled by 0.95:",
    round(residual(0, 0.95)[0], 2),
    "  by 1.05:",
    round(residual(0, 1.05)[0], 2),
    "  no prediction:",
    round(nothing, 1),
)

# %%
claim(
    "The best noise prediction is -sigma * score: regression residual in units of its sampling error (1 is exact)",
    residuals,
    0.92,
    1.08,
    source="Tweedie's formula; Song et al. 2021, arXiv:2011.13456, section 3.3. Floor: predicting no noise at all",
    floor=nothing,
)

# %% [markdown]
# ### The loss does not go to zero
#
# The training loss of a noise predictor is $\mathbb E\,|\varepsilon - \hat\varepsilon|^2$ per number. Even
# $\varepsilon^*$ pays something: where several clean points may have become $x$, the noise is not known. Left below:
# the loss of $c\,\varepsilon^*$, least at $c = 1$ and not 0 there. Right: the least loss against $\sigma$. At large
# $\sigma$ it is near 0, $x$ being nearly all noise; at small $\sigma$ it is near 1, for the noise hides within the
# spread of the data. A loss curve therefore says little without the mix of levels that it was averaged over (lesson
# 02).

# %%
x0, noise = draws_of(jax.random.key(0))
x0, noise = x0[:100_000], noise[:100_000]
loss = lambda factor, sigma: float(
    jnp.mean((noise - factor * best_noise(denoiser.add_noise(x0, noise, sigma), sigma)) ** 2)
)
factors, levels = np.linspace(0, 2, 21), np.geomspace(0.005, 20, 25)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
left.plot(factors, [loss(c, sigma) for c in factors], "o-", ms=3)
left.axhline(loss(1.0, sigma), color="0.5", ls=":", lw=1)
left.text(0.02, loss(1.0, sigma) - 0.08, "the least that any predictor pays", color="0.4")
left.set(
    xlabel=r"$c$, in $c\,\varepsilon^*$", ylabel="loss, per number", title=rf"$\sigma$ = {sigma:g}", ylim=(0, 1.05)
)
right.semilogx(levels, [loss(1.0, s) for s in levels], "o-", ms=3, label=r"$\varepsilon^*$")
right.axhline(1, color="0.5", ls=":", lw=1)
right.text(0.9, 0.93, "predicting 0", color="0.4")
for length, text in ((0.08, "a part's spread"), (1.0, "ring's radius")):
    right.axvline(length, color="0.7", lw=0.8)
    right.text(length * 0.94, 0.02, text, rotation=90, color="0.4", va="bottom", ha="right", fontsize=7)
right.set(xlabel=r"$\sigma$", ylabel="least loss, per number", ylim=(0, 1.05))
plt.show()

# %% [markdown]
# ## 9. Langevin dynamics: from the score to samples
#
# If all you have is a score $s(x)$, you can still draw from its density. Walk uphill, and shake:
#
# $$x \leftarrow x + \eta\, s(x) + \sqrt{2\eta}\; n, \qquad n \sim \mathcal N(0, 1), \tag{01.13}$$
#
# with a small step $\eta$ (`step`). Without the shaking every walker would stop at a mode. With exactly $\sqrt{2\eta}$
# the density $p$ is the one distribution that the walk leaves as it is, as $\eta \to 0$: flow uphill and diffusion
# downhill cancel. For a Gaussian of variance $v$ the walk with step $\eta$ ends at variance $v / (1 - \eta / 2v)$, a
# little too warm. Some papers write $\tfrac\eta2 s$ and $\sqrt\eta$: the same with $\eta$ halved; a mix of the two is
# wrong.
#
# **Exercise 01.6.** Write `langevin`; `pytest tests/test_01_noise.py`. Expected for a Gaussian of variance 0.25 about
# 0.5, with $\eta = 0.05$ from a start at 3: mean 0.5, variance 0.278.

# %%
spring = lambda x: (0.5 - x) / 0.25
ended = mixture.langevin(spring, jax.random.key(0), jnp.full((20_000,), 3.0), 0.05, 200)
print(f"mean {float(ended.mean()):.3f}, variance {float(ended.var()):.3f}; theory {0.25 / (1 - 0.05 / 0.5):.3f}")

# %% [markdown]
# ### One level is not enough
#
# The ring's parts have weights 1/36, 2/36, ..., 8/36. Let walkers start as a unit Gaussian and follow the score of the
# data themselves. Each soon finds a part. But the way from one part to the next leads through a valley 11 units of
# $\log p$ deep: a crossing takes of the order of $e^{11} \approx 90{,}000$ times as long as settling in a part. So the
# walkers stay in the part whose basin they began in, and as the start is the same in all directions, **each part gets
# about one eighth**. The score at one level does not tell the walkers the weights of far modes: near part $k$ the
# density is nearly $w_k$ times a Gaussian, and the gradient of the logarithm does not contain the factor $w_k$.
#
# The remedy is noise. At a large $\sigma$ the parts overlap, there are no valleys, and walkers find the right shares.
# Then $\sigma$ is lowered step by step, and at each level the walkers only have to keep up. This is **annealed Langevin
# dynamics** (Song & Ermon 2019, algorithm 1). Both runs below take equally many steps, each with a step of a tenth of
# the level's variance.

# %%
WALKERS, LEVELS, EACH = (800, 10, 20) if fast() else (4_000, 24, 60)


@jax.jit
def walk_at(x, key, sigma, steps):
    """Langevin dynamics along the ring's score at one level."""
    step = 0.1 * (RING.spread**2 + sigma**2)
    return mixture.langevin(lambda x: score(RING, x, sigma), key, x, step, steps)


def one_level(seed):
    """All steps at sigma = 0, the score of the data, from a unit Gaussian."""
    first, second = jax.random.split(jax.random.key(seed))
    return walk_at(jax.random.normal(first, (WALKERS, 2)), second, 0.0, LEVELS * EACH)


def annealed(seed):
    """The same number of steps over falling levels, the last being 0."""
    first, second = jax.random.split(jax.random.key(seed))
    x = 2 * jax.random.normal(first, (WALKERS, 2))
    for i, level in enumerate(np.append(np.geomspace(2, 0.03, LEVELS - 1), 0)):
        x = walk_at(x, jax.random.fold_in(second, i), level, EACH)
    return x


def found(x):
    """The share of the points nearest to each part [8]."""
    nearest = np.argmin(np.linalg.norm(np.asarray(x)[:, None] - RING.means, axis=-1), axis=1)
    return np.bincount(nearest, minlength=8) / len(x)


ends = {
    "drawn from the mixture": [draw(RING, jax.random.key(50 + seed), WALKERS) for seed in SEEDS],
    "one level": [one_level(seed) for seed in SEEDS],
    "annealed": [annealed(seed) for seed in SEEDS],
}
reached = {name: np.array([found(x) for x in runs]) for name, runs in ends.items()}

# %%
figure, axes = plt.subplots(1, 4, figsize=(11, 2.9), layout="constrained", width_ratios=(1, 1, 1, 1.45))
for axis, (name, runs) in zip(axes[:3], ends.items(), strict=True):
    nearest = np.argmin(np.linalg.norm(np.asarray(runs[0])[:, None] - RING.means, axis=-1), axis=1)
    axis.scatter(*np.asarray(runs[0])[:1500].T, s=2, color=COLOURS[nearest[:1500]], lw=0)
    axis.set(title=name, aspect="equal", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), xticks=(-1, 0, 1), yticks=(-1, 0, 1))
for i, (name, colour) in enumerate((("one level", "C1"), ("annealed", "C0"))):
    middle = reached[name].mean(axis=0)
    spread = [middle - reached[name].min(axis=0), reached[name].max(axis=0) - middle]
    axes[3].bar(np.arange(8) + 0.4 * i - 0.2, 100 * middle, 0.38, yerr=100 * np.array(spread), color=colour, label=name)
axes[3].step(
    np.arange(9) - 0.5,
    100 * np.append(RING.weights, RING.weights[-1]),
    where="post",
    color="k",
    lw=1.2,
    label="true weight",
)
axes[3].set(xlabel="part of the ring", ylabel="share of the walkers (%)")
axes[3].legend(loc="upper left")
plt.show()

# %% [markdown]
# The total variation distance, half of the sum of $|\text{share} - w_k|$, is the share of walkers that would have to
# move to another part. Theory, before looking: eight equal shares are $8/36 = 0.22$ away from the weights; the start is
# not quite cut into equal basins, so we ask for 0.17 to 0.27. Annealed walkers should come near to the distance that
# draws from the mixture have (the floor): we ask for less than 0.05.

# %%
distances = {name: 0.5 * np.abs(found_shares - RING.weights).sum(axis=1) for name, found_shares in reached.items()}
claim(
    "Langevin dynamics at one level leaves the weights of far modes wrong: total variation distance of the shares",
    distances["one level"],
    0.17,
    0.27,
    source="Song & Ermon 2019, arXiv:1907.05600, section 3.2.2",
    floor=distances["drawn from the mixture"].mean(),
)

# %%
claim(
    "Annealed over falling levels, in as many steps, it finds them",
    distances["annealed"],
    0,
    0.05,
    source="Song & Ermon 2019, arXiv:1907.05600, section 4.3 and figure 3",
    floor=distances["drawn from the mixture"].mean(),
)

# %% [markdown]
# So a model needs the score at many levels, and that is what a diffusion model is: one network, told $\sigma$ (or $t$),
# trained on all levels at once. The samplers of lessons 02 to 04 go down the same levels with far fewer steps than
# these.
#
# ## 10. Where the articles, or common belief, are wrong
#
# - **"Strength 0.8 means that noise covers 80 % of the picture."** Strength is a share of the *steps*. The table below
#   shows the noise's share of the variance at the timestep where 80 % of the steps remain: 96 %. Four fifths of the
#   variance are noise much earlier. And nothing is "covered": noise is added to every number, at every place.
# - **"Strength 1, or the last timestep, is pure noise."** 6.8 % of the amplitude is left (section 4).
# - **"bfloat16 has the range of float32, so it will do where precision matters little."** For a network, mostly. The
#   schedule and the timesteps are where precision matters (section 5).
# - **"Variance preserving and variance exploding models are different processes."** They are one process in two
#   scalings (section 3). What differs between published models is the table of levels and what the network is asked
#   for.
# - **"Score models and noise predictors are different models."** One is the other times $-\sigma$ (section 8).
# - **"A well-trained network's loss goes to 0", "the predicted x0 is a sample".** The least loss is positive, and the
#   best $x_0$ is a mean: under much noise it is a blur of all that is possible (sections 7 and 8).

# %%
print(" steps left    t   noise, % of variance   signal, % of amplitude")
for strength in (0.2, 0.4, 0.6, 0.8, 1.0):
    t = round(1000 * strength) - 1
    print(f"{100 * strength:9.0f} % {t:5d} {100 * (1 - kept[t]):16.1f} {100 * np.sqrt(kept[t]):24.1f}")
print("the noise reaches 80 % of the variance at t =", int(np.argmax(kept < 0.2)))

# %% [markdown]
# ## Further reading
#
# - Ho et al. 2020, *Denoising Diffusion Probabilistic Models*, arXiv:2006.11239: the forward process, eq. (2) to (4).
# - Song & Ermon 2019, *Generative Modeling by Estimating Gradients of the Data Distribution*, arXiv:1907.05600: why
#   noise levels, and annealed Langevin dynamics.
# - Song et al. 2021, *Score-Based Generative Modeling through Stochastic Differential Equations*, arXiv:2011.13456:
#   variance preserving and exploding as two equations.
# - Karras et al. 2022, *Elucidating the Design Space of Diffusion-Based Generative Models*, arXiv:2206.00364: sigma
#   space, and the exact denoiser in appendix B.3.
# - Nichol & Dhariwal 2021, *Improved Denoising Diffusion Probabilistic Models*, arXiv:2102.09672: the cosine schedule.
# - Lin et al. 2023, *Common Diffusion Noise Schedules and Sample Steps are Flawed*, arXiv:2305.08891: the terminal SNR.
# - Vincent 2011, *A Connection Between Score Matching and Denoising Autoencoders*, Neural Computation 23(7): section 8.
