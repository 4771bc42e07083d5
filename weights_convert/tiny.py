"""Writes a small random Stable Diffusion in the public folder layout: ``python -m weights_convert.tiny DIR``.

It has every part and every name of the real one (a U-Net of four levels with cross-attention, a KL autoencoder, a CLIP
text tower over the full vocabulary), in numbers small enough to run anywhere in seconds. Nobody trained it: what it
draws are colours and textures, not things. It is for trying the tools, and for tests.
"""

import argparse
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ldm.bundle import MODELS, Bundle, Configs
from ldm.models.autoencoder import VAEConfig
from ldm.models.layers import Params, shapes
from ldm.models.text import TextConfig
from ldm.models.unet import UNetConfig
from ldm.tokenizer import Tokenizer
from weights_convert.export import export_folder

SIZE = (256, 256)
CONFIGS = Configs(
    unet=UNetConfig(channels=(32, 64, 64, 64), heads=(4, 4, 4, 4), context_dim=64),
    vae=VAEConfig(channels=(32, 32, 64, 64)),
    text=TextConfig(width=64, mlp_width=256, layers=2, heads=4),
)


def random_params(config: object, generator: np.random.Generator) -> Params:
    """Parameters of the size that keeps features at unit variance: kernels N(0, 1/fan_in), scales 1, biases small."""
    params = {}
    for name, spec in shapes(MODELS[type(config)], config).items():
        noise = generator.standard_normal(spec.shape, np.float32)
        if name.endswith(".scale"):
            array = 1 + 0.1 * noise
        elif name.endswith(".kernel"):
            array = noise / np.sqrt(np.prod(spec.shape[:-1]))
        else:
            array = 0.1 * noise
        params[name] = jnp.asarray(array, jnp.float32)
    return params


def random_bundle(seed: int = 0, configs: Configs = CONFIGS, size: tuple[int, int] = SIZE) -> Bundle:
    """A whole model with random weights, which ``seed`` chooses; by default the small one."""
    generator = np.random.default_rng(seed)
    params = {part: random_params(getattr(configs, part), generator) for part in ("unet", "vae", "text")}
    return Bundle(configs, params, Tokenizer.clip(), size)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m weights_convert.tiny", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="which random weights (default 0)")
    args = parser.parse_args(argv)
    if (args.folder / "model_index.json").exists():
        print(f"{args.folder}: holds a model already; left as it is")
        return 0
    try:
        export_folder(random_bundle(args.seed), args.folder)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.folder}: a small random Stable Diffusion in the public folder layout")
    return 0


if __name__ == "__main__":
    sys.exit(main())
