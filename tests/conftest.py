"""What several test files share: one small random model, in memory and as a folder of the public layout."""

import dataclasses
import os
from pathlib import Path

import jax
import pytest
from exercises import *  # noqa: F403
from random_parts import random_params

from ldm.bundle import Bundle, Configs
from ldm.models.autoencoder import VAEConfig
from ldm.models.text import TextConfig
from ldm.models.unet import UNetConfig
from ldm.models.vision import VisionConfig, VisionTower
from weights_convert.export import export_folder
from weights_convert.tiny import random_bundle

CONFIGS = Configs(
    unet=UNetConfig(channels=(32, 64), blocks=1, depth=(1, 0), heads=(4, 4), context_dim=64),
    vae=VAEConfig(channels=(16, 16, 16, 32), blocks=1, groups=8),
    text=TextConfig(width=64, mlp_width=128, layers=2, heads=1),
)
LEAST = Configs(
    unet=UNetConfig(channels=(32,), blocks=1, depth=(1,), middle_depth=0, heads=(2,), context_dim=64),
    vae=VAEConfig(channels=(8, 8), blocks=1, groups=4, patch=4),
    text=TextConfig(width=64, mlp_width=64, layers=2, heads=1),
)


def pytest_configure() -> None:
    """Tests leave the user's cache folder alone, and so do the processes that they start."""
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    jax.config.update("jax_enable_compilation_cache", False)


QUICK = pytest.StashKey[bool]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Most programs here run once, for less time than XLA would take to make them fast. Files of others, and those in
    which bits are compared, are marked ``optimised``."""
    quick = item.get_closest_marker("optimised") is None
    if item.config.stash.get(QUICK, None) != quick:
        item.config.stash[QUICK] = quick
        jax.config.update("jax_disable_most_optimizations", quick)
        jax.clear_caches()


@pytest.fixture(scope="session")
def least() -> Bundle:
    """As little as has every kind of part, eight pixels to a latent one: for tests of what is around the networks."""
    return random_bundle(configs=LEAST, size=(64, 48))


@pytest.fixture(scope="session")
def least_with_image(least: Bundle) -> Bundle:
    """The same with an image tower beside it."""
    vision = VisionConfig(image=32, patch=8, width=64, mlp_width=96, layers=3, heads=2, projection=48)
    configs = dataclasses.replace(least.configs, image=vision)
    return dataclasses.replace(
        least, configs=configs, params={**least.params, "image": random_params(VisionTower, vision, 8)}
    )


@pytest.fixture(scope="session")
def tiny() -> Bundle:
    """A random Stable Diffusion, smaller still than ``weights_convert.tiny``'s: compiling is what takes time here."""
    return random_bundle(configs=CONFIGS, size=(256, 256))


@pytest.fixture(scope="session")
def tiny_folder(tiny: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the public folder layout. Tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("public") / "tiny-sd"
    export_folder(tiny, folder)
    return folder
