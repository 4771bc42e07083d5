"""Teaching a whole model something of one's own from a few pictures: three more tasks of ``ldm train``.

    lora               small matrices beside the kernels that ``layers`` name; OUT/lora.safetensors
    textual_inversion  the vectors of one new word, and nothing else; OUT/embedding.safetensors
    dreambooth         the whole U-Net, and the text tower on request, with pictures of the class against forgetting;
                       OUT/model

The pictures are a folder of one's own (``data.path``: captions in its ``metadata.jsonl``) or the toybox's. ``base`` is
a whole model. B examples, n vectors of a word, E width of the text tower.

Sources: "LoRA" (arXiv:2106.09685), section 4; "An Image is Worth One Word" (arXiv:2208.01618), section 3;
"DreamBooth" (arXiv:2208.12242), section 3.3, eq. (2), for the loss on the class.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import Array

from ldm.adapters import lora as loras
from ldm.adapters.textual_inversion import TABLE, vectors_of, with_word
from ldm.bundle import MODELS, Bundle
from ldm.files import write_whole
from ldm.models.layers import Params, shapes
from ldm.training import losses
from ldm.training.class_data import class_source
from ldm.training.config import TrainConfig, read, within
from ldm.training.denoising import denoise
from ldm.training.loop import Task
from ldm.training.losses import DiffusionOptions
from ldm.training.parts import Data, base_of, known_tables, latents_of, merged, open_data, split, tokens, write
from ldm.training.samples import draw

SHOWN = 4  # captions of a sheet of samples, and as many pictures of each
ATTENTION = (r"(self|cross)_attn\.(q|k|v|out)\.kernel$", r"\.attn\.(q|k|v|out)\.kernel$")  # what a LoRA usually changes
LORA_FILE, EMBEDDING_FILE = "lora.safetensors", "embedding.safetensors"


def begun(config: TrainConfig, name: str) -> Bundle:
    """The whole model that every one of these tasks begins from. Raises ValueError."""
    if config.base is None:
        raise ValueError(f'base is missing: {name} begins from a whole model, such as base = "toybox"')
    known_tables(config)
    base = base_of(config)
    base.require("unet", "vae", "text")
    return base


def opened(base: Bundle, config: TrainConfig, out: Path) -> tuple[Data, Any]:
    """(the data with latents that were made once, the ids [S] of the empty caption)."""
    words = tokens(base.tokenizer)
    return open_data(config, out, latents_of(base), tokens=words), words([""])[0]


def sampler(base: Bundle, data: Data, empty: Array, whole: Callable[[Any, Any], Any]) -> Callable:
    """For ``Task.sample``: a few pictures of some of the captions, by the parameters that ``whole`` puts together."""
    ids = np.repeat(data.some(SHOWN)["ids"], SHOWN, axis=0)
    return lambda average, frozen: draw(base.configs, whole(average, frozen), ids, np.asarray(empty), base.size)


# ---------------------------------------------------------------------------------------------------------------------
# LoRA


@dataclass(frozen=True)
class LoraOptions:
    """rank, and alpha, over which it is the factor; text: whether the text tower's attention is changed too."""

    rank: int = within(4, (">", 0), ("<=", 1024))
    alpha: float = within(4.0, (">", 0))
    text: bool = False
    drop: float = within(0.1, (">=", 0), ("<=", 1))
    diffusion: DiffusionOptions = DiffusionOptions()  # noqa: RUF009


