"""Image prompts: pictures that a run is to resemble, through IP-Adapters, as many at once as one likes.

Shapes: N pictures of a run, P pictures of one prompt, H W their size; T tokens of a prompt, E width of the context, V
and L as in ``ldm.adapters.ip_adapter``; B rows of a call of the U-Net, negative prompts first; n sites.

What is said of the pictures of one prompt stands side by side in one attention; several prompts, each with its own
adapter or its own scale, are attentions that are added.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from ldm.adapters.interval import interval, number
from ldm.adapters.ip_adapter import IPAdapter, IPAdapterConfig, sites, with_pairs
from ldm.adapters.lora import Lora
from ldm.hooks import Hooks
from ldm.models.autoencoder import from_uint8
from ldm.models.layers import Params, bind, whole
from ldm.models.unet import UNetConfig
from ldm.models.vision import MEAN, VisionConfig, VisionTower
from ldm.pictures import as_pictures
from ldm.samplers import Plan


@dataclass(frozen=True)
class Adapter:
    """An IP-Adapter as a plain value, with the vision tower that it was trained beside.

    ``vision`` and ``tower`` are None where what it is given is no picture but a vector: a face recogniser's. ``lora``
    is what was trained in the U-Net beside it, if anything was: ``ldm.with_lora(bundle, adapter.lora)`` applies it.
    """

    config: IPAdapterConfig
    params: Params
    vision: VisionConfig | None = None
    tower: Params | None = None
    lora: Lora | None = None


@dataclass(frozen=True)
class ImagePrompt:
    """A picture, or several seen together, as a prompt; all but the adapter are run-time values.

    image     [H, W, 3] uint8, or a list of such, of any sizes: the same for every picture of the run; or [N, H, W, 3],
              one for each. For an adapter without a tower, vectors [V] or [P, V] float
    scale     0: as if it were not there; or {the beginning of a site's name: scale}, of which the longest that fits
              counts, and 0 where none does: ``ldm.adapters.ip_adapter.sites``
    start, end    the share of the steps, 0..1, from which and up to which it counts
    negative  a picture that the run is not to resemble; None: what the adapter was trained to take for nothing
    """

    adapter: Adapter
    image: Any
    scale: float | Mapping[str, float] = 1.0
    start: float = 0.0
    end: float = 1.0
    negative: Any = None


class Showing(NamedTuple):
    """The run-time numbers of one image prompt. It counts at noise levels in (low, high]."""

    scales: Array  # [n] float32, of the sites in their order
    high: Array  # []
    low: Array  # []


# ---------------------------------------------------------------------------------------------------------------------
# What a call asks for, on the host


def showing_of(prompt: ImagePrompt, plan: Plan) -> Showing:
    """The numbers of an image prompt for a run of ``plan``. Raises ValueError."""
    scales = scales_of(prompt.scale, prompt.adapter.config.unet)
    return Showing(scales, *interval("an image prompt", prompt.start, prompt.end, plan))


def scales_of(scale: Any, unet: UNetConfig) -> np.ndarray:
    """[n] float32. Raises ValueError for what is no number, and for a beginning that no site's name has."""
    names = list(sites(unet))
    if not isinstance(scale, Mapping):
        return np.full(len(names), number("scale of an image prompt", scale), np.float32)
    for key, value in scale.items():
        number(f"scale of an image prompt at {key!r}", value)
        if not any(name.startswith(key) for name in names):
            raise ValueError(f"no cross-attention's site begins with {key!r}; one is {names[0]}")
    longest = lambda name: max((key for key in scale if name.startswith(key)), key=len, default=None)
    return np.array([0.0 if (key := longest(name)) is None else scale[key] for name in names], np.float32)


def tokens_of(prompt: ImagePrompt, count: int) -> np.ndarray:
    """[N, 2, S, E] float32: of nothing, and of the prompt, for each picture of a run. Raises ValueError."""
    adapter = prompt.adapter
    groups = groups_of(adapter, prompt.image, count)
    E = adapter.config.unet.context_dim
    said = of_all(adapter, np.concatenate(groups)).reshape(len(groups), len(groups[0]), -1, E)
    nothing = said_of_nothing(adapter, prompt.negative)
    both = np.stack([np.broadcast_to(nothing, said.shape), said], axis=1)
    both = both.reshape(len(groups), 2, -1, said.shape[-1])
    return np.broadcast_to(both, (count, *both.shape[1:]))


def groups_of(adapter: Adapter, image: Any, count: int) -> list[np.ndarray]:
    """What is seen, as the tower or the adapter takes it: one array [P, ...] for all pictures, or one for each."""
    if adapter.vision is None:
        return [vectors_of(adapter, image)]
    side = adapter.vision.image
    fit = lambda picture: from_uint8(square_of(as_pictures(picture, 1)[0], side))
    if isinstance(image, list | tuple):
        if not image:
            raise ValueError("an image prompt needs a picture, and its list is empty")
        return [np.stack([fit(one) for one in image])]
    if np.ndim(image) == 4 and len(image) not in (1, count):
        raise ValueError(f"there are {len(image)} image prompts for {count} pictures: give one, or one for each")
    return [fit(one)[None] for one in (image if np.ndim(image) == 4 else [image])]


def vectors_of(adapter: Adapter, image: Any) -> np.ndarray:
    """[P, V] float32 for an adapter without a tower. Raises ValueError."""
    wide = adapter.config.image_dim
    try:
        vectors = np.atleast_2d(np.asarray(image, np.float32))
    except (TypeError, ValueError):
        vectors = np.empty(0)
    if vectors.ndim != 2 or vectors.shape[1] != wide or not np.isfinite(vectors).all():
        raise ValueError(
            f"this adapter has no image tower: in place of pictures it sees vectors of {wide} finite numbers, such as a"
            f" face recogniser's, and it was given {type(image).__name__} {np.shape(vectors)}"
        )
    return vectors


def square_of(picture: np.ndarray, side: int) -> np.ndarray:
    """[H, W, 3] uint8 -> [side, side, 3], as CLIP's own programs do: bicubic until the shorter side fits, then the
    middle."""
    height, width = picture.shape[:2]
    longer = int(side * max(height, width) / min(height, width))
    size = (side, longer) if width <= height else (longer, side)
    resized = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - side) // 2, (resized.shape[1] - side) // 2
    return resized[top : top + side, left : left + side]


