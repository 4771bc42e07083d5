"""The four things that ``ldm train`` trains, each as a :class:`ldm.training.loop.Task`.

    vae         pictures -> autoencoder                                   [model.vae]
    clip        pictures, captions -> text tower and image tower: ``ldm.training.towers``
    unet        latents, captions -> U-Net; the rest comes from ``base``    [model.unet] [model.schedule]
    classifier  latents, labels -> classifier of noisy latents, for scenes with one toy     [model.classifier]

A base that already has the part is trained on: that is fine-tuning, whole or, by ``layers``, in part. The table
``[loss]`` holds the numbers of the dataclass named in each function below.

B batch, H W picture, h w Z latents, S tokens, K hard negatives.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from ldm.hooks import watching
from ldm.models.autoencoder import VAE, VAEConfig, from_uint8, reparameterize
from ldm.models.classifier import Classifier, ClassifierConfig
from ldm.models.layers import Params, bind
from ldm.models.unet import UNet, UNetConfig
from ldm.schedule import NoiseSchedule
from ldm.toybox.scene import COLOURS, KINDS
from ldm.training import losses
from ldm.training.config import TrainConfig, read, within
from ldm.training.denoising import denoise, latents
from ldm.training.grounding import Layout, LayoutConfig, layout_loss
from ldm.training.loop import Task
from ldm.training.losses import DiffusionOptions, VAEWeights
from ldm.training.parts import (
    QUIET,
    TRAINING,
    base_of,
    fresh,
    known_tables,
    latents_of,
    merged,
    numbers,
    open_data,
    split,
    tokens,
    write,
)
from ldm.training.samples import draw, reconstruct
from ldm.training.towers import clip

SHOWN = 8  # pictures of a sheet of samples
FIRST_LOGVAR = -6.0
MEASURED = 512  # pictures by which the latents' scale is measured


def vae(config: TrainConfig, out: Path) -> Task:
    """Reconstruction and KL; ``[loss]``: :class:`ldm.training.losses.VAEWeights` without its last two.

    In the end the scale of the latents is measured, so that they have unit variance.
    """
    known_tables(config, "vae")
    base, weights = base_of(config), read(VAEWeights, config.loss, "loss")
    if weights.perceptual or weights.adversarial:
        raise ValueError("loss: perceptual and adversarial terms need networks that this task does not have; leave 0")
    own = numbers(VAEConfig, config, "vae", base)
    begun = base.params.get("vae") or sharp(fresh(VAE, own, config.seed, QUIET))
    trained, still = split(begun, config.layers)
    data = open_data(config, out)

    def loss(params: Any, frozen: Any, batch: Any, keys: Array) -> tuple[Array, dict]:
        model, x = bind(VAE, own, {**frozen["vae"], **params["vae"]}), from_uint8(batch["pictures"])
        mean, logvar = model.encode(x, TRAINING)
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
        return losses.vae_loss(model.decode(reparameterize(mean, logvar, noise), TRAINING), x, mean, logvar, weights)

    def finish(average: Any, out: Path) -> None:
        params = {**still, **average["vae"]}
        scaled = replace(own, scale=1 / float(reconstruct(own, params, data.some(MEASURED)["pictures"])[1]))
        size = tuple(data.some(1)["pictures"].shape[2:0:-1])
        write(out, replace(merged(base, replace(base.configs, vae=scaled), vae=params), size=size))

    shown = data.some(SHOWN)["pictures"]
    sample = lambda average, frozen: np.concatenate(
        [shown, reconstruct(own, {**frozen["vae"], **average["vae"]}, shown)[0]]
    )
    return Task("vae", {"vae": trained}, {"vae": still}, loss, data.batches, sample, finish)


def sharp(params: Params) -> Params:
    """Fresh parameters of an autoencoder whose latents have little noise at first: else it drowns what they say."""
    mean, logvar = np.split(np.zeros_like(params["quant.bias"]), 2)
    return {**params, "quant.bias": np.concatenate([mean, logvar + FIRST_LOGVAR])}


@dataclass(frozen=True)
class UNetOptions:
    """How noise is drawn and weighted, and the fraction of captions that are replaced by the empty one.

    layout: weight of ``ldm.training.grounding.layout_loss``, on features of the decoder's last level but one.
    """

    drop: float = within(0.1, (">=", 0), ("<=", 1))
    layout: float = within(0.0, (">=", 0))
    diffusion: DiffusionOptions = DiffusionOptions()  # noqa: RUF009


def unet(config: TrainConfig, out: Path) -> Task:
    """Denoising latents, given captions; ``[loss]``: :class:`UNetOptions`. Latents are made once, where they can be."""
    known_tables(config, "unet", "schedule")
    base, options = base_of(config), read(UNetOptions, config.loss, "loss")
    base.require("vae", "text")
    own = numbers(UNetConfig, config, "unet", base)
    schedule = base.configs.schedule if "unet" in base.params else schedule_of(config)
    configs = replace(base.configs, unet=own, schedule=schedule)
    trained, still = split(base.params.get("unet") or fresh(UNet, own, config.seed, QUIET), config.layers)
    words = tokens(base.tokenizer)
    wanted = {"maps": base.configs.vae.factor} if options.layout else {}
    data = open_data(config, out, latents_of(base), tokens=words, **wanted)
    empty = words([""])[0]
    frozen = {"unet": still, "vae": base.params["vae"], "text": base.params["text"], "empty": empty}
    deep = len(own.channels) > 1
    layout = LayoutConfig(own.channels[deep], 1 + deep)
    begun = {"unet": trained} | ({"layout": fresh(Layout, layout, config.seed + 1)} if options.layout else {})

    def loss(params: Any, frozen: Any, batch: Any, keys: Array) -> tuple[Array, dict]:
        hooks, features = watching(f"decoder.up.{len(own.channels) - 1 - deep}.", TRAINING)
        parts = {**frozen, "unet": {**frozen["unet"], **params["unet"]}}
        noise = denoise(configs, parts, batch, keys, options.drop, options.diffusion, hooks)
        if not options.layout:
            return noise
        head = bind(Layout, layout, params["layout"])
        shown = layout_loss(head, features[-1], batch["toys"], batch["segmentation"])
        return losses.added(noise, options.layout, shown)

    finish = lambda average, out: write(out, merged(base, configs, unet={**still, **average["unet"]}))
    shown = data.some(SHOWN)["ids"]
    sample = lambda average, frozen: draw(
        configs, {**frozen, "unet": {**frozen["unet"], **average["unet"]}}, shown, np.asarray(empty), base.size
    )
    return Task("unet", begun, frozen, loss, data.batches, sample, finish)


def schedule_of(config: TrainConfig) -> NoiseSchedule:
    """The schedule of a U-Net that is trained from nothing: the table ``model.schedule``."""
    return read(NoiseSchedule, config.model.get("schedule", {}), "model.schedule")


def classifier(config: TrainConfig, out: Path) -> Task:
    """Kind and colour of the toy in a noisy latent; ``[loss]``: :class:`ldm.training.losses.DiffusionOptions`."""
    known_tables(config, "classifier", "schedule")
    base, options = base_of(config), read(DiffusionOptions, config.loss, "loss")
    base.require("vae")
    table = {"classifier": {"labels": [len(KINDS), len(COLOURS)], **config.model.get("classifier", {})}}
    own = numbers(ClassifierConfig, replace(config, model=table), "classifier", base)
    schedule = base.configs.schedule if "unet" in base.params else schedule_of(config)
    trained, still = split(base.params.get("classifier") or fresh(Classifier, own, config.seed), config.layers)
    data = open_data(config, out, latents_of(base), labels=True)
    frozen = {"vae": base.params["vae"], "classifier": still}

    def loss(params: Any, frozen: Any, batch: Any, keys: Array) -> tuple[Array, dict]:
        parts = jax.vmap(lambda key: jax.random.split(key))(keys)
        x, t = losses.noisy(schedule, latents(base.configs, frozen, batch, parts[:, 0]), parts[:, 1], options)[:2]
        logits = bind(Classifier, own, {**frozen["classifier"], **params["classifier"]})(x, t)
        labels = {"kind": batch["labels"] // len(COLOURS), "colour": batch["labels"] % len(COLOURS)}
        each = {name: losses.classifier_loss(l, y) for (name, y), l in zip(labels.items(), logits, strict=True)}
        return sum(value for value, _ in each.values()), {f"{n}_accuracy": m["accuracy"] for n, (_, m) in each.items()}

    configs = replace(base.configs, classifier=own, schedule=schedule)
    finish = lambda average, out: write(out, merged(base, configs, classifier={**still, **average["classifier"]}))
    return Task("classifier", {"classifier": trained}, frozen, loss, data.batches, None, finish)


TASKS: dict[str, Callable[[TrainConfig, Path], Task]] = {
    "vae": vae,
    "clip": clip,
    "unet": unet,
    "classifier": classifier,
}
