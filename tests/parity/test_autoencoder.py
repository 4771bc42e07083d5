"""Our KL autoencoder against diffusers': tiny to 1e-5, Stable Diffusion's own size to 1e-4.

Limits: float32 rounding through some 40 layers of convolutions and norms; measured 1e-6 to 4e-6.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldm.models.autoencoder import VAE, reparameterize
from weights_convert.tables import autoencoder as table

from . import layouts, oracle, ours
from .layouts import load_file, save_file
from .oracle import agree, gaussian, nchw, nhwc, torch

TINY, FULL = 1e-5, 1e-4
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def converted(model: Any) -> tuple[Any, dict]:
    """Our configuration and parameters of a diffusers model, from its own configuration and names."""
    config = table.config_from_json(model.config, "the oracle")
    return config, ours.convert(VAE, config, ours.tensors(oracle.arrays(model)), table.layouts(config))


def picture(*size: int) -> np.ndarray:
    """A random picture in [-1, 1], NHWC."""
    return np.clip(gaussian(7, *size, 3), -1, 1)


def compare(title: str, model: Any, x: np.ndarray, limit: float) -> None:
    """Mean, log-variance and decoding of the mean."""
    posterior = model.encode(nchw(x)).latent_dist
    decoded = nhwc(model.decode(posterior.mean).sample)
    config, params = converted(model)
    mean, logvar = ours.run(VAE, config, "encode")(params, x)
    agree(f"{title}, mean", mean, nhwc(posterior.mean), limit)
    agree(f"{title}, log-variance", logvar, nhwc(posterior.logvar), limit)
    agree(f"{title}, decoded", ours.run(VAE, config, "decode")(params, nhwc(posterior.mean)), decoded, limit)


@pytest.mark.parametrize("numbers", [{}, {"layers_per_block": 1, "norm_num_groups": 16}, {"latent_channels": 8}])
def test_tiny(numbers: dict):
    model = oracle.randomize(oracle.vae(**numbers), 1)
    compare(f"autoencoder {numbers or ''}", model, picture(2, 64, 96), TINY)


def test_all_spellings_and_the_shapes_alone_give_the_same_model(tmp_path: Path):
    model = oracle.randomize(oracle.vae(), 2)
    config, params = converted(model)
    single = ours.tensors({k: v.numpy() for k, v in layouts.vae_file(model).items()}, layouts.VAE)
    assert table.config_from_shapes(single) == config
    assert ours.same(ours.convert(VAE, config, single, table.layouts(config)), params)
    old = ours.tensors(load_file(save_with_old_names(model, tmp_path)))
    assert ours.same(ours.convert(VAE, config, old, table.layouts(config)), params)


def save_with_old_names(model: Any, folder: Path) -> Path:
    """The weights under the attention names of 2022; diffusers is seen to read them as the same model."""
    old = {}
    for name, value in model.state_dict().items():
        for new, before in OLD_NAMES.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        old[name] = value.clone()
    assert len(set(old) - set(model.state_dict())) == 16
    model.save_config(folder)
    save_file(old, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    read = oracle.arrays(oracle.diffusers.AutoencoderKL.from_pretrained(folder))
    assert all(np.array_equal(read[name], value) for name, value in oracle.arrays(model).items())
    return folder / "diffusion_pytorch_model.safetensors"


def test_sampling_the_posterior_is_diffusers_formula():
    model = oracle.randomize(oracle.vae(), 3)
    posterior = model.encode(nchw(picture(2, 64, 96))).latent_dist
    want = posterior.sample(torch.Generator().manual_seed(0))
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(0))
    got = reparameterize(nhwc(posterior.mean), nhwc(posterior.logvar), nhwc(noise))
    agree("autoencoder, sample", got, nhwc(want), 1e-6)


@pytest.mark.full
def test_full_size():
    compare("autoencoder at full size, 512x384", oracle.randomize(oracle.vae(full=True), 4), picture(1, 512, 384), FULL)
