"""The real TAESD brings a picture back. (Its layers are held against the oracle's in tests/parity.)"""

from pathlib import Path

import jax
import numpy as np
import pytest

import weights_convert
from ldm.bundle import module
from tests.pictures import psnr, scene

REAL = Path(__file__).parents[2] / "shared" / "data" / "taesd"
ENOUGH = 23.0  # dB. Measured: 32 for this scene, 23 for a portrait photograph at 256 pixels


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_picture_comes_back(dtype):
    if not REAL.exists():
        pytest.skip("the real TAESD (../shared/data/taesd) is not here")
    bundle = weights_convert.load(REAL, dtype)

    @jax.jit
    def there_and_back(params, x):
        vae = module(bundle.configs, params, "vae")
        z = vae.encode(x)
        return z, vae.decode(z).astype(np.float32)

    picture = scene()
    z, back = there_and_back(bundle.params, 2 * picture[None] - 1)
    assert z.shape == (1, 32, 32, 4)
    quality = psnr(np.clip(np.asarray(back[0]) / 2 + 0.5, 0, 1), picture)
    print(f"TAESD, {dtype}: {quality:.1f} dB")
    assert quality >= ENOUGH
    assert psnr(scene(seed=1), picture) < ENOUGH, "another picture would pass too"
