"""What the training tasks share: the model to begin from, fresh parameters, data opened, results written.

A run begins from nothing or from ``base``, a folder of ours (``ldm convert`` makes one of a public checkpoint), and
leaves in ``OUT/model`` a folder with all that was in the base and what it trained. So the runs of a recipe form a
chain: the U-Net's run finds the autoencoder and the text tower in its base.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from ldm import bundle
from ldm.attention import training_attention
from ldm.bundle import Bundle, Configs
from ldm.hooks import Hooks
from ldm.models.layers import Params, init
from ldm.tokenizer import Tokenizer
from ldm.training.cache import keep_latents
from ldm.training.config import TrainConfig, read
from ldm.training.data import Batches, Tokens
from ldm.training.folder_data import FolderData, FolderSource
from ldm.training.step import BLOCK
from ldm.training.toybox_data import ToyboxData, ToyboxSource, keep_maps, keep_scenes

TOYBOX_ONLY = {  # what is asked of a source, and its name
    "hard": "hard negatives",
    "labels": "labels",
    "truth": "places of toys, for loss.read,",
    "maps": "maps of toys, for loss.layout,",
}
MODEL = "model"  # the folder of the result
QUIET = (  # begin at zero: each block then passes on what it gets, and the network answers 0
    r"\.conv2\.kernel$",
    r"\.attn\.\d+\.proj_out\.kernel$",
    r"middle\.attn\.proj_out\.kernel$",
    r"^conv_out\.kernel$",
)


@dataclass(frozen=True)
class DataOptions:
    """The keys of ``[data]`` that are not about the pictures themselves.

    cache    folder for scenes drawn and latents made once; none: OUT/cache
    workers  processes that make batches ready
    """

    cache: str | None = None
    workers: int = 0


def named(site: str, features: Array) -> Array:
    """A tap that marks what leaves a block of the U-Net, for the policy "blocks" of ``ldm.training.step``."""
    return checkpoint_name(features, BLOCK) if BLOCK_ENDS.search(site) else features


TRAINING = Hooks(attend=training_attention, tap=named)
BLOCK_ENDS = re.compile(r"\.res\.\d+$|\.ff$|\.middle$")


def base_of(config: TrainConfig) -> Bundle:
    """The bundle to begin from; an empty one without ``base``. Raises ValueError."""
    if config.base is None:
        return Bundle(Configs(), {})
    return bundle.load(config.base, "float32")


def numbers(cls: type, config: TrainConfig, part: str, base: Bundle) -> Any:
    """The configuration of a part: the base's own, or read from the table ``model.part``. Raises ValueError."""
    table = config.model.get(part)
    if part in base.params:
        own = getattr(base.configs, part)
        if table is not None and read(cls, table, f"model.{part}") != own:
            raise ValueError(
                f"model.{part}: {config.base} has a {part} of other numbers; leave the table out to take it"
            )
        return own
    return read(cls, {} if table is None else table, f"model.{part}")


def known_tables(config: TrainConfig, *parts: str) -> None:
    """Raises ValueError for a table of ``[model]`` that the task does not know."""
    odd = [name for name in config.model if name not in parts]
    if odd:
        known = ", ".join(f"model.{part}" for part in parts) or "no tables of the model: they are the base's"
        raise ValueError(f"model.{odd[0]}: this task knows {known}")


def fresh(model: type, own: Any, seed: int, quiet: tuple[str, ...] = ()) -> Params:
    """Random parameters; those whose name one of the patterns ``quiet`` finds are zero."""
    params = init(model, own, seed)
    silent = lambda name: any(re.search(pattern, name) for pattern in quiet)
    return {name: np.zeros_like(array) if silent(name) else array for name, array in params.items()}


def split(params: Params, layers: tuple[str, ...]) -> tuple[Params, Params]:
    """(to train, to leave as they are), by regular expressions of names; none: all are trained. Raises ValueError."""
    for pattern in layers:
        if not any(re.search(pattern, name) for name in params):
            raise ValueError(f"layers: no parameter is called like {pattern!r}; names are such as {next(iter(params))}")
    chosen = {name for name in params if not layers or any(re.search(pattern, name) for pattern in layers)}
    return {n: a for n, a in params.items() if n in chosen}, {n: a for n, a in params.items() if n not in chosen}


# ---------------------------------------------------------------------------------------------------------------------
# Data


def tokens(tokenizer: Tokenizer | None) -> Tokens:
    """The tokenizer as data wants it. Raises ValueError if there is none."""
    if tokenizer is None:
        raise ValueError("this task needs a tokenizer: give a base that has one, or model.tokenizer, its folder")
    return Tokens(tokenizer)


@dataclass(frozen=True)
class Data:
    """An opened source, and how batches are made of it."""

    source: Any
    config: TrainConfig
    workers: int

    def batches(self, state: Any) -> Batches:
        """See ``ldm.training.loop.Task``."""
        shard = jax.process_index(), jax.process_count()
        return Batches(self.source, self.config.batch, self.config.seed, state, shard, self.workers)

    def some(self, count: int) -> dict[str, Any]:
        """The first ``count`` examples, for looking at."""
        with Batches(self.source, count, self.config.seed + 1) as batches:
            return next(batches)


def open_data(config: TrainConfig, out: Path, latents: Callable[[Any, Path], Path] | None = None, **extra: Any) -> Data:
    """The source that ``[data]`` names: a folder of pictures if it has ``path``, else the toybox.

    latents  makes the folder of latents of a source; None: batches have pictures
    extra    of the source: tokens; and for the toybox alone hard, labels, truth, and maps, pixels a cell

    Raises ValueError for keys that the source does not know, and for whatever is wrong with it.
    """
    table = dict(config.data)
    options = read(DataOptions, {key: table.pop(key) for key in ("cache", "workers") if key in table}, "data")
    cache = Path(options.cache) if options.cache else out / "cache"
    if "path" in table:
        odd = [name for name in TOYBOX_ONLY if extra.pop(name, None)]
        if odd:
            raise ValueError(f"data: {TOYBOX_ONLY[odd[0]]} are the toybox's alone; leave path out")
        source: Any = FolderSource(read(FolderData, table, "data"), **extra)
    else:
        data = read(ToyboxData, table, "data")
        if extra.get("maps"):
            extra["maps"] = keep_maps(data, data.size // extra["maps"], cache / "maps")
        source = ToyboxSource(data, keep_scenes(data, cache / "scenes") if data.count else None, **extra)
    if latents is not None and source.fixed:
        source = replace(source, latents=latents(source, cache / "latents"))
    return Data(source, config, options.workers)


def latents_of(base: Bundle) -> Callable[[Any, Path], Path]:
    """For :func:`open_data`: encodes by the base's autoencoder, once."""
    return lambda source, folder: keep_latents(base.configs.vae, base.params["vae"], source, folder)


# ---------------------------------------------------------------------------------------------------------------------
# Results


def write(out: Path, made: Bundle) -> None:
    """Saves a bundle as OUT/model, in place of what an earlier call wrote."""
    place, new = out / MODEL, out / f".{MODEL}-new"
    shutil.rmtree(new, ignore_errors=True)
    bundle.save(made, new)
    shutil.rmtree(place, ignore_errors=True)
    new.rename(place)


def merged(base: Bundle, configs: Configs, **params: Params) -> Bundle:
    """The base with other configurations and with more, or other, parts."""
    whole = {**base.params, **{part: {n: np.asarray(a) for n, a in values.items()} for part, values in params.items()}}
    return replace(base, configs=configs, params=whole)
