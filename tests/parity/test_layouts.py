"""The oracles' own check: the single files that ``layouts`` makes are the public layout, and diffusers reads them."""

import json
from pathlib import Path

import numpy as np
import pytest

from . import layouts, oracle

KEYS = Path(__file__).parents[3] / "shared" / "data" / "keys" / "ldmkeys.json"
FAMILIES = {
    "sd1_unet": lambda: (layouts.UNET, layouts.unet_file(oracle.unet("sd1", full=True))),
    "sd2_unet": lambda: (layouts.UNET, layouts.unet_file(oracle.unet("sd2", full=True))),
    "sd1_inpaint": lambda: (layouts.UNET, layouts.unet_file(oracle.unet("sd1", full=True, in_channels=9))),
    "sd2_inpaint": lambda: (layouts.UNET, layouts.unet_file(oracle.unet("sd2", full=True, in_channels=9))),
    "sdxl_unet": lambda: (layouts.UNET, layouts.unet_file(oracle.unet("sdxl", full=True))),
    "vae": lambda: (layouts.VAE, layouts.vae_file(oracle.vae(full=True))),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_shapes_are_those_of_the_public_files(family: str):
    if not KEYS.exists():
        pytest.skip("../shared/data/keys/ldmkeys.json is not there")
    public = {name: list(shape) for name, shape in dict(json.loads(KEYS.read_text())[family]).items()}
    prefix, weights = FAMILIES[family]()
    assert {name.removeprefix(prefix): list(value.shape) for name, value in weights.items()} == {
        name.removeprefix(prefix): shape for name, shape in public.items()
    }


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_the_folder_and_the_single_file_are_one_model_to_diffusers(family: str, tmp_path: Path):
    pipe = layouts.pipeline(family, tmp_path / "tokenizer")
    layouts.save_folder(pipe, tmp_path / "folder")
    path = layouts.save_single_file(layouts.single_file(pipe), tmp_path / "model.safetensors")
    load = oracle.diffusers.StableDiffusionPipeline
    again = [
        load.from_pretrained(tmp_path / "folder"),
        load.from_single_file(str(path), config=str(tmp_path / "folder"), local_files_only=True),
    ]
    for other in again:
        for part in ("unet", "vae", "text_encoder"):
            theirs, made = oracle.arrays(getattr(other, part)), oracle.arrays(getattr(pipe, part))
            assert theirs.keys() == made.keys()
            assert all(np.array_equal(theirs[name], value) for name, value in made.items()), part


def test_random_weights_are_neither_zero_nor_repeated():
    model = oracle.randomize(oracle.text("sd1"))
    for name, value in oracle.arrays(model).items():
        assert np.all(value) and len(np.unique(value)) > 0.99 * min(value.size, 1 << 20), name