def said_of_nothing(adapter: Adapter, negative: Any = None) -> np.ndarray:
    """[1, T, E]: of the negative picture; or of what stood for nothing in training: the vector 0, or, where the
    tower's states are read, what it says of a blank picture."""
    if negative is not None:
        return of_all(adapter, groups_of(adapter, negative, 1)[0])
    if not adapter.config.reads_states:
        return np.asarray(_see(adapter.params, np.zeros((1, adapter.config.image_dim), np.float32), adapter.config))
    return of_all(adapter, blank(adapter.vision.image))


def blank(side: int) -> np.ndarray:
    """[1, side, side, 3]: the picture that CLIP's scaling makes 0, of the mean colour."""
    return np.broadcast_to(2 * np.array(MEAN, np.float32) - 1, (1, side, side, 3))


def of_all(adapter: Adapter, seen: np.ndarray) -> np.ndarray:
    """[P, T, E] of pictures [P, H, W, 3] in [-1, 1], or of vectors [P, V]; one after another."""
    config, vision = adapter.config, adapter.vision
    look = lambda each: each if vision is None else looked_at(vision, adapter.tower, each, config.reads_states)
    return np.concatenate([np.asarray(_see(adapter.params, look(each[None]), config), np.float32) for each in seen])


@functools.partial(jax.jit, static_argnames=("vision", "states"))
def looked_at(vision: VisionConfig, tower: Any, pictures: Array, states: bool) -> Array:
    """What a tower says of pictures [P, H, W, 3] in [-1, 1]: their penultimate states [P, L, V], or a vector [P, V]."""
    found = bind(VisionTower, vision, whole(tower))(pictures, 1)
    return found.tokens if states else found.pooled


@functools.partial(jax.jit, static_argnums=2)
def _see(params: Any, seen: Array, config: IPAdapterConfig) -> Array:
    return bind(IPAdapter, config, whole(params)).see(seen)


def check_adapter(adapter: Adapter, unet: UNetConfig) -> None:
    """Raises ValueError unless an adapter is for this U-Net, and its tower says what it expects."""
    check_unet(adapter.config, unet)
    if adapter.vision is not None:
        check_tower(adapter.config, adapter.vision)
    elif adapter.config.reads_states:
        raise ValueError("the IP-Adapter reads the states of an image tower, and has none: load it with its tower")


def check_unet(config: IPAdapterConfig, unet: UNetConfig) -> None:
    """Raises ValueError unless an adapter is for this U-Net."""
    if config.unet.context_dim != unet.context_dim:
        raise ValueError(
            f"the IP-Adapter makes tokens {config.unet.context_dim} wide, and the model's are {unet.context_dim}:"
            " use one that was made for its family"
        )
    if sites(config.unet) != sites(unet):
        raise ValueError("the IP-Adapter's attentions are not the model's: use one that was made for its family")


def said_by(vision: VisionConfig, states: bool) -> int:
    """V: how wide a tower's states are, or the one vector that it makes of a picture."""
    return vision.width if states else vision.projection or vision.width


def check_tower(config: IPAdapterConfig, vision: VisionConfig | None) -> None:
    """Raises ValueError unless an image tower says what an adapter expects; None: there is none."""
    if vision is None:
        raise ValueError("holds no image tower")
    says = said_by(vision, config.reads_states)
    if says != config.image_dim:
        raise ValueError(
            f"the IP-Adapter expects {config.image_dim} numbers of its image tower, and this one says {says}: give it"
            " the tower that it was trained beside"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Inside the compiled program


Show = Callable[[int, Array, Hooks], Hooks]


def shown(configs: Sequence[IPAdapterConfig], params: Any, tokens: Sequence[Array], showing: Sequence[Showing]) -> Show:
    """(rows B of a call, sigma, hooks) -> hooks with every image prompt in them. Tokens are looked at here, once."""
    found = []
    for config, own, both in zip(configs, params, tokens, strict=True):
        rows = jnp.concatenate([both[:, 0], both[:, 1]])
        found.append(bind(IPAdapter, config, whole(own)).pairs(rows))

    def show(batch: int, sigma: Array, hooks: Hooks) -> Hooks:
        for config, pairs, how in zip(configs, found, showing, strict=True):
            on = (sigma <= how.high) & (sigma > how.low)
            scale = {site: on * how.scales[i] for i, site in enumerate(sites(config.unet))}
            hooks = with_pairs(jax.tree.map(lambda a: a[-batch:], pairs), scale, hooks)
        return hooks

    return show
