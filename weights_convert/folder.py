"""Checkpoints that are folders: the model hub's layout, one of its component folders, or TAESD's two files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.bundle import Bundle, Configs
from ldm.models.taesd import TinyVAEConfig
from ldm.schedule import NoiseSchedule
from ldm.tokenizer import Tokenizer
from weights_convert import families
from weights_convert.parts import Found, alone, taesd_part, text_part, unet_part, vae_part
from weights_convert.reading import read_component, read_file
from weights_convert.tables import autoencoder, taesd, text, unet

DIFFUSION = "diffusion_pytorch_model"
TEXT = ("model", "pytorch_model")
SUPPORTED = ("StableDiffusion", "LatentConsistency")  # beginnings of the pipeline classes whose parts we have
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
    unet_json = read_json(folder / "unet/config.json")
    unet_config = unet.config_from_json(unet_json, str(folder / "unet/config.json"))
    vae_config = _vae_config(folder / "vae")
    text_json = read_json(folder / "text_encoder/config.json")
    projected = "WithProjection" in "".join(text_json.get("architectures") or ())
    text_config = text.config_from_json(text_json, projected, str(folder / "text_encoder/config.json"))
    side = unet_json.get("sample_size", 64)
    height, width = (s * vae_config.factor for s in (side if isinstance(side, list) else (side, side)))
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
    data, where = read_json(folder / "config.json"), str(folder / "config.json")
    kind = data.get("_class_name") or "".join(data.get("architectures") or ())
    read = lambda stem: read_component(folder, stem, variant).tensors
    if kind == "AutoencoderKL":
        return alone(kind, "vae", vae_part(str(folder), read(DIFFUSION), _vae_config(folder)))
    if kind == "AutoencoderTiny":
        return alone(kind, "vae", taesd_part(str(folder), read(DIFFUSION), _vae_config(folder)))
    if kind == "UNet2DConditionModel":
        return alone(kind, "unet", unet_part(str(folder), read(DIFFUSION), unet.config_from_json(data, where)))
    if kind in ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel"):
        numbers = data.get("text_config", data) | {"projection_dim": data.get("projection_dim", 512)}
        config = text.config_from_json(numbers, kind != "CLIPTextModel", where)
        return alone(kind, "text", text_part(str(folder), read(TEXT), config))
    raise ValueError(
        f"{where}: holds {kind or 'no class name'}, where a U-Net, an autoencoder or a CLIP text tower is expected"
    )


def _vae_config(folder: Path) -> Any:
    path = folder / "config.json"
    data = read_json(path)
    table = taesd if data.get("_class_name") == "AutoencoderTiny" else autoencoder
    return table.config_from_json(data, str(path))


def _check_index(folder: Path) -> None:
    index = read_json(folder / "model_index.json")
    kind = str(index.get("_class_name"))
    if not kind.startswith(SUPPORTED) or "XL" in kind or kind.startswith("StableDiffusion3"):
        raise ValueError(f"{folder}: holds a {kind}, where a Stable Diffusion 1.x or 2.x pipeline is expected")
    absent = [part for part in NEEDED if not (folder / part).is_dir()]
    if absent:
        raise ValueError(f"{folder}: the download is not whole: {', '.join(absent)} missing")


def read_json(path: Path) -> dict:
    """A JSON object from a file; ValueError with the path where there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"{path}: missing or unreadable; is the download whole?") from None
    except ValueError as error:
        raise ValueError(f"{path}: broken JSON ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: holds a {type(data).__name__} where a JSON object is expected")
    return data


def schedule_from_json(data: Mapping[str, Any], folder: Path) -> NoiseSchedule:
    """The noise schedule of ``scheduler/scheduler_config.json``, whatever sampler class it was saved for.

    ``steps_offset`` is taken as 1 always: that is what public pipelines make of files that leave it out.
    """
    if data.get("trained_betas") is not None:
        raise ValueError(f"{folder}/scheduler: trained_betas are not read; only schedules given by their formula")
    ddim = data.get("_class_name") == "DDIMScheduler"
    return NoiseSchedule(
        beta_start=data.get("beta_start", 0.00085),
        beta_end=data.get("beta_end", 0.012),
        betas=data.get("beta_schedule", "scaled_linear"),
        train_steps=data.get("num_train_timesteps", 1000),
        prediction=data.get("prediction_type", "epsilon"),
        final_alpha_one=data.get("set_alpha_to_one", ddim),
        zero_terminal_snr=data.get("rescale_betas_zero_snr", False),
    )
