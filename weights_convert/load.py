"""``load``: a folder, a file or a hub id -> a bundle."""

import contextlib
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import ldm.bundle
from ldm.bundle import Bundle, as_dtype
from ldm.models.layers import Params
from ldm.schedule import PREDICTIONS, check_name
from weights_convert.engine import Part, compare, convert
from weights_convert.folder import configs_of, find_beside_config, find_in_folder
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
    meanwhile: Callable[[Bundle], Any] | None = None,
) -> Bundle:
    """Reads a public checkpoint, every tensor of it, into a bundle.

    source      a folder of the model hub's layout or of our own, a single ``.safetensors`` or ``.ckpt`` file (told by
                content, not by name), a hub id such as "owner/name" where no such path exists, or "toybox", the model
                that comes with the package
    dtype       "float32", "bfloat16" or "float16": weights are cast once, and the networks compute in it
    config      for a single file: a hub folder whose configurations (not weights) to use, in place of guessing. A file
                that lies in a hub folder, or beside its own config.json, takes what that says, where it fits
    vae         another autoencoder, or TAESD, to use in place of the checkpoint's own
    prediction  "epsilon", "v_prediction" or "sample", where a single file does not say
    ema         the U-Net's averaged weights, where a single file has both
    variant     "fp16", "non_ema", …: which of a folder's spellings of the same weights
    meanwhile   called, in a thread of its own, with the bundle as yet without weights while those are read:
                ``ldm.ahead.compile_ahead``. Not called where there is little to read: our own folders, and with ``vae``

    A checkpoint of one part (an autoencoder, one of CLIP's towers) or of both of CLIP's towers gives a bundle of that.
    Raises ValueError in one sentence: what is wrong with which file or tensor, and what was expected.
    """
    as_dtype(dtype)
    path = located(source)
    if path.is_dir() and ldm.bundle.is_bundle(path):
        refuse(path, "a folder of our own", config=config, ema=ema, variant=variant)
        bundle = with_prediction(ldm.bundle.load(path, dtype), prediction)
    else:
        found = find(path, config=config, prediction=prediction, ema=ema, variant=variant)
        kept = {name: part for name, part in found.parts.items() if vae is None or name != "vae"}
        bundle = replace(found.bundle, params=converted(found.bundle, kept, dtype, None if vae else meanwhile))
    return bundle if vae is None else with_vae(bundle, vae, dtype)


def converted(
    bundle: Bundle, parts: dict[str, Part], dtype: Any, meanwhile: Callable[[Bundle], Any] | None
) -> dict[str, Params]:
    """The parameters of each part, and in another thread what is to be done meanwhile. Raises what that raises."""
    with ThreadPoolExecutor(1) as other:
        work = other.submit(meanwhile, bundle) if meanwhile else None
        params = {name: convert(part, dtype) for name, part in parts.items()}
        if work:
            work.result()
    return params


def refuse(path: Path, kind: str, **options: Any) -> None:
    """Raises ValueError if any of ``options`` is set: they mean nothing for a source of this ``kind``."""
    named = [name for name, value in options.items() if value]
    if named:
        raise ValueError(f"{path}: is {kind}, for which {' and '.join(named)} means nothing; leave it out")


def with_prediction(bundle: Bundle, prediction: str | None) -> Bundle:
    """``bundle`` whose network is said to predict ``prediction``; None leaves it as it is. Raises ValueError."""
    if prediction is None:
        return bundle
    check_name("prediction type", prediction, PREDICTIONS)
    schedule = replace(bundle.configs.schedule, prediction=prediction)
    return replace(bundle, configs=replace(bundle.configs, schedule=schedule))


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
        refuse(path, "a single file", variant=variant)
        return _find_in_file(path, config, prediction, ema)
    refuse(path, "a folder", config=config, ema=ema)
    found = find_in_folder(path, variant)
    if prediction is None:
        return found
    return replace(found, bundle=with_prediction(found.bundle, prediction), prediction_from="as given")


def _find_in_file(path: Path, config: str | Path | None, prediction: str | None, ema: bool) -> Found:
    if config is not None:
        return find_in_file(path, configs_of(located(config)), prediction, ema)
    by_whole = lambda: find_in_file(path, configs_of(path.parent), prediction, ema)
    for name, find_by in (("model_index.json", by_whole), ("config.json", lambda: find_beside_config(path))):
        if (path.parent / name).exists():  # a hub folder that has both forms
            with contextlib.suppress(ValueError):
                found = find_by()
                if not any(str(compare(part)) for part in found.parts.values()):
                    return found
    return find_in_file(path, None, prediction, ema)


def located(source: str | Path) -> Path:
    """The path of a source: of a packaged model, itself if it exists, or the local copy of a hub id. ValueError."""
    if str(source) in ldm.bundle.PACKAGED:
        return ldm.bundle.PACKAGED[str(source)]
    path = Path(os.path.expanduser(source))  # leaves "~nobody" as it is
    if path.exists():
        return path
    if re.fullmatch(HUB_ID, str(source)) and not str(source).endswith((".safetensors", ".ckpt", ".bin", ".pt", ".pth")):
        return fetch(str(source))
    raise ValueError(f"{source}: no such file or folder")


def with_vae(bundle: Bundle, source: str | Path, dtype: Any) -> Bundle:
    """``bundle`` with the autoencoder of another source, of which nothing else is read. Raises ValueError."""
    path = located(source)
    if path.is_dir() and ldm.bundle.is_bundle(path):
        other = ldm.bundle.load(path, dtype)
    else:
        found = find(path)
        parts = {name: convert(part, dtype) for name, part in found.parts.items() if name == "vae"}
        other = replace(found.bundle, params=parts)
    if "vae" not in other.params:
        raise ValueError(f"{source}: holds no autoencoder")
    configs = replace(bundle.configs, vae=other.configs.vae)
    return replace(bundle, configs=configs, params={**bundle.params, "vae": other.params["vae"]})
