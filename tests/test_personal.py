"""``ldm train lora``, ``textual_inversion`` and ``dreambooth``: what each of them changes, and what it leaves."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ldm
import weights_convert
from ldm import cli
from ldm.adapters.textual_inversion import TABLE
from ldm.training import personal
from ldm.weights_file import read

COMMON = {"batch": 2, "log_every": 1, "checkpoint_every": 2, "sample_every": 0, "ema": 0.0}
FAST = {"learning_rate": 0.01}
WORD = "<toy>"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def base(place, least) -> Path:
    """The smallest whole model, as a folder."""
    ldm.save(least, place / "base")
    return place / "base"


@pytest.fixture(scope="module")
def data(place) -> dict:
    """Three pictures with captions, the new word in each."""
    folder = place / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = [{"file_name": f"{i}.png", "text": f"a {WORD} on a table"} for i in range(3)]
    for row in rows:
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / row["file_name"])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(folder), "size": 64}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Class pictures and samples need whole runs of the sampler: here they are noise."""
    drawn = lambda configs, params, ids, empty, size, first=0: np.random.default_rng(first).integers(
        0, 255, (len(ids), 64, 64, 3), np.uint8
    )
    monkeypatch.setattr("ldm.training.class_data.draw", drawn)
    monkeypatch.setattr(personal, "draw", drawn)


def run(task: str, out: Path, **settings) -> int:
    """Runs the command."""
    file = out.with_suffix(".json")
    file.write_text(json.dumps({**COMMON, "optimiser": FAST, **settings}))
    return cli.main(["train", task, "--config", str(file), "--steps", "2", "--out", str(out)])


def test_a_lora_is_learned_and_the_base_stays(place, base, data, least):
    """Of the U-Net's and the text tower's attention; what comes out is a file that the command line reads."""
    loss = {"rank": 2, "alpha": 1.0, "text": True}
    assert run("lora", place / "lora", base=str(base), data=data, loss=loss, sample_every=2) == 0
    lora = weights_convert.load_lora(place / "lora" / personal.LORA_FILE, least)
    assert all(name.split(".")[-2] in ("q", "k", "v", "out") for own in lora.values() for name in own)
    assert {part: len(own) for part, own in lora.items()} == {"unet": 3 * 8, "text": 2 * 4}
    assert all(c.factor == 0.5 and np.any(np.asarray(c.form.up)) for own in lora.values() for c in own.values())
    before, after = ldm.load(base), ldm.with_lora(least, lora, folded=True)
    still = [name for name in before.params["unet"] if name not in lora["unet"]]
    assert all(np.array_equal(after.params["unet"][name], before.params["unet"][name]) for name in still)
    assert (place / "lora/samples").is_dir() and not (place / "lora/model").exists()


@pytest.mark.long
def test_layers_choose_what_a_lora_changes(place, base, data, least):
    layers = ["ff\\.proj_in", "conv1"]
    assert run("lora", place / "some", base=str(base), data=data, layers=layers) == 0
    names = set(weights_convert.load_lora(place / "some" / personal.LORA_FILE, least)["unet"])
    assert names and all(name.endswith(("ff.proj_in.kernel", "conv1.kernel")) for name in names)


def test_one_word_is_learned_and_nothing_else(place, base, data, least):
    """Claim 35: the file holds the vectors, and with them every other number of the model is bit for bit the base's."""
    loss = {"word": WORD, "begin": "toy", "vectors": 2}
    assert run("textual_inversion", place / "word", base=str(base), data=data, loss=loss) == 0
    found = weights_convert.load_embedding(place / "word" / personal.EMBEDDING_FILE, least)
    assert found.word == WORD and found.vectors.shape == (2, 64)
    begun = np.asarray(least.params["text"][TABLE])[least.tokenizer.encode("toy")]
    assert (found.vectors != begun).any(axis=1).all()
    taught = ldm.with_word(ldm.load(base), found.word, found.vectors)
    for part, own in least.params.items():
        for name, array in own.items():
            assert np.array_equal(np.asarray(taught.params[part][name])[: len(array)], array), name


@pytest.mark.long
def test_dreambooth_trains_with_pictures_of_the_class(place, base, data, least):
    loss = {"prior": 1.0, "class_prompt": "a table", "class_images": 3, "text": True}
    assert run("dreambooth", place / "booth", base=str(base), data=data, loss=loss) == 0
    made = ldm.load(place / "booth/model")
    moved = {
        part: any((np.asarray(a) != made.params[part][n]).any() for n, a in own.items())
        for part, own in least.params.items()
    }
    assert moved == {"unet": True, "vae": False, "text": True}
    metrics = json.loads((place / "booth/metrics.jsonl").read_text().splitlines()[-1])
    assert any(name.startswith("class_") for name in metrics), metrics
    drawn = list((place / "booth/cache/class").glob("*/pictures.npy"))
    assert len(drawn) == 1 and np.load(drawn[0]).shape == (3, 64, 64, 3)


@pytest.mark.long
def test_without_the_class_there_is_nothing_to_draw(place, base, data, least):
    assert run("dreambooth", place / "plain", base=str(base), data=data, loss={"prior": 0.0}, layers=["time"]) == 0
    made = ldm.load(place / "plain/model")
    moved = {n for n, a in least.params["unet"].items() if (np.asarray(a) != made.params["unet"][n]).any()}
    assert moved and all("time" in name for name in moved) and not (place / "plain/cache/class").exists()


MISTAKES = {
    "no base": ("lora", {"base": None}, "base is missing"),
    "no layers": ("lora", {"layers": ["nothing"]}, "no parameter is called like 'nothing'"),
    "rank": ("lora", {"loss": {"rank": 0}}, "loss.rank must be > 0"),
    "word taken": ("textual_inversion", {"loss": {"word": "table", "begin": "toy"}}, "'table' is a token already"),
    "word unused": (
        "textual_inversion",
        {"loss": {"word": "<other>", "begin": "toy"}},
        "'<other>' is in none of the first",
    ),
    "begin": (
        "textual_inversion",
        {"loss": {"word": WORD, "begin": "a red cube"}},
        "loss.begin: 'a red cube' is 3 tokens",
    ),
    "word": ("textual_inversion", {"loss": {"begin": "toy"}}, "loss.word is missing"),
    "class": ("dreambooth", {}, "loss.class_prompt is missing"),
    "tables": ("dreambooth", {"model": {"unet": {}}, "loss": {"prior": 0.0}}, "model.unet"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_are_one_sentence(place, base, data, capsys, kind):
    task, settings, words = MISTAKES[kind]
    out = place / f"mistake-{kind}"
    assert run(task, out, **({"base": str(base), "data": data} | settings)) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (out / "model").exists()


def test_files_are_plain_safetensors(place):
    assert set(read(place / "word" / personal.EMBEDDING_FILE)) == {WORD}
    assert all(name.startswith("ldm.") for name in read(place / "lora" / personal.LORA_FILE))
