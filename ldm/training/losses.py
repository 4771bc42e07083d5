"""The losses of every model, as pure functions. A function named ``..._loss`` returns (loss [], metrics {name: []}).

Shapes: B batch, H W height and width, C channels, h w Z latent, S tokens, P joint text-image space, K extra captions.
All arithmetic is float32, whatever comes in. ``keys`` [B]: a random key for each example, see ``ldm.training.step``.

Sources, cited as [name] below:
    [VAE]     "Auto-Encoding Variational Bayes" (arXiv:1312.6114), appendix B
    [GDL]     "Deep multi-scale video prediction beyond mean square error" (arXiv:1511.05440), eq. (6)
    [LPIPS]   "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (arXiv:1801.03924), eq. (1)
    [SAGAN]   "Self-Attention Generative Adversarial Networks" (arXiv:1805.08318), eq. (4): the hinge losses
    [CLIP]    "Learning Transferable Visual Models From Natural Language Supervision" (arXiv:2103.00020), figure 3
    [NegCLIP] "When and why vision-language models behave like bags-of-words" (arXiv:2210.01936), section 4
    [DDPM]    "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239), eq. (14)
    [MinSNR]  "Efficient Diffusion Training via Min-SNR Weighting Strategy" (arXiv:2303.09556), section 3.4
    [CFG]     "Classifier-Free Diffusion Guidance" (arXiv:2207.12598), algorithm 1
    [SD3]     "Scaling Rectified Flow Transformers" (arXiv:2403.03206), eq. (19) and (23)
    [Guided]  "Diffusion Models Beat GANs on Image Synthesis" (arXiv:2105.05233), section 4
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from ldm.denoiser import add_noise, to_variance_preserving, v_from_x0
from ldm.models.clip import LARGEST_LOG_SCALE, unit
from ldm.schedule import PREDICTIONS, NoiseSchedule, check_name, sigma_at

Metrics = dict[str, Array]
TIMESTEPS = ("uniform", "logit_normal")
TINY = 1e-12


def _single(*arrays: Array) -> list[Array]:
    return [jnp.asarray(array, jnp.float32) for array in arrays]


# ---------------------------------------------------------------------------------------------------------------------
# The autoencoder


@dataclass(frozen=True)
class VAEWeights:
    """How much each part of :func:`vae_loss` counts."""

    l1: float = 1.0
    mse: float = 1.0
    gradient: float = 1.0
    kl: float = 1e-4
    perceptual: float = 0.0
    adversarial: float = 0.0


def gradient_l1(decoded: Array, target: Array) -> Array:
    """Mean absolute difference of the steps between neighbouring pixels, [B, H, W, C] both, down plus across; [].

    [GDL] eq. (6) with exponent 1, but for the signs: it compares sizes of steps, here an edge the wrong way counts.
    """
    error = jnp.subtract(*_single(decoded, target))
    return jnp.abs(jnp.diff(error, axis=1)).mean() + jnp.abs(jnp.diff(error, axis=2)).mean()


def kl(mean: Array, logvar: Array) -> Array:
    """KL divergence of N(mean, exp(logvar)) from N(0, 1), a latent number; any shape, []. [VAE] appendix B, -D_KL."""
    mean, logvar = _single(mean, logvar)
    return 0.5 * (mean**2 + jnp.expm1(logvar) - logvar).mean()


def perceptual(ours: Sequence[Array], theirs: Sequence[Array]) -> Array:
    """Distance of two lists of features [B, h, w, C], one entry a layer; []. [LPIPS] eq. (1) with weights of 1.

    Features are brought to unit length over C; squared distances are averaged over places and summed over layers.
    """
    distances = [((unit(a) - unit(b)) ** 2).sum(-1).mean() for a, b in map(_single, ours, theirs)]
    return jnp.stack(distances).sum()


def generator_hinge(fake: Array) -> Array:
    """What the autoencoder pays for being found out: -mean(D(fake)); logits of any shape, []. [SAGAN] eq. (4)."""
    return -jnp.asarray(fake, jnp.float32).mean()


def discriminator_hinge(real: Array, fake: Array) -> Array:
    """What the critic pays: mean(max(0, 1 - D(real))) + mean(max(0, 1 + D(fake))); logits, []. [SAGAN] eq. (4).

    Both can be trained by one step: add this, of pictures under ``stop_gradient``, to the loss of the autoencoder,
    which in turn asks a critic whose parameters are under ``stop_gradient``.
    """
    real, fake = _single(real, fake)
    return jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean()


def vae_loss(
    decoded: Array,
    target: Array,
    mean: Array,
    logvar: Array,
    weights: VAEWeights = VAEWeights(),
    **more: Array,
) -> tuple[Array, Metrics]:
    """Reconstruction and KL divergence. Pictures [B, H, W, C] in [-1, 1], mean and logvar [B, h, w, Z].

    ``more``: ``perceptual=`` and ``adversarial=`` [], where wanted: of the functions above. Metrics: every part before
    weighting, and psnr in dB of the whole batch, for pictures of width 2.
    """
    decoded, target = _single(decoded, target)
    error = decoded - target
    parts = {"l1": jnp.abs(error).mean(), "mse": (error**2).mean(), "gradient": gradient_l1(decoded, target)}
    parts |= {"kl": kl(mean, logvar), **more}
    loss = sum(getattr(weights, name) * part for name, part in parts.items())
    return loss, {**parts, "psnr": 10 * jnp.log10(4 / (parts["mse"] + TINY))}


# ---------------------------------------------------------------------------------------------------------------------
# Text and image towers; classifiers


def clip_loss(
    text: Array, image: Array, log_scale: Array, extra_text: Array | None = None, ignore: Array | None = None
) -> tuple[Array, Metrics]:
    """Symmetric cross-entropy of pairs among all pairs of a batch. [CLIP] figure 3.

    text, image  [B, P], of any length: they are brought to length 1 here
    log_scale    [], learned: similarities are multiplied by exp(log_scale), 100 at most (the gradient passes all the
                 same, so that a scale at the limit can come back)
    extra_text   [K, P]: captions that are wrong for every picture of the batch, such as those with colours swapped.
                 A picture has to be told from them too, [NegCLIP]
    ignore       [B, B + K] bool, rows pictures: pairs that are not wrong though they are no pair, such as two pictures
                 with the same caption. They are left out of both softmaxes. The diagonal is never left out

    Metrics: image_accuracy and text_accuracy, the fraction of pictures (captions) whose best match is their own; scale.
    """
    captions = text if extra_text is None else jnp.concatenate([text, extra_text])
    captions, image, log_scale = _single(captions, image, log_scale)
    log_scale = log_scale + jax.lax.stop_gradient(jnp.minimum(log_scale, LARGEST_LOG_SCALE) - log_scale)
    logits = jnp.exp(log_scale) * unit(image) @ unit(captions).T  # [B, B + K]
    count = len(image)
    if ignore is not None:
        logits = jnp.where(ignore & ~jnp.eye(*logits.shape, dtype=bool), -jnp.inf, logits)
    by_image, image_accuracy = _cross_entropy(logits, jnp.arange(count))
    by_text, text_accuracy = _cross_entropy(logits[:, :count].T, jnp.arange(count))
    metrics = {"image_accuracy": image_accuracy, "text_accuracy": text_accuracy, "scale": jnp.exp(log_scale)}
    return (by_image + by_text) / 2, metrics


def classifier_loss(logits: Array, labels: Array) -> tuple[Array, Metrics]:
    """Cross-entropy of classes: logits [..., N], labels int [...]. Metrics: accuracy.

    On noisy latents it trains the classifier of classifier guidance, [Guided] section 4.
    """
    loss, accuracy = _cross_entropy(*_single(logits), labels)
    return loss, {"accuracy": accuracy}


def _cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Mean of -log softmax(logits)[label], and how often the label is the largest."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)
    return -chosen.mean(), (logits.argmax(-1) == labels).mean()


# ---------------------------------------------------------------------------------------------------------------------
# Diffusion


@dataclass(frozen=True)
class DiffusionOptions:
    """How the noisy examples of :func:`denoising_loss` are drawn and weighted; the defaults are [DDPM]'s.

    min_snr       gamma of [MinSNR], 5 there; 0: every level counts alike in terms of what the network predicts
    offset_noise  see :func:`offset_noise`; 0.1 in its source
    timesteps, shift, mean, deviation   see :func:`timesteps`
    """

    min_snr: float = 0.0
    offset_noise: float = 0.0
    timesteps: str = "uniform"
    shift: float = 1.0
    mean: float = 0.0
    deviation: float = 1.0

    def __post_init__(self):
        check_name("choice of timesteps", self.timesteps, TIMESTEPS)
        if not (self.min_snr >= 0 and self.offset_noise >= 0 and self.shift > 0 and self.deviation > 0):
            raise ValueError(f"min_snr, offset_noise must not be negative, shift, deviation must be positive: {self}")


def timesteps(
    keys: Array, schedule: NoiseSchedule, how: str = "uniform", shift: float = 1.0, mean=0.0, deviation=1.0
) -> Array:
    """A whole timestep 0 .. T-1 for each key; float32 [B].

    how    "uniform"; or "logit_normal", floor(T sigmoid(mean + deviation n)), n normal: fewer at both ends, [SD3] (19)
    shift  moves timesteps u in 0..1 to shift u / (1 + (shift - 1) u), more noise above 1: [SD3] (23)
    """
    check_name("choice of timesteps", how, TIMESTEPS)
    if how == "uniform":
        u = jax.vmap(jax.random.uniform)(keys)
    else:
        u = jax.nn.sigmoid(mean + deviation * jax.vmap(jax.random.normal)(keys))
    u = shift * u / (1 + (shift - 1) * u)
    return jnp.minimum(jnp.floor(u * schedule.train_steps), schedule.train_steps - 1).astype(jnp.float32)


def offset_noise(keys: Array, shape: tuple[int, ...], strength: float = 0.0) -> Array:
    """Unit noise [B, *shape], plus ``strength`` times one normal number for each example and channel; float32.

    shape is [h, w, Z]. The shared part teaches the network to move the mean of a picture, which white noise hardly
    does: pictures can come out dark or bright as a whole. Source: "Diffusion With Offset Noise" (Cross Labs, 2023).
    """

    def one(key: Array) -> Array:
        white, common = jax.random.split(key)
        return jax.random.normal(white, shape) + strength * jax.random.normal(common, (1, 1, shape[-1]))

    return jax.vmap(one)(keys)


def drop_captions(keys: Array, ids: Array, empty_ids: Array, rate: float) -> Array:
    """Token ids [B, S] with each caption exchanged for the empty one, [S], with probability ``rate``. [CFG] alg. 1."""
    drop = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)
    return jnp.where(drop[:, None], empty_ids, ids)


def target_for(prediction: str, x0: Array, noise: Array, sigma: Array) -> Array:
    """What a network should answer: noise ("epsilon"), v ("v_prediction") or x0 ("sample").

    The names are "epsilon", "v_prediction" and "sample". x0, noise [B, h, w, Z]; sigma broadcasts against them:
    [B, 1, 1, 1]. See ``ldm.denoiser``.
    """
    check_name("prediction type", prediction, PREDICTIONS)
    return {"epsilon": noise, "sample": x0, "v_prediction": v_from_x0(x0, noise, sigma)}[prediction]


def min_snr_weight(sigma: Array, gamma: float, prediction: str) -> Array:
    """Weight of the squared error at noise level sigma > 0, any shape. [MinSNR] section 3.4.

    With SNR = 1 / sigma^2: min(SNR, gamma) for x0, the same over SNR for eps, over SNR + 1 for v. All three weight the
    error of x0 alike.
    """
    check_name("prediction type", prediction, PREDICTIONS)
    snr = 1 / jnp.asarray(sigma, jnp.float32) ** 2
    return jnp.minimum(snr, gamma) / {"sample": 1.0, "epsilon": snr, "v_prediction": snr + 1}[prediction]


def diffusion_loss(prediction: Array, target: Array, weight: Array | float = 1.0) -> tuple[Array, Metrics]:
    """Weighted squared error, [DDPM] eq. (14): prediction, target [B, h, w, Z], weight [B] or []. Metrics: mse."""
    prediction, target = _single(prediction, target)
    each = ((prediction - target) ** 2).reshape(len(target), -1).mean(-1)  # [B]
    return (weight * each).mean(), {"mse": each.mean()}


def denoising_loss(
    network: Callable[[Array, Array], Array],
    schedule: NoiseSchedule,
    x0: Array,
    keys: Array,
    options: DiffusionOptions = DiffusionOptions(),
) -> tuple[Array, Metrics]:
    """The whole of training's arithmetic: draw t and noise, add it, ask the network, compare. [DDPM] algorithm 1.

    network is (x in the variance-preserving form [B, h, w, Z] float32, t [B] float32) -> eps, v or x0, by ``schedule``;
    x0 [B, h, w, Z] latents of unit variance. Metrics: mse, unweighted.
    """
    x, t, noise, sigma = noisy(schedule, x0, keys, options)
    answer, wide = network(x, t), sigma[:, None, None, None]
    weight = min_snr_weight(sigma, options.min_snr, schedule.prediction) if options.min_snr else 1.0
    target = target_for(schedule.prediction, jnp.asarray(x0, jnp.float32), noise, wide)
    return diffusion_loss(answer, target, weight)


def noisy(schedule: NoiseSchedule, x0: Array, keys: Array, options: DiffusionOptions) -> tuple[Array, ...]:
    """Noise added at timesteps drawn at random: (x, in the variance-preserving form; t [B]; noise; sigma [B])."""
    parts = jax.vmap(lambda key: jax.random.split(key))(keys)  # [B, 2]
    o = options
    t = timesteps(parts[:, 0], schedule, o.timesteps, o.shift, o.mean, o.deviation)
    noise = offset_noise(parts[:, 1], x0.shape[1:], o.offset_noise)
    sigma = sigma_at(schedule, t)  # [B]
    wide, (x0,) = sigma[:, None, None, None], _single(x0)
    return to_variance_preserving(add_noise(x0, noise, wide), wide), t, noise, sigma


def added(first: tuple[Array, dict], weight: float, second: tuple[Array, dict]) -> tuple[Array, dict]:
    """Two losses with their metrics as one: first + weight second."""
    return first[0] + weight * second[0], first[1] | second[1]
