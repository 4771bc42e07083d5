"""``ldm train controlnet``: what moves when, what stays, and that what is trained is drawn with."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ldm
from ldm import cli
from ldm.adapters.control_file import read_net
from ldm.adapters.controlnet import ControlNet
from ldm.evaluation.adherence import edge_agreement
from ldm.models.layers import init
from ldm.training import controlnet
from ldm.training.config import TrainConfig, read
from ldm.training.reports import read as read_lines

COMMON = {"batch": 2, "log_every": 1, "checkpoint_every": 4, "sample_every": 0, "ema": 0.0}
FAST = {"learning_rate": 0.01}


@pytest.fixture(scope="module")
def base(tmp_path_factory, least):
    """The smallest whole model, as a folder."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    ldm.save(least, folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three pictures with captions and hints."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    draw = lambda name: Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / name)
    rows = [{"file_name": f"{i}.png", "text": "a toy", "hint_file_name": f"hint-{i}.png"} for i in range(3)]
    for row in rows:
        draw(row["file_name"])
        draw(row["hint_file_name"])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(out, **settings) -> int:
    """Runs the command."""
    file = out.with_suffix(".json")
    file.write_text(json.dumps({**COMMON, "optimiser": FAST, **settings}))
    return cli.main(["train", "controlnet", "--config", str(file), "--steps", "2", "--out", str(out)])


@pytest.mark.long
@pytest.mark.parametrize("hint", ["files", "canny"])
def test_it_trains_on_a_folder_and_leaves_the_base_alone(base, pictures, tmp_path, least, hint):
    before = (base / "unet.safetensors").read_bytes()
    assert run(tmp_path / "run", base=str(base), data={"path": str(pictures), "size": 64, "hint": hint}) == 0
    assert (base / "unet.safetensors").read_bytes() == before
    net = read_net(tmp_path / "run" / controlnet.CONTROL_FILE)
    assert np.any(net.params["zero_middle.kernel"]) and np.any(net.params["zeros.0.kernel"])
    picture = np.asarray(Image.open(pictures / "hint-0.png"))
    settings = {"steps": 1, "output": "latents", "progress": False, "size": (64, 64)}
    plain = ldm.generate(least, "a toy", **settings)
    steered = ldm.generate(least, "a toy", controls=[ldm.Control(net, picture)], **settings)
    off = ldm.generate(least, "a toy", controls=[ldm.Control(net, picture, scale=0)], **settings)
    assert np.array_equal(off, plain) and not np.array_equal(steered, plain)


def gradients(base, pictures, tmp_path, begin: str) -> dict[str, float]:
    """The largest gradient of each parameter at step 0."""
    data = {"path": str(pictures), "size": 64, "hint": "files"}
    config = read(TrainConfig, {**COMMON, "base": str(base), "data": data, "loss": {"begin": begin, "drop": 0.0}})
    task = controlnet.controlnet(config, tmp_path)
    batches = task.batches(None)
    batch = next(batches)
    batches.close()
    keys = jax.random.split(jax.random.key(0), 2)
    found = jax.grad(lambda params: task.loss(params, task.frozen, batch, keys)[0])(task.params)["control"]
    return {name: float(jnp.abs(array).max()) for name, array in found.items()}


@pytest.mark.long
def test_only_the_outer_convolutions_move_at_first(base, pictures, tmp_path, least):
    """Claim 13: as long as they are zero, the copy and the inner convolution have a gradient of exactly 0."""
    found = gradients(base, pictures, tmp_path / "zero", "zero")
    moving = {name for name, size in found.items() if size > 0}
    assert moving == {name for name in found if name.startswith("zero")}
    found = gradients(base, pictures, tmp_path / "gaussian", "gaussian")
    inner = controlnet.last_hint(controlnet.config_for(least))
    assert found[f"{inner}kernel"] > 0 and found["encoder.conv_in.kernel"] > 0


def test_it_begins_as_the_models_own_encoder(least):
    config = controlnet.config_for(least)
    params = controlnet.first_params(config, least, "zero", 0)
    assert params.keys() == init(ControlNet, config, 0).keys()
    for name, array in params.items():
        if name.startswith(("encoder.", "time_mlp.")):
            assert np.array_equal(array, least.params["unet"][name])
        if name.startswith(("zero", controlnet.last_hint(config))):
            assert not np.any(array)
        if name.startswith("hint.convs.0.kernel"):
            assert np.any(array)


@pytest.mark.long
def test_adherence_is_measured_as_it_trains(base, pictures, tmp_path):
    data = {"path": str(pictures), "size": 64, "hint": "files"}
    assert run(tmp_path / "run", base=str(base), data=data, sample_every=1) == 0
    measured = [line["measured"]["adherence"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")]
    assert len(measured) == 2 and all(0 <= value <= 1 for value in measured)
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"size": 64}, "data.hint is missing"),
        ({"hint": "sketch"}, "unknown data.hint 'sketch'"),
        ({"count": 0, "hint": "edges"}, "hints are kept beside pictures that stay the same: give data.count"),
        ({"path": "PICTURES", "hint": "depth"}, "unknown data.hint 'depth' (known: files, canny)"),
        ({"path": "BARE", "hint": "files"}, "picture 1: has no hint_file_name, the picture to be its hint"),
        ({"path": "PICTURES", "hint": "files", "flip": True}, "hints are kept beside pictures that stay the same"),
    ],
)
def test_what_cannot_be_is_one_sentence(base, pictures, tmp_path, capsys, data, words):
    if data.get("path") == "BARE":
        (tmp_path / "bare").mkdir()
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "bare" / "0.png")
        (tmp_path / "bare" / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a"}\n')
    paths = {"PICTURES": str(pictures), "BARE": str(tmp_path / "bare")}
    data = data | ({"path": paths[data["path"]], "size": 64} if "path" in data else {})
    assert run(tmp_path / "run", base=str(base), data=data) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said


def test_edge_agreement():
    """1 with itself and a pixel beside it, 0 with edges elsewhere, 1 where there are none."""
    picture = np.zeros((3, 32, 32, 3), np.uint8)
    picture[:, 8:20, 8:20] = 255
    beside, away = np.roll(picture, 1, axis=2), np.zeros_like(picture)
    away[:, 26:30, 26:30] = 255
    assert np.allclose(edge_agreement(picture, picture), 1)
    assert np.allclose(edge_agreement(picture, beside), 1) and np.all(edge_agreement(picture, beside, 0) < 0.7)
    assert np.all(edge_agreement(picture, away) < 0.1)
    assert np.all(edge_agreement(np.zeros_like(picture), np.zeros_like(picture)) == 1)
