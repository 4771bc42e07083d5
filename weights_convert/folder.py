"""Checkpoints that are folders: the model hub's layout, one of its component folders, or TAESD's two files."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.bundle import Bundle, Configs
from ldm.models.taesd import TinyVAEConfig
from ldm.models.unet import UNetConfig
from ldm.schedule import BETAS, PREDICTIONS, NoiseSchedule
from ldm.spacing import SPACINGS
from ldm.tokenizer import Tokenizer
from weights_convert import clip, families
from weights_convert.engine import Tensors
from weights_convert.parts import Found, alone, taesd_part, text_part, together, unet_part, vae_part
from weights_convert.reading import read_component, read_file
from weights_convert.tables import autoencoder, taesd, text, unet
from weights_convert.tables.fields import choice, flag, number, shown, whole, wholes, words

DIFFUSION = "diffusion_pytorch_model"
TEXT = ("model", "pytorch_model")
PIPELINES = (  # the pipeline classes whose parts we have
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionInpaintPipelineLegacy",
    "StableDiffusionInstructPix2PixPipeline",
)
LARGEST_SIDE = 4096  # of a latent
NEEDED = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def find_in_folder(folder: Path, variant: str | None = None) -> Found:
    """What a folder holds: a whole model (``model_index.json``), one part (``config.json``), or TAESD's pair of files.

    Raises ValueError where it is none of them.
    """
    if (folder / "model_index.json").exists():
        return _pipeline(folder, variant)
    if (folder / "config.json").exists():
        return _component(folder, variant)
    pair = {half: next(iter(sorted(folder.glob(f"*{half}.safetensors"))), None) for half in ("encoder", "decoder")}
    if all(pair.values()):
        tensors = {f"{half}.{k}": t for half, path in pair.items() for k, t in read_file(path).tensors.items()}
        return alone("TAESD", "vae", taesd_part(f"{folder}: TAESD", tensors))
    raise ValueError(
        f"{folder}: no checkpoint folder: expected model_index.json (a whole model), config.json (one part), or "
        "*encoder.safetensors and *decoder.safetensors (TAESD)"
    )


def configs_of(folder: Path) -> Bundle:
    """The configurations, tokenizer and size of a hub folder, without its weights."""
    _check_index(folder)
    unet_json, unet_config = _unet_config(folder / "unet/config.json")
    vae_config = _vae_config(folder / "vae")
    text_json, where = read_json(folder / "text_encoder/config.json"), str(folder / "text_encoder/config.json")
    text_config = text.config_from_json(text_json, "WithProjection" in words(text_json, "architectures", where), where)
    sides = wholes(unet_json, "sample_size", 64, str(folder / "unet/config.json"), levels=2, high=LARGEST_SIDE)
    height, width = (side * vae_config.factor for side in sides)
    schedule = schedule_from_json(read_json(folder / "scheduler/scheduler_config.json"), folder)
    tokenizer = Tokenizer.from_folder(folder / "tokenizer")
    return Bundle(Configs(unet_config, vae_config, text_config, schedule), {}, tokenizer, (width, height))


def _pipeline(folder: Path, variant: str | None) -> Found:
    known = configs_of(folder)
    c = known.configs
    read = lambda part, stem: read_component(folder / part, stem, variant).tensors
    find_vae = taesd_part if isinstance(c.vae, TinyVAEConfig) else vae_part
    text_tensors = read("text_encoder", TEXT)
    parts = {
        "unet": unet_part(f"{folder}/unet", read("unet", DIFFUSION), c.unet),
        "vae": find_vae(f"{folder}/vae", read("vae", DIFFUSION), c.vae),
        "text": text_part(f"{folder}/text_encoder", text_tensors, c.text),
    }
    family = families.unet_family(c.unet.context_dim, c.unet.in_channels)
    return Found(family, known, parts, "its scheduler_config.json")


def _component(folder: Path, variant: str | None) -> Found:
    kind, configs = _part_configs(folder)
    tensors = read_component(folder, TEXT if kind in clip.CLASSES else DIFFUSION, variant).tensors
    return _parts_found(kind, str(folder), tensors, configs)


def find_beside_config(path: Path) -> Found:
    """What a file of weights holds, by the ``config.json`` that lies beside it. Raises ValueError."""
    kind, configs = _part_configs(path.parent)
    return _parts_found(kind, str(path), read_file(path).tensors, configs)


def _parts_found(kind: str, what: str, tensors: Tensors, configs: Mapping[str, Any]) -> Found:
    if kind in clip.CLASSES:
        return clip.titled(together(kind, clip.tower_parts(what, tensors, configs)))
    find = {"unet": unet_part, "vae": taesd_part if kind == "AutoencoderTiny" else vae_part}
    return together(kind, {name: find[name](what, tensors, config) for name, config in configs.items()})


def _part_configs(folder: Path) -> tuple[str, dict[str, Any]]:
    """The class that ``config.json`` names, and the numbers of its one part, or of CLIP's two."""
    data, where = read_json(folder / "config.json"), str(folder / "config.json")
    kind = data.get("_class_name") or words(data, "architectures", where)
    if kind in ("AutoencoderKL", "AutoencoderTiny"):
        return kind, {"vae": _vae_config(folder)}
    if kind == "UNet2DConditionModel":
        return kind, {"unet": _unet_config(folder / "config.json")[1]}
    if kind in tuple(clip.CLASSES):  # what a file calls itself may be a list, which no dictionary takes
        return kind, clip.configs_from_json(data, kind, where)
    raise ValueError(
        f"{where}: holds {bare_name(kind) or 'no class name'}, where a U-Net, an autoencoder or a tower of CLIP's is "
        "expected"
    )


