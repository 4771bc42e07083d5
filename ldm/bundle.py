"""The bundle: everything that turns text into pictures, as plain data, and the folder it is kept in.

A bundle is immutable: frozen configurations (static under jit), flat dictionaries of arrays (arguments of jit), a
tokenizer, and the size and the guidance that suit the model. Our own folder holds it as

    config.json   unet.safetensors   vae.safetensors   text.safetensors   tokenizer/
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ldm import weights_file
from ldm.files import into_place
from ldm.models.autoencoder import VAE, VAEConfig
from ldm.models.classifier import Classifier, ClassifierConfig
from ldm.models.layers import Params, bind, shapes, whole
from ldm.models.taesd import TinyVAE, TinyVAEConfig
from ldm.models.text import TextConfig, TextTower
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vision import VisionConfig, VisionTower
from ldm.schedule import NoiseSchedule
from ldm.tokenizer import Tokenizer

FORMAT, VERSION = "ldm bundle", 1
PACKAGED = {"toybox": Path(__file__).parent / "toybox" / "data" / "model"}
"""Models that come with this package, by name; a folder of the same name is meant by a path, such as "./toybox"."""
PARTS = ("unet", "vae", "text", "image", "classifier")
MODELS = {
    UNetConfig: UNet,
    VAEConfig: VAE,
    TinyVAEConfig: TinyVAE,
    TextConfig: TextTower,
    VisionConfig: VisionTower,
    ClassifierConfig: Classifier,
}
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Configs:
    """The numbers of every part; None for a part that a checkpoint does not hold."""

    unet: UNetConfig | None = None
    vae: VAEConfig | TinyVAEConfig | None = None
    text: TextConfig | None = None
    schedule: NoiseSchedule = NoiseSchedule()  # noqa: RUF009
    image: VisionConfig | None = None
    classifier: ClassifierConfig | None = None


@dataclass(frozen=True)
class Bundle:
    """A whole model, or the parts of one that a checkpoint holds.

    size        (width, height) in pixels of the pictures that it was trained on
    guidance    scale of classifier-free guidance at which it draws best; 7.5 is Stable Diffusion's
    mesh        the devices that each hold the parameters, see ``ldm.on_devices``; None: one device
    """

    configs: Configs
    params: Mapping[str, Params]
    tokenizer: Tokenizer | None = None
    size: tuple[int, int] = (512, 512)
    guidance: float = 7.5
    mesh: Mesh | None = None

    def require(self, *parts: str) -> None:
        """Raises ValueError naming what is missing of ``parts`` (of ``PARTS``)."""
        missing = [part for part in parts if part not in self.params]
        if missing:
            raise ValueError(
                f"this checkpoint holds {', '.join(self.params) or 'nothing'}, but {', '.join(missing)} is needed too"
            )


def module(configs: Configs, params: Mapping[str, Params], part: str) -> nnx.Module:
    """The Flax module of one part, with its arrays in it. Call it inside jit."""
    config = getattr(configs, part)
    return bind(MODELS[type(config)], config, whole(params[part]))


def as_dtype(name: Any) -> np.dtype:
    """The dtype called ``name``, one of float32, bfloat16, float16; ValueError otherwise."""
    if str(name) not in DTYPES and getattr(name, "__name__", None) not in DTYPES:
        raise ValueError(f"dtype {name!r} is none of {', '.join(DTYPES)}")
    return jnp.dtype(name)


def save(bundle: Bundle, folder: str | Path) -> None:
    """Writes the bundle to ``folder``, which must not exist or be empty. Dtypes are kept. Raises ValueError."""
    parts = {part: getattr(bundle.configs, part) for part in PARTS if part in bundle.params}
    config = {"format": FORMAT, "version": VERSION, "size": list(bundle.size), "guidance": bundle.guidance}
    config["schedule"] = asdict(bundle.configs.schedule)
    config["parts"] = {part: {"kind": type(c).__name__, **asdict(c)} for part, c in parts.items()}

    def write(to: Path) -> None:
        for part in parts:
            weights_file.write(bundle.params[part], to / f"{part}.safetensors")
        if bundle.tokenizer is not None:
            bundle.tokenizer.save(to / "tokenizer")
        (to / "config.json").write_text(json.dumps(config, indent=1) + "\n")

    into_place(Path(folder), write)


def load(folder: str | Path, dtype: Any = None) -> Bundle:
    """Reads a folder that :func:`save` wrote, or the packaged model of that name. Raises ValueError.

    ``dtype`` casts; None leaves arrays as stored, but for a packaged model, stored as float16: float32.
    """
    if str(folder) in PACKAGED:
        folder, dtype = PACKAGED[str(folder)], dtype or "float32"
    folder = Path(folder)
    config = read_config(folder)
    kinds = {kind.__name__: kind for kind in MODELS}
    try:
        parts = {part: rebuilt(kinds[c["kind"]], c) for part, c in config["parts"].items() if part in PARTS}
        configs, size = Configs(**parts, schedule=rebuilt(NoiseSchedule, config["schedule"])), tuple(config["size"])
        guidance = float(config.get("guidance", Bundle.guidance))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{folder / 'config.json'}: not a configuration that this version understands ({error})"
        ) from None
    dtype = None if dtype is None else as_dtype(dtype)
    params = {part: _load_part(folder / f"{part}.safetensors", c, dtype) for part, c in parts.items()}
    tokenizer = Tokenizer.from_folder(folder / "tokenizer") if (folder / "tokenizer").is_dir() else None
    return Bundle(configs, params, tokenizer, size, guidance)


def is_bundle(folder: Path) -> bool:
    """Whether ``folder`` looks like one that :func:`save` wrote."""
    try:
        return json.loads((folder / "config.json").read_text()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def read_config(folder: Path) -> dict:
    """``config.json`` of our own folder; ValueError if it is missing, broken or somebody else's."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except OSError:
        raise ValueError(
            f"{folder}: no folder of ours (no config.json); public checkpoints load by weights_convert.load"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: broken JSON ({error})") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{path}: not of our own format; public checkpoints load by weights_convert.load")
    if config.get("version") != VERSION:
        raise ValueError(f"{path}: version {config.get('version')!r}, but this program reads version {VERSION}")
    return config


def rebuilt(kind: type, data: Mapping[str, Any]) -> Any:
    """A frozen configuration from its JSON form: lists become tuples, unknown names are refused by ``kind``."""
    known = {f.name for f in fields(kind)} | {"kind"}
    if set(data) - known:
        raise TypeError(f"{kind.__name__} has no {', '.join(sorted(set(data) - known))}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "kind"})


def _load_part(path: Path, config: Any, dtype: Any) -> Params:
    wanted, stored = shapes(MODELS[type(config)], config), weights_file.read(path)
    if set(stored) != set(wanted):
        odd = sorted(set(stored) ^ set(wanted))
        raise ValueError(f"{path}: {len(odd)} tensors do not fit its config.json, such as {odd[0]}")
    for name, spec in wanted.items():
        if stored[name].shape != spec.shape:
            raise ValueError(f"{path}: {name} is {stored[name].shape}, but its config.json means {spec.shape}")
    cast = {name: stored[name] if dtype is None else stored[name].astype(dtype, copy=False) for name in wanted}
    return jax.device_put(cast)
