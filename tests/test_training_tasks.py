"""What ``ldm train`` trains, as a chain of tiny runs: autoencoder, towers, U-Net, classifier; and fine-tuning."""

import json
from pathlib import Path

import numpy as np
import pytest

import ldm
from ldm import bpe, cli
from ldm.bundle import save
from ldm.toybox.dataset import Dataset, example, write_folder
from ldm.training import config as configs
from ldm.training.tasks import TASKS

pytestmark = pytest.mark.long

SCENES = {"count": 16, "size": 32, "samples": 1, "toys": [2, 3, 0]}
COMMON = {"batch": 8, "log_every": 1, "checkpoint_every": 2, "sample_every": 0}
VAE = {"patch": 4, "channels": [16], "blocks": 1, "groups": 8}
TOWER = {"width": 32, "mlp_width": 32, "layers": 1, "heads": 2, "projection": 16}
UNET = {"channels": [16], "blocks": 1, "depth": [1], "heads": [2], "context_dim": 32, "groups": 8}


def run(task: str, out: Path, steps: int = 2, **settings) -> Path:
    """Runs the command; the folder of the model."""
    file = out.with_suffix(".json")
    file.write_text(json.dumps(COMMON | settings))
    assert cli.main(["train", task, "--config", str(file), "--steps", str(steps), "--out", str(out)]) == 0
    return out / "model"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def data(place):
    return SCENES | {"cache": str(place / "cache")}


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.tokenizer(bpe.learn([example(i, Dataset(seed=5)).caption for i in range(60)]), 40)


@pytest.fixture(scope="module")
def vae(place, data):
    return run("vae", place / "vae", data=data, model={"vae": VAE}, sample_every=2)


@pytest.fixture(scope="module")
def towers(place, data, tokenizer, vae):
    tokenizer.save(place / "vocabulary")
    numbers = {"vocabulary": tokenizer.vocab_size, "length": 40, "end_id": tokenizer.eos}
    model = {
        "tokenizer": str(place / "vocabulary"),
        "text": TOWER | numbers,
        "image": TOWER | {"image": 32, "patch": 8},
    }
    loss = {"hard": 2, "read": 1.0, "layout": 0.5}
    return run("clip", place / "clip", base=str(vae), data=data, model=model, loss=loss)


@pytest.fixture(scope="module")
def unet(place, data, towers):
    model = {"unet": UNET, "schedule": {"prediction": "v_prediction"}}
    loss = {"drop": 0.2, "layout": 0.5, "diffusion": {"min_snr": 5.0}}
    return run("unet", place / "unet", base=str(towers), data=data, model=model, loss=loss, sample_every=2)


def test_the_autoencoders_latents_get_unit_variance(vae, place):
    made = ldm.load(vae)
    assert set(made.params) == {"vae"} and made.size == (32, 32)
    assert made.configs.vae.scale != 0.18215 and made.configs.vae.patch == 4
    assert (place / "vae/samples").is_dir() and (place / "vae/curve.png").exists()


def test_the_towers_join_what_the_base_had(vae, towers):
    made, base = ldm.load(towers), ldm.load(vae)
    assert set(made.params) == {"vae", "text", "image"} and made.tokenizer is not None
    for name, array in base.params["vae"].items():
        np.testing.assert_array_equal(array, made.params["vae"][name])


def test_a_locked_text_tower_stays(place, data, towers):
    loss = {"hard": 1, "layout": 0.5, "locked": True}
    made, base = ldm.load(run("clip", place / "locked", base=str(towers), data=data, loss=loss)), ldm.load(towers)
    moved = {part: any((a != made.params[part][n]).any() for n, a in base.params[part].items()) for part in made.params}
    assert moved == {"vae": False, "text": False, "image": True}
    assert "found" in json.loads((place / "locked/metrics.jsonl").read_text().splitlines()[-1])


def test_a_trained_chain_draws_pictures(towers, unet):
    made = ldm.load(unet)
    assert made.configs.schedule.prediction == "v_prediction"
    pictures = ldm.generate(made, ["a red cube", "a blue ball"], steps=2, progress=False)
    assert pictures.shape == (2, 32, 32, 3) and pictures.dtype == np.uint8
    for part in ("vae", "text", "image"):
        for name, array in ldm.load(towers).params[part].items():
            np.testing.assert_array_equal(array, made.params[part][name])