def _unet_config(path: Path) -> tuple[dict, UNetConfig]:
    data, where = read_json(path), str(path)
    return data, unet.check_heads(unet.config_from_json(data, where), where)


def _vae_config(folder: Path) -> Any:
    path = folder / "config.json"
    data = read_json(path)
    table = taesd if data.get("_class_name") == "AutoencoderTiny" else autoencoder
    return table.config_from_json(data, str(path))


def _check_index(folder: Path) -> None:
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise ValueError(
            f"{folder}/model_index.json: holds a {bare_name(kind)}, where a Stable Diffusion 1.x or 2.x pipeline is "
            "expected"
        )
    absent = [part for part in NEEDED if not (folder / part).is_dir()]
    if absent:
        raise ValueError(f"{folder}: the download is not whole: {', '.join(absent)} missing")


def bare_name(value: Any) -> str:
    """A class name from a file on one line, without quotation marks."""
    return shown(value).strip("'\"")


def read_json(path: Path) -> dict:
    """A JSON object from a file; ValueError with the path where there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        raise ValueError(f"{path}: missing or unreadable; is the download whole?") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: broken JSON ({error})") from None
    return parse_json(text, str(path))


def parse_json(text: str, where: str) -> dict:
    """A JSON object; ValueError that begins with ``where`` if ``text`` is none."""
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError(f"{where}: broken JSON (nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"{where}: broken JSON ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{where}: holds a {type(data).__name__} where a JSON object is expected")
    return data


def schedule_from_json(data: Mapping[str, Any], folder: Path) -> NoiseSchedule:
    """The noise schedule of ``scheduler/scheduler_config.json``, whatever sampler class it was saved for.

    ``steps_offset`` is taken as 1 always: that is what public pipelines make of files that leave it out.
    """
    where = f"{folder}/scheduler/scheduler_config.json"
    if data.get("trained_betas") is not None:
        raise ValueError(f"{where}: trained_betas are not read; only schedules given by their formula")
    if flag(data, "thresholding", False, where):
        raise ValueError(f"{where}: thresholding is true, but this program does not clip what the network predicts")
    spacing = choice(data, "timestep_spacing", "leading", SPACINGS, where)
    if spacing != "leading":
        warnings.warn(f"{where}: timestep_spacing is {spacing!r}: give --spacing {spacing} to follow it", stacklevel=2)
    ddim = data.get("_class_name") == "DDIMScheduler"
    numbers = {
        "beta_start": number(data, "beta_start", 0.00085, where, 0, 1),
        "beta_end": number(data, "beta_end", 0.012, where, 0, 1),
        "betas": choice(data, "beta_schedule", "scaled_linear", BETAS, where),
        "train_steps": whole(data, "num_train_timesteps", 1000, where, low=2, high=100_000),
        "prediction": choice(data, "prediction_type", "epsilon", PREDICTIONS, where),
        "final_alpha_one": flag(data, "set_alpha_to_one", ddim, where),
        "zero_terminal_snr": flag(data, "rescale_betas_zero_snr", False, where),
    }
    try:
        return NoiseSchedule(**numbers)
    except ValueError as error:
        raise ValueError(f"{where}: beta_start and beta_end: {error}") from None
