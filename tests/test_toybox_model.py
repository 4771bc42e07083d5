"""The model that comes with the package: it is small, it draws what is asked, and its card says what was measured."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import ldm
import weights_convert
from ldm import cli, weights_file
from ldm.bundle import PACKAGED
from ldm.toybox import recogniser
from ldm.toybox.parsing import parse
from ldm.toybox.recipe import score, ship
from ldm.toybox.recipe.gallery import PROMPTS

pytestmark = pytest.mark.optimised

FOLDER = PACKAGED["toybox"]
CARD = (FOLDER.parent / "MODEL_CARD.md").read_text(encoding="utf-8")
FIGURES = json.loads((FOLDER.parent / "score.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model():
    return ldm.load("toybox")


def test_it_is_small_and_stored_as_float16(model):
    assert set(model.params) == set(ship.SHIPPED) and model.size == (64, 64) and model.tokenizer is not None
    stored = {part: weights_file.read(FOLDER / f"{part}.safetensors") for part in ship.SHIPPED}
    assert {a.dtype.name for arrays in stored.values() for a in arrays.values()} == {"float16"}
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < ship.MOST
    assert {a.dtype.name for arrays in model.params.values() for a in arrays.values()} == {"float32"}
    counts = {part: sum(a.size for a in arrays.values()) for part, arrays in model.params.items()}
    for count in counts.values():
        assert f"{count:,}" in CARD


def test_its_name_loads_it_everywhere(model):
    other = weights_convert.load("toybox", "bfloat16")
    assert other.configs == model.configs
    name, array = next(iter(other.params["unet"].items()))
    assert array.dtype.name == "bfloat16"
    np.testing.assert_allclose(np.asarray(array, np.float32), model.params["unet"][name], rtol=0.01)


def test_it_draws_what_is_asked(tmp_path, capsys):
    """By the command without a model's name; the words of the front page's first picture, and single toys."""
    out = tmp_path / "a.png"
    prompt = "a red cube to the left of a blue sphere"
    assert cli.main(["generate", prompt, "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert json.loads(picture.text["ldm"])["model"] == "toybox"
        pixels = np.asarray(picture)
    assert recogniser.agrees(parse(prompt), recogniser.read(pixels[None] / np.float32(255))[0])


@pytest.mark.long
def test_single_toys_come_out_as_asked(model):
    prompts = [text for text in PROMPTS if parse(text).toys == 1] + score.prompts_of(4, 1, False, 77)
    seen = ldm.generate(model, prompts, steps=20, spacing="trailing", seed=5, progress=False)
    found = score.right(prompts, seen.astype(np.float32) / 255)
    assert found["all right"] >= 75


@pytest.mark.long
def test_its_autoencoder_keeps_pictures(model):
    assert score.psnr(model, 16) > 31


def test_the_card_gives_the_figures_that_were_measured():
    """Every figure of the saved run of the scoring script stands in the card's table."""
    for name, value in FIGURES.items():
        for figure in [value] if not isinstance(value, dict) else value.values():
            assert re.search(rf"(?<![\d.]){re.escape(str(figure))}(?![\d])", CARD), (name, figure)


def test_what_does_not_fit_is_not_shipped(model):
    with pytest.raises(ValueError, match="image is needed"):
        ship.shipped(ldm.Bundle(model.configs, {p: a for p, a in model.params.items() if p != "image"}))
    huge = {**model.params["unet"], "conv_out.bias": np.full(4, 1e6, np.float32)}
    with pytest.raises(ValueError, match=r"unet: conv_out\.bias does not fit into float16"):
        ship.shipped(ldm.Bundle(model.configs, {**model.params, "unet": huge}))