def test_a_run_is_a_function_of_its_configuration(place, data, vae):
    again = run("vae", place / "again", data=data, model={"vae": VAE}, sample_every=2)
    assert ldm.load(again).configs == ldm.load(vae).configs
    for name, array in ldm.load(vae).params["vae"].items():
        np.testing.assert_array_equal(array, ldm.load(again).params["vae"][name])


def test_chosen_layers_alone_are_trained(place, data, unet):
    chosen = r"cross_attn\.(k|v)_proj|cross_attn\.(to_)?[kv]\b|cross_attn\.[kv]\."
    made = run("unet", place / "layers", base=str(unet), data=data, layers=[chosen], ema=0.0)
    old, new = ldm.load(unet).params["unet"], ldm.load(made).params["unet"]
    moved = {name for name in old if not np.array_equal(old[name], new[name])}
    assert moved and all("cross_attn" in name for name in moved)


def test_the_classifier_learns_from_scenes_with_one_toy(place, data, vae):
    alone = data | {"toys": [1, 0, 0]}
    model = {"classifier": {"channels": [16], "heads": 2, "groups": 8}}
    made = ldm.load(run("classifier", place / "classifier", base=str(vae), data=alone, model=model))
    assert made.configs.classifier.labels == (7, 8) and "classifier" in made.params
    lines = (place / "classifier/metrics.jsonl").read_text().splitlines()
    assert {"kind_accuracy", "colour_accuracy"} <= set(json.loads(lines[-1]))


def test_a_converted_stable_diffusion_is_tuned_on_a_folder(place, least):
    """The same command on a base of the public layout's family and on an image folder; a part of the layers."""
    save(least, place / "sd")
    write_folder(place / "toys", 4, Dataset(size=32, samples=1))
    folder = {"path": str(place / "toys"), "size": 32}
    made = ldm.load(run("unet", place / "tuned", base=str(place / "sd"), data=folder, batch=2, layers=["decoder"]))
    for name, array in least.params["unet"].items():
        assert np.array_equal(array, made.params["unet"][name]) == ("decoder" not in name), name
    assert made.configs == least.configs and made.size == least.size


REFUSED = {
    "unknown part": ("vae", {"model": {"unet": UNET}}, "model.unet: this task knows model.vae"),
    "unknown number": ("vae", {"model": {"vae": {"chanels": [16]}}}, "chanels"),
    "perceptual": ("vae", {"loss": {"perceptual": 1.0}}, "networks that this task does not have"),
    "no base": ("unet", {}, "vae, text is needed"),
    "no tokenizer": ("clip", {}, "needs a tokenizer"),
    "hard on a folder": ("vae", {"data": {"path": "/nowhere"}}, "there is no such folder"),
    "wrong base": ("unet", {"base": "/nowhere"}, "no folder of ours"),
    "workers": ("vae", {"data": {"workers": "two"}}, "data.workers must be a whole number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_are_one_sentence(name, tmp_path):
    task, settings, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        TASKS[task](configs.read(configs.TrainConfig, settings), tmp_path)
    assert "\n" not in str(caught.value)


def test_other_mistakes_need_a_model(place, data, unet, towers):
    for settings, message in (
        ({"base": str(unet), "layers": ["no_such_layer"]}, "no parameter is called like"),
        ({"base": str(unet), "model": {"unet": UNET | {"heads": [4]}}}, "has a unet of other numbers"),
        ({"base": str(towers), "data": {"path": "x", "labels": True}, "model": {"unet": UNET}}, "labels"),
        ({"base": str(unet), "data": {"path": "x"}, "loss": {"layout": 1.0}}, "maps of toys, for loss.layout, are"),
    ):
        config = configs.read(configs.TrainConfig, {"data": data} | settings)
        with pytest.raises(ValueError, match=message) as caught:
            TASKS["unet"](config, place / "refused")
        assert "\n" not in str(caught.value)
