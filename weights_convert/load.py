"""``load``: a folder, a file or a hub id -> a bundle."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import ldm.bundle
from ldm.bundle import Bundle, as_dtype
from ldm.schedule import PREDICTIONS, check_name
from weights_convert.engine import compare, convert
from weights_convert.folder import configs_of, find_in_folder
from weights_convert.parts import Found
from weights_convert.reading import fetch
from weights_convert.single_file import find_in_file

HUB_ID = r"[\w.-]+/[\w.-]+"


def load(
    source: str | Path,
    dtype: Any = "float32",
    *,
    config: str | Path | None = None,
    vae: str | Path | None = None,
    prediction: str | None = None,
    ema: bool = False,
    variant: str | None = None,
) -> Bundle:
    """Reads a public checkpoint, every tensor of it, into a bundle.

    source      a folder of the model hub's layout or of our own, a single ``.safetensors`` or ``.ckpt`` file (told by
                content, not by name), or a hub id such as "owner/name" where no such path exists
    dtype       "float32", "bfloat16" or "float16": weights are cast once, and the networks compute in it
    config      for a single file: a hub folder whose configurations (not weights) to use, in place of guessing. A file
                that lies in a hub folder takes that folder's, where they fit
    vae         another autoencoder, or TAESD, to use in place of the checkpoint's own
    prediction  "epsilon", "v_prediction" or "sample", where a single file does not say
    ema         the U-Net's averaged weights, where a single file has both
    variant     "fp16", "non_ema", …: which of a folder's spellings of the same weights

    A checkpoint of one part (an autoencoder, a text tower) gives a bundle of that part. Raises ValueError in one
    sentence: what is wrong with which file or tensor, and what was expected.
    """
    as_dtype(dtype)
    path = located(source)
    if path.is_dir() and ldm.bundle.is_bundle(path):
        bundle = ldm.bundle.load(path, dtype)
    else:
        found = find(path, config=config, prediction=prediction, ema=ema, variant=variant)
        bundle = replace(found.bundle, params={name: convert(part, dtype) for name, part in found.parts.items()})
    return bundle if vae is None else with_vae(bundle, load(vae, dtype))


def find(
    source: str | Path,
    *,
    config: str | Path | None = None,
    prediction: str | None = None,
    ema: bool = False,
    variant: str | None = None,
) -> Found:
    """What a public checkpoint holds, without reading its weights. Arguments and errors as :func:`load`."""
    path = located(source)
    if prediction is not None:
        check_name("prediction type", prediction, PREDICTIONS)
    if not path.is_dir():
        return _find_in_file(path, config, prediction, ema)
    found = find_in_folder(path, variant)
    if prediction is None:
        return found
    schedule = replace(found.bundle.configs.schedule, prediction=prediction)
    bundle = replace(found.bundle, configs=replace(found.bundle.configs, schedule=schedule))
    return replace(found, bundle=bundle, prediction_from="as given")


def _find_in_file(path: Path, config: str | Path | None, prediction: str | None, ema: bool) -> Found:
    if config is None and (path.parent / "model_index.json").exists():  # a hub folder that has both forms
        found = find_in_file(path, configs_of(path.parent), prediction, ema)
        if not any(str(compare(part)) for part in found.parts.values()):
            return found
    return find_in_file(path, None if config is None else configs_of(located(config)), prediction, ema)


def located(source: str | Path) -> Path:
    """The path of a source: itself if it exists, the local copy of a hub id otherwise. Raises ValueError."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    if re.fullmatch(HUB_ID, str(source)) and not str(source).endswith((".safetensors", ".ckpt", ".bin", ".pt", ".pth")):
        return fetch(str(source))
    raise ValueError(f"{source}: no such file or folder")


def with_vae(bundle: Bundle, other: Bundle) -> Bundle:
    """``bundle`` with the autoencoder of ``other``. Raises ValueError if it has none."""
    other.require("vae")
    configs = replace(bundle.configs, vae=other.configs.vae)
    return replace(bundle, configs=configs, params={**bundle.params, "vae": other.params["vae"]})
