"""How long, and in how much memory, a full-size Stable Diffusion 1.5 single file loads and samples.

    python bench/load_single_file.py [--dtype float32] [--steps 2] [--size 512x512] [--keep FILE]

Writes a float16 ``.safetensors`` file of random weights with every tensor of the public one (2.1 GB), then, in a fresh
process, loads it and draws a picture. Peak memory is the operating system's own figure for that process, and is held
against the bytes of the parameters; the memory of Python with JAX alone is measured the same way.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ONE_PIXEL = r"(proj_in|proj_out|skip_connection|nin_shortcut|quant_conv|attn_1\.[qkv])\.weight$"  # 1x1 convolutions
SMALL = 1 / 8  # weights below the size that keeps variance: activations stay finite through the whole picture


def random_tensors() -> dict[str, np.ndarray]:
    """Every tensor of a Stable Diffusion 1.5 single file, float16, under its public name."""
    from ldm.models.autoencoder import VAE, VAEConfig
    from ldm.models.layers import shapes
    from ldm.models.text import TextConfig, TextTower
    from ldm.models.unet import UNet, UNetConfig
    from weights_convert.engine import to_public
    from weights_convert.families import TEXT_FOLDER, UNET
    from weights_convert.families import VAE as VAE_PREFIX
    from weights_convert.tables import autoencoder, text, unet

    parts = [
        (UNET, UNet, UNetConfig(), unet.single_file(UNetConfig())),
        (VAE_PREFIX, VAE, VAEConfig(), autoencoder.single_file(VAEConfig())),
        (TEXT_FOLDER + "text_model.", TextTower, TextConfig(), text.folder(TextConfig())),
    ]
    generator, tensors = np.random.default_rng(0), {}
    for prefix, model, config, layout in parts:
        for name, spec in shapes(model, config).items():
            array = generator.standard_normal(spec.shape, np.float32)
            array *= SMALL if len(spec.shape) == 1 else SMALL / np.sqrt(np.prod(spec.shape[:-1]))
            array += name.endswith("scale")
            key = layout.public(name)
            public = np.ascontiguousarray(to_public(key, array.astype(np.float16)))
            tensors[prefix + key] = public[..., None, None] if re.search(ONE_PIXEL, key) else public
    return tensors


def write(path: Path) -> None:
    """Writes the file."""
    from safetensors.numpy import save_file

    save_file(random_tensors(), path)


def peak_bytes() -> int:
    """The most memory that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(path: Path, dtype: str, steps: int, size: tuple[int, int]) -> None:
    """Loads and samples; prints one JSON line."""
    import jax

    jax.numpy.zeros(1).block_until_ready()
    before = peak_bytes()
    import ldm
    import weights_convert

    start = time.perf_counter()
    bundle = weights_convert.load(path, dtype)
    jax.block_until_ready(bundle.params)
    loaded = time.perf_counter() - start
    parameters = sum(a.nbytes for part in bundle.params.values() for a in part.values())
    row = {"dtype": dtype, "load_s": round(loaded, 2), "parameter_bytes": parameters, "python_and_jax_bytes": before}
    row |= {"load_peak_bytes": peak_bytes(), "load_peak_ratio": round(peak_bytes() / parameters, 3)}
    for run in ("first", "second"):
        start = time.perf_counter()
        picture = ldm.generate(bundle, "a bench", steps=steps, size=size, progress=False)
        row[f"{run}_picture_s"] = round(time.perf_counter() - start, 2)
    row |= {"steps": steps, "size": list(size), "picture_std": round(float(picture.std()), 2)}
    row |= {"sample_peak_bytes": peak_bytes(), "sample_peak_ratio": round(peak_bytes() / parameters, 3)}
    print(json.dumps(row))


def main() -> None:
    """Makes the file in one process and measures in another, so that neither's memory is the other's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--keep", type=Path, help="where to write the file, and leave it")
    parser.add_argument("--role", choices=("write", "measure"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    if args.role:
        write(args.keep) if args.role == "write" else measure(args.keep, args.dtype, args.steps, (width, height))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = args.keep or Path(folder) / "sd15-random-fp16.safetensors"
        common = [sys.executable, __file__, "--keep", str(path), "--steps", str(args.steps)]
        if not path.exists():
            subprocess.run([*common, "--role", "write"], check=True)
        print(f"{path.name}: {path.stat().st_size:,} bytes")
        subprocess.run([*common, "--role", "measure", "--dtype", args.dtype, "--size", args.size], check=True)


if __name__ == "__main__":
    main()
