"""Training a ControlNet: one more task of ``ldm train``; its result is OUT/control.safetensors.

    [data] hint = "edges"     what it learns to follow: see ``ldm.training.hint_data``
    [loss]                    :class:`ControlOptions`

B examples, H W pictures, h w Z latents, S tokens.

Source: "Adding Conditional Control to Text-to-Image Diffusion Models" (arXiv:2302.05543), sections 3.1 and 3.3: a copy
of the encoder is trained and the model itself left alone; half of the captions are replaced by the empty one, so that
the copy must read what is to be seen in the hint.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log2
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ldm.adapters.control_file import save_net
from ldm.adapters.controlnet import ControlNet, ControlNetConfig, Net
from ldm.bundle import Bundle
from ldm.evaluation.adherence import edge_agreement
from ldm.models.layers import Params, bind, init, lecun_normal
from ldm.training.beside import WithKept
from ldm.training.config import TrainConfig, one_of, read, within
from ldm.training.denoising import denoise
from ldm.training.hint_data import with_hints
from ldm.training.loop import Task
from ldm.training.losses import DiffusionOptions
from ldm.training.parts import TRAINING
from ldm.training.personal import begun, opened
from ldm.training.samples import draw

SHOWN, MEASURED = 3, 16  # rows of a sheet of samples; pictures by which adherence is measured
WIDTHS = (16, 32, 96, 256)  # of the published net; fewer where a latent's pixel is fewer pixels wide
CONTROL_FILE = "control.safetensors"


@dataclass(frozen=True)
class ControlOptions:
    """drop: the share of captions that are replaced by the empty one. begin: the outer convolutions at "zero", or
    "gaussian", as ordinary layers begin: what the paper's figure 8 compares."""

    drop: float = within(0.5, (">=", 0), ("<=", 1))
    begin: str = one_of("zero", "zero", "gaussian")
    diffusion: DiffusionOptions = DiffusionOptions()  # noqa: RUF009


def config_for(base: Bundle) -> ControlNetConfig:
    """A ControlNet for a model: its encoder, and a hint network down to its latents."""
    unet = replace(base.configs.unet, in_channels=base.configs.unet.out_channels)
    return ControlNetConfig(unet, widths=WIDTHS[: 1 + int(log2(base.configs.vae.factor))])


def first_params(config: ControlNetConfig, base: Bundle, begin: str, seed: int) -> Params:
    """Section 3.1: the encoder and the time embedding are the model's own; the hint network is fresh, and what leads
    into and out of the copy is zero, or Gaussian."""
    fresh, unet = init(ControlNet, config, seed), base.params["unet"]
    copied = {name: np.asarray(unet[name]) for name in fresh if name.startswith(("encoder.", "time_mlp."))}
    name, channels = "encoder.conv_in.kernel", config.unet.in_channels
    copied[name] = copied[name][:, :, :channels]  # a model with more input channels: the latent's come first
    if begin == "gaussian":
        outer = [n for n in fresh if n.endswith(".kernel") and n.startswith(("zero", last_hint(config)))]
        keys = jax.random.split(jax.random.key(seed), len(outer))
        copied |= {n: lecun_normal(key, fresh[n].shape) for n, key in zip(outer, keys, strict=True)}
    return {**fresh, **copied}


def last_hint(config: ControlNetConfig) -> str:
    """The name of the hint network's last convolution, the inner of the zero convolutions."""
    return f"hint.convs.{2 * len(config.widths) - 1}."


def controlnet(config: TrainConfig, out: Path) -> Task:
    """See above; the model itself is ``base``, and no number of it changes."""
    options, base = read(ControlOptions, config.loss, "loss"), begun(config, "a ControlNet")
    table = dict(config.data)
    name = table.pop("hint", None)
    if not isinstance(name, str):
        raise ValueError('data.hint is missing: what the ControlNet is to follow, such as "edges"')
    data, empty = opened(base, replace(config, data=table), out)
    data = replace(data, source=with_hints(data.source, name, out / "cache" / "hints"))
    own = config_for(base)
    begin = {"control": first_params(own, base, options.begin, config.seed)}
    frozen = {**{part: dict(base.params[part]) for part in ("unet", "vae", "text")}, "empty": empty}

    def loss(params: Any, frozen: Any, batch: Any, keys: Array) -> tuple[Array, dict]:
        net, hint = bind(ControlNet, own, params["control"]), batch["hint"].astype(jnp.float32) / 255
        control = lambda x, t, cond: net(x, t, cond, hint, hooks=TRAINING)
        return denoise(base.configs, frozen, batch, keys, options.drop, options.diffusion, control=control)

    def finish(average: Any, out: Path) -> None:
        save_net(Net(own, average["control"]), out / CONTROL_FILE)

    sample, measure = looking(base, own, data.source, np.asarray(empty), config.seed)
    return Task("controlnet", begin, frozen, loss, data.batches, sample, finish, measure)


def looking(
    base: Bundle, own: ControlNetConfig, source: WithKept, empty: np.ndarray, seed: int
) -> tuple[Callable, Callable]:
    """For ``Task.sample`` and ``Task.measure``: the first pictures drawn again, from their hints and captions."""
    first = np.arange(min(MEASURED, source.count))
    rows, true = source.rows(seed, first, first), source.pictures(first)
    size = true.shape[2], true.shape[1]

    def drawn(average: Any, count: int) -> np.ndarray:
        net = Net(own, average["control"])
        return draw(base.configs, base.params, rows["ids"][:count], empty, size, 0, net, rows["hint"][:count])

    def sample(average: Any, frozen: Any) -> np.ndarray:
        """Rows of a hint, what is drawn, and the picture that the hint is of."""
        columns = rows["hint"][:SHOWN], drawn(average, SHOWN), true[:SHOWN]
        return np.stack(columns, axis=1).reshape(-1, *true.shape[1:])

    def measure(average: Any, frozen: Any) -> dict[str, float]:
        """adherence: how well edges agree with those of the picture that the hint is of."""
        return {"adherence": float(edge_agreement(drawn(average, len(first)), true).mean())}

    return sample, measure


TASKS = {"controlnet": controlnet}