def kernels(base: Bundle, part: str, patterns: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the kernels of a part that one of the patterns finds. Raises ValueError if there are none."""
    config = getattr(base.configs, part)
    specs = shapes(MODELS[type(config)], config)
    return {name: spec.shape for name, spec in split(specs, patterns)[0].items() if name.endswith(".kernel")}


def lora(config: TrainConfig, out: Path) -> Task:
    """Small matrices in the kernels that ``layers`` find (those of attention); ``[loss]``: :class:`LoraOptions`."""
    options, base = read(LoraOptions, config.loss, "loss"), begun(config, "a LoRA")
    data, empty = opened(base, config, out)
    parts = ("unet", "text") if options.text else ("unet",)
    keys = dict(zip(parts, jax.random.split(jax.random.key(config.seed), len(parts)), strict=True))
    usual = {"unet": config.layers or ATTENTION[:1], "text": ATTENTION[1:]}
    forms = {part: loras.fresh(kernels(base, part, usual[part]), options.rank, keys[part]) for part in parts}
    frozen = {**{part: dict(base.params[part]) for part in ("unet", "vae", "text")}, "empty": empty}

    def whole(params: Any, frozen: Any) -> Any:
        changed = {part: loras.changes_of(own, options.alpha) for part, own in params.items()}
        return {**frozen, **{part: loras.merge(frozen[part], changed[part]) for part in changed}}

    def loss(params: Any, frozen: Any, batch: Any, keys: Array) -> tuple[Array, dict]:
        return denoise(base.configs, whole(params, frozen), batch, keys, options.drop, options.diffusion)

    def finish(average: Any, out: Path) -> None:
        learned = {part: loras.changes_of(own, options.alpha) for part, own in average.items()}
        loras.save_lora(learned, out / LORA_FILE)

    return Task("lora", forms, frozen, loss, data.batches, sampler(base, data, empty, whole), finish)


# ---------------------------------------------------------------------------------------------------------------------
# Textual inversion


@dataclass(frozen=True)
class WordOptions:
    """word: new, and in the captions; begin: a known word whose vector it begins at; vectors: how many it has."""

    word: str
    begin: str
    vectors: int = within(1, (">", 0), ("<=", 64))
    drop: float = within(0.0, (">=", 0), ("<=", 1))
    diffusion: DiffusionOptions = DiffusionOptions()  # noqa: RUF009


def first_vectors(base: Bundle, options: WordOptions) -> np.ndarray:
    """[n, E]: those of the known word, over and over. Raises ValueError if it is no word of the vocabulary's."""
    try:
        known = vectors_of(base, options.begin)
    except ValueError as error:
        raise ValueError(f"loss.begin: {error}") from None
    return np.resize(known, (options.vectors, known.shape[1]))


def textual_inversion(config: TrainConfig, out: Path) -> Task:
    """The vectors of one new word; ``[loss]``: :class:`WordOptions`. Every other number of the model is frozen."""
    options, base = read(WordOptions, config.loss, "loss"), begun(config, "textual inversion")
    vectors = first_vectors(base, options)
    rows = base.configs.text.vocabulary
    base = with_word(base, options.word, vectors)
    data, empty = opened(base, config, out)
    if not (data.some(SHOWN)["ids"] >= rows).any():
        raise ValueError(f"loss.word: {options.word!r} is in none of the first captions; write it where it is meant")
    frozen = {**{part: dict(base.params[part]) for part in ("unet", "vae", "text")}, "empty": empty}

    def whole(params: Any, frozen: Any) -> Any:
        table = jnp.concatenate([frozen["text"][TABLE][:rows], params["text"]["vectors"]])
        return {**frozen, "text": {**frozen["text"], TABLE: table}}

    def loss(params: Any, frozen: Any, batch: Any, keys: Array) -> tuple[Array, dict]:
        return denoise(base.configs, whole(params, frozen), batch, keys, options.drop, options.diffusion)

    def finish(average: Any, out: Path) -> None:
        found = {options.word: np.asarray(average["text"]["vectors"], np.float32)}
        write_whole(out / EMBEDDING_FILE, lambda file: file.write(safetensors.numpy.save(found)))

    begin = {"text": {"vectors": vectors}}
    return Task("textual_inversion", begin, frozen, loss, data.batches, sampler(base, data, empty, whole), finish)


# ---------------------------------------------------------------------------------------------------------------------
# DreamBooth


@dataclass(frozen=True)
class BoothOptions:
    """The weight of the loss on pictures of the class, and what they are.

    prior         lambda of eq. (2); 0: no pictures of the class
    class_prompt  what the class is called, without the rare word
    class_images  how many pictures of it the base draws before training
    text          whether the text tower learns too
    """

    prior: float = within(1.0, (">=", 0))
    class_prompt: str = ""
    class_images: int = within(100, (">", 0))
    text: bool = False
    drop: float = within(0.0, (">=", 0), ("<=", 1))
    diffusion: DiffusionOptions = DiffusionOptions()  # noqa: RUF009


def dreambooth(config: TrainConfig, out: Path) -> Task:
    """The U-Net's parameters that ``layers`` find (all); ``[loss]``: :class:`BoothOptions`."""
    options, base = read(BoothOptions, config.loss, "loss"), begun(config, "dreambooth")
    if options.prior and not options.class_prompt:
        raise ValueError('loss.class_prompt is missing: what to draw against forgetting, such as "a red toy"')
    data, empty = opened(base, config, out)
    if options.prior:
        prior = class_source(base, options.class_prompt, options.class_images, out / "cache" / "class")
        data = replace(data, source=prior(data.source))
    trained, still = split(dict(base.params["unet"]), config.layers)
    learned: dict[str, Params] = {"unet": trained} | ({"text": dict(base.params["text"])} if options.text else {})
    frozen = {"unet": still, "vae": dict(base.params["vae"]), "text": dict(base.params["text"]), "empty": empty}
    whole = lambda params, frozen: {**frozen, **{part: {**frozen[part], **own} for part, own in params.items()}}

    def loss(params: Any, frozen: Any, batch: Any, keys: Array) -> tuple[Array, dict]:
        parts = whole(params, frozen)
        own = denoise(base.configs, parts, batch, keys, options.drop, options.diffusion)
        if not options.prior:
            return own
        others = {name.removeprefix("class_"): value for name, value in batch.items() if name.startswith("class_")}
        later = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
        prior, told = denoise(base.configs, parts, others, later, 0.0, options.diffusion)
        return losses.added(own, options.prior, (prior, {f"class_{name}": value for name, value in told.items()}))

    def finish(average: Any, out: Path) -> None:
        write(out, merged(base, base.configs, **{part: {**frozen[part], **own} for part, own in average.items()}))

    return Task("dreambooth", learned, frozen, loss, data.batches, sampler(base, data, empty, whole), finish)


TASKS = {"lora": lora, "textual_inversion": textual_inversion, "dreambooth": dreambooth}
