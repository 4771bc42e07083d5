"""Training an IP-Adapter: one more task of ``ldm train``; its result is OUT/ip_adapter.safetensors.

    [loss]    :class:`ImageOptions`

A picture is its own image prompt: what the image tower sees in it must help to find it under the noise, and what the
caption says already need not be seen. B examples, S tokens of a caption, T of an image prompt.

Source: "IP-Adapter" (arXiv:2308.06721), section 3.2.2, eq. (6), and 4.1: in 5 % of the examples the caption is left
out, in 5 % the picture, and in 5 % both.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ldm import bundle
from ldm.adapters.image_prompt import Adapter, blank, looked_at, said_by, square_of
from ldm.adapters.ip_adapter import IPAdapter, IPAdapterConfig, Pairs, sites, with_pairs
from ldm.adapters.ip_adapter_file import save_adapter
from ldm.attention import training_attention
from ldm.bundle import Bundle
from ldm.hooks import Attend, Hooks
from ldm.models.autoencoder import from_uint8
from ldm.models.clip import unit
from ldm.models.layers import Params, bind, init
from ldm.models.vision import VisionConfig
from ldm.training.beside import WithKept
from ldm.training.config import TrainConfig, one_of, read, within
from ldm.training.denoising import denoise
from ldm.training.loop import Task
from ldm.training.losses import DiffusionOptions
from ldm.training.parts import TRAINING, split
from ldm.training.personal import begun, opened
from ldm.training.samples import draw
from ldm.training.seen_data import with_seen

SHOWN, MEASURED = 4, 16  # pictures of a sheet of samples; pictures by which resemblance is measured
ADAPTER_FILE = "ip_adapter.safetensors"


@dataclass(frozen=True)
class ImageOptions:
    """How the adapter is made, and trained.

    kind, tokens, width, depth    as :class:`ldm.adapters.ip_adapter.IPAdapterConfig` has them
    joined   what the paper compares with: no kernels of its own, the tokens join those of the text in one attention
    tower    a folder of ours that holds the image tower; none: the base's own
    drop     the share of examples without their caption, of those without their picture, and of those without both
    """

    kind: str = one_of("base", "base", "plus", "full")
    tokens: int = within(4, (">", 0), ("<=", 1024))
    width: int = within(768, (">=", 64))
    depth: int = within(4, (">", 0), ("<=", 64))
    joined: bool = False
    tower: str | None = None
    drop: float = within(0.05, (">=", 0), ("<=", 0.33))
    diffusion: DiffusionOptions = DiffusionOptions()  # noqa: RUF009


def config_for(base: Bundle, vision: VisionConfig, options: ImageOptions) -> IPAdapterConfig:
    """An adapter for a model and an image tower."""
    config = IPAdapterConfig(base.configs.unet, options.kind, options.tokens, 0, options.width, options.depth)
    return replace(config, image_dim=said_by(vision, config.reads_states))


def first_params(config: IPAdapterConfig, base: Bundle, seed: int) -> Params:
    """As the published program begins: K' and V' are copies of the text's, and the rest is fresh."""
    fresh, unet = init(IPAdapter, config, seed), base.params["unet"]
    own = {
        f"{role}.{i}.kernel": np.asarray(unet[f"{site}.{role}.kernel"])
        for i, site in enumerate(sites(config.unet))
        for role in ("k", "v")
    }
    return {**fresh, **own}


def left_out(keys: Array, share: float) -> tuple[Array, Array]:
    """Bool [B], [B]: whose caption, and whose picture, is left out. keys [B]."""
    u = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(keys)
    both = u >= 1 - share
    return (u < share) | both, ((u >= share) & (u < 2 * share)) | both


