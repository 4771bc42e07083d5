"""The models that the bench measures: random weights at the public sizes, written once in the public layout.

Nothing is downloaded: how fast a network is does not depend on what it has learned. Weights have variance 1 / fan-in
and norms a gain about 1, so that activations stay of ordinary size: denormal numbers have a speed of their own.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm.bundle import MODELS, Bundle, Configs
from ldm.models.autoencoder import VAEConfig
from ldm.models.layers import Params, shapes
from ldm.models.text import TextConfig
from ldm.models.unet import UNetConfig
from ldm.schedule import NoiseSchedule
from ldm.tokenizer import Tokenizer
from weights_convert.export import export_folder

STORED = {"float32": "float32", "bfloat16": "float16", "float16": "float16"}  # a question's dtype -> the files'
PROJECTIONS = r"attentions\.\d+\.proj_(in|out)\.weight$"
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Family:
    """The numbers of a model; ``convolutions``: its transformers' projections are stored as 1x1 convolutions."""

    configs: Configs
    size: tuple[int, int]
    convolutions: bool = True


SHALLOW = {"depth": (1, 0), "heads": (2, 2), "blocks": 1, "context_dim": 64}
FAMILIES = {
    "sd1": Family(Configs(UNetConfig(), VAEConfig(), TextConfig()), (512, 512)),
    "sd2": Family(
        Configs(
            UNetConfig(heads=(5, 10, 20, 20), context_dim=1024),
            VAEConfig(),
            TextConfig(width=1024, mlp_width=4096, layers=23, heads=16, activation="gelu"),
            NoiseSchedule(prediction="v_prediction"),
        ),
        (768, 768),
        convolutions=False,
    ),
    "small": Family(
        Configs(
            UNetConfig(channels=(32, 64), **SHALLOW),
            VAEConfig(channels=(32, 32, 64, 64), blocks=1),
            TextConfig(width=64, mlp_width=256, layers=2, heads=2),
        ),
        (64, 64),
    ),
}


def random_array(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Uniform numbers for one parameter of ours, float32: gains about 1, biases about 0, the rest 1 / fan-in."""
    wide = 0.1 if len(shape) == 1 else 1.0 if "embedding" in name else np.prod(shape[:-1]) ** -0.5
    array = generator.random(shape, np.float32)
    array -= 0.5
    array *= 12**0.5 * wide
    if name.endswith("scale"):
        array += 1
    return array


def random_params(config: Any, dtype: str, seed: int = 0) -> Params:
    """Random parameters of the model that ``config`` is of, as NumPy arrays."""
    generator = np.random.default_rng(seed)
    specs = shapes(MODELS[type(config)], config)
    return {name: random_array(name, s.shape, generator).astype(dtype, copy=False) for name, s in specs.items()}


def folder(family: str, dtype: str, cache: Path) -> Path:
    """A folder of the public layout for questions in ``dtype``; written on the first call."""
    stored = STORED[dtype]
    return once(cache / f"{family}-{stored}", lambda to: write_folder(FAMILIES[family], stored, to))


def single_file(cache: Path) -> Path:
    """A Stable Diffusion 1.5 single file in float16; written on the first call."""
    from bench.load_single_file import write

    return once(cache / "sd1-float16.safetensors", write)


def once(path: Path, write: Callable[[Path], None]) -> Path:
    """``path``, made by ``write`` if it is not there; what a killed run has left is not taken for it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name("unfinished-" + path.name)
        shutil.rmtree(beside, ignore_errors=True)
        write(beside)
        beside.rename(path)
    return path


def write_folder(family: Family, dtype: str, to: Path) -> None:
    """Writes the model; the U-Net's projections as the public files have them."""
    c = family.configs
    parts = {"unet": c.unet, "vae": c.vae, "text": c.text}
    params = {name: random_params(config, dtype, seed) for seed, (name, config) in enumerate(parts.items())}
    pad = "<|endoftext|>" if family.convolutions else "!"
    export_folder(Bundle(c, params, Tokenizer.clip(pad), family.size), to)
    if family.convolutions:
        del params
        with_convolutions(to)


def with_convolutions(folder: Path) -> None:
    """Turns the linear projections around a U-Net's transformers into the 1x1 convolutions that 1.x files have."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / UNET_FILE)
    tensors = {k: a[:, :, None, None] if re.search(PROJECTIONS, k) else a for k, a in tensors.items()}
    save_file(tensors, folder / UNET_FILE, metadata={"format": "pt"})
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_linear_projection": False}, indent=2) + "\n")
