"""The task of ``ldm train clip``: a text tower and an image tower, contrastively.

    clip        pictures, captions -> text tower and image tower          [model.text] [model.image] model.tokenizer

With the text tower ``locked``, the base's picture tower, or a new one, learns to fit what the texts mean already. B
batch, S tokens, K hard negatives.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from ldm.models import clip as pair
from ldm.models.autoencoder import from_uint8
from ldm.models.layers import bind
from ldm.models.text import TextConfig, TextTower
from ldm.models.vision import VisionConfig, VisionTower
from ldm.tokenizer import Tokenizer
from ldm.training import losses
from ldm.training.config import TrainConfig, read, within
from ldm.training.grounding import Layout, LayoutConfig, Reader, ReaderConfig, layout_loss, read_loss
from ldm.training.loop import Task
from ldm.training.parts import base_of, fresh, known_tables, merged, numbers, open_data, tokens, write


@dataclass(frozen=True)
class CLIPOptions:
    """How the towers are trained.

    hard    captions that are nearly true, for each picture
    read    weight of ``ldm.training.grounding.read_loss``
    layout  weight of ``ldm.training.grounding.layout_loss``, on the states of the picture's patches
    locked  the text tower stays the base's: a picture tower learns to fit it (LiT, arXiv:2111.07991)
    """

    hard: int = within(0, (">=", 0))
    read: float = within(0.0, (">=", 0))
    layout: float = within(0.0, (">=", 0))
    locked: bool = False


def clip(config: TrainConfig, out: Path) -> Task:
    """Both towers, contrastively; ``[loss]``: :class:`CLIPOptions`."""
    known_tables(config, "text", "image", "tokenizer")
    base, options = base_of(config), read(CLIPOptions, config.loss, "loss")
    base.require(*(["text"] if options.locked else []))
    folder = config.model.get("tokenizer")
    tokenizer = base.tokenizer if folder is None else Tokenizer.from_folder(Path(folder))
    words = tokens(tokenizer)
    text, image = numbers(TextConfig, config, "text", base), numbers(VisionConfig, config, "image", base)
    fitting(text, words)
    towers = {"text": (TextTower, text, 0), "image": (VisionTower, image, 1)}
    begun = {part: base.params.get(part) or fresh(m, own, config.seed + n) for part, (m, own, n) in towers.items()}
    wanted = {"hard": options.hard, "truth": options.read > 0, "maps": image.patch if options.layout else 0}
    data = open_data(config, out, tokens=words, **{name: value for name, value in wanted.items() if value})
    heads = {"read": (Reader, ReaderConfig(text.width)), "layout": (Layout, LayoutConfig(image.width))}
    heads = {name: made for name, made in heads.items() if getattr(options, name)}
    begun |= {name: fresh(*made, config.seed + 2) for name, made in heads.items()}
    begun["clip"] = {"log_scale": np.float32(pair.FIRST_LOG_SCALE)}
    still = {"text": begun.pop("text")} if options.locked else {}

    def loss(params: Any, frozen: Any, batch: Any, keys: Array) -> tuple[Array, dict]:
        params = params | frozen
        patches, seen = bind(VisionTower, image, params["image"])(from_uint8(batch["pictures"]))
        count, ids = len(seen), batch["ids"]
        if options.hard:
            ids = jnp.concatenate([ids, batch["hard_ids"].reshape(-1, ids.shape[-1])])
        context, said = bind(TextTower, text, params["text"])(ids)
        total = losses.clip_loss(said[:count], seen, params["clip"]["log_scale"], said[count:], beside(ids, count))
        asked = {name: bind(*made, params[name]) for name, made in heads.items()}
        for name, more in grounded(asked, context[:count], patches[:, 1:], batch).items():
            total = losses.added(total, getattr(options, name), more)
        return total

    def finish(average: Any, out: Path) -> None:
        made = {part: (average | still)[part] for part in towers}
        write(out, replace(merged(base, replace(base.configs, text=text, image=image), **made), tokenizer=tokenizer))

    return Task("clip", begun, still, loss, data.batches, None, finish)


def grounded(heads: dict[str, Any], context: Array, patches: Array, batch: Any) -> dict[str, tuple[Array, dict]]:
    """The losses of the heads that there are; context [B, S, E] of the texts, patches [B, L, E] of the pictures."""
    found = {}
    if "read" in heads:
        found["read"] = read_loss(heads["read"], context, batch["toys"], batch["seen"])
    if "layout" in heads:
        found["layout"] = layout_loss(heads["layout"], patches, batch["toys"], batch["segmentation"])
    return found


def beside(ids: Array, count: int) -> Array:
    """Pairs that are no mistakes: [B, B + B K] bool, for ids [B + B K, S], captions first, then K mistakes for each.

    Those are a caption that says the same as the picture's own, word for word; and the mistakes made for another
    picture, which may be true of this one.
    """
    own = jnp.arange(count)
    same = (ids[:count, None] == ids[None, :count]).all(-1)
    others = own[:, None] != own[None].repeat(len(ids) // count - 1, axis=1)
    return jnp.concatenate([same, others], axis=1)


def fitting(text: TextConfig, words: Any) -> None:
    """Raises ValueError if a text tower's numbers are not those of the tokenizer."""
    tokenizer = words.tokenizer
    wanted = {"vocabulary": tokenizer.vocab_size, "length": tokenizer.max_length, "end_id": tokenizer.eos}
    odd = [name for name, value in wanted.items() if getattr(text, name) != value]
    if odd:
        raise ValueError(f"model.text.{odd[0]} is {getattr(text, odd[0])}, but the tokenizer's is {wanted[odd[0]]}")