def ip_adapter(config: TrainConfig, out: Path) -> Task:
    """See above; the model itself is ``base``, and no number of it, or of the tower, changes."""
    options, base = read(ImageOptions, config.loss, "loss"), begun(config, "an IP-Adapter")
    towers = base if options.tower is None else bundle.load(options.tower, "float32")
    towers.require("image")
    vision, tower = towers.configs.image, towers.params["image"]
    data, empty = opened(base, config, out)
    own = config_for(base, vision, options)
    data = replace(data, source=with_seen(data.source, vision, tower, own.reads_states, out / "cache" / "seen"))
    learned, kernels = split(first_params(own, base, config.seed), ("^projection",) if options.joined else ())
    frozen = {**{part: dict(base.params[part]) for part in ("unet", "vae", "text")}, "empty": empty}
    frozen |= {"nothing": nothing(own, vision, tower), "kernels": kernels}
    attend = with_tokens if options.joined else with_pairs
    everywhere = dict.fromkeys(sites(own.unet), 1.0)

    def loss(params: Any, frozen: Any, batch: Any, keys: Array) -> tuple[Array, dict]:
        net = bind(IPAdapter, own, {**frozen["kernels"], **params["adapter"]})
        caption, picture = left_out(keys, options.drop)
        ids = jnp.where(caption[:, None], frozen["empty"], batch["ids"])
        gone = picture.reshape(-1, *[1] * (batch["seen"].ndim - 1))
        tokens = net.see(jnp.where(gone, frozen["nothing"], batch["seen"].astype(jnp.float32)))
        hooks = attend(net.pairs(tokens), everywhere, TRAINING, training_attention)
        return denoise(base.configs, frozen, {**batch, "ids": ids}, keys, 0.0, options.diffusion, hooks)

    def finish(average: Any, out: Path) -> None:
        save_adapter(Adapter(own, {**kernels, **average["adapter"]}), out / ADAPTER_FILE)

    sample, measure = looking(base, Adapter(own, kernels, vision, tower), data.source, np.asarray(empty), config.seed)
    looks = (None, None) if options.joined else (sample, measure)
    return Task("ip_adapter", {"adapter": learned}, frozen, loss, data.batches, looks[0], finish, looks[1])


def with_tokens(pairs: Pairs, scale: Any, hooks: Hooks, attend: Attend) -> Hooks:
    """Hooks of one attention over the tokens of the text and of the image prompt; there is no scale to it."""

    def joined(site: str, q: Array, k: Array, v: Array) -> Array:
        if site in pairs:
            k, v = (jnp.concatenate(both, axis=1) for both in zip((k, v), pairs[site], strict=True))
        return attend(site, q, k, v)

    return hooks._replace(attend=joined)


def nothing(config: IPAdapterConfig, vision: VisionConfig, tower: Params) -> Array:
    """[1, V] or [1, L, V]: what is seen where no picture is."""
    if not config.reads_states:
        return jnp.zeros((1, config.image_dim))
    return jnp.asarray(looked_at(vision, tower, blank(vision.image), True), jnp.float32)


def looking(
    base: Bundle, adapter: Adapter, source: WithKept, empty: np.ndarray, seed: int
) -> tuple[Callable, Callable]:
    """For ``Task.sample`` and ``Task.measure``: the first pictures as prompts, with no text."""
    first = np.arange(min(MEASURED, source.count))
    rows, true = source.rows(seed, first, first), source.pictures(first)
    size = true.shape[2], true.shape[1]

    def drawn(average: Any, count: int) -> np.ndarray:
        count = min(count, len(first))
        own = replace(adapter, params={**adapter.params, **average["adapter"]})
        ids = np.broadcast_to(empty, (count, len(empty)))
        return draw(base.configs, base.params, ids, empty, size, 0, prompt=(own, rows["seen"][:count]))

    def sample(average: Any, frozen: Any) -> np.ndarray:
        """Rows of a picture, and what is drawn of it alone."""
        pairs = true[:SHOWN], drawn(average, SHOWN)
        return np.stack(pairs, axis=1).reshape(-1, *true.shape[1:])

    def measure(average: Any, frozen: Any) -> dict[str, float]:
        """resemblance: the cosine of what the tower says of what is drawn and of the prompt."""
        look = lambda pictures: unit(seen_in(adapter, pictures))
        return {"resemblance": float((look(drawn(average, len(first))) * look(true)).sum(-1).mean())}

    return sample, measure


def seen_in(adapter: Adapter, pictures: np.ndarray) -> Array:
    """[P, V]: the tower's one vector for each picture, uint8."""
    fitted = np.stack([square_of(picture, adapter.vision.image) for picture in pictures])
    return looked_at(adapter.vision, adapter.tower, from_uint8(fitted), False)


TASKS = {"ip_adapter": ip_adapter}
