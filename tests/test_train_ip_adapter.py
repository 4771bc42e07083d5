"""``ldm train ip_adapter``: what moves, what stays, and that what is trained is drawn with."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import ldm
from ldm import cli
from ldm.adapters.image_prompt import tokens_of
from ldm.adapters.ip_adapter_file import read_adapter
from ldm.training import ip_adapter
from ldm.training.reports import read as read_lines

COMMON = {"batch": 2, "log_every": 1, "checkpoint_every": 4, "sample_every": 0, "ema": 0.0}
FAST = {"learning_rate": 0.01}


@pytest.fixture(scope="module")
def base(tmp_path_factory, least_with_image):
    """The smallest whole model with an image tower, as a folder."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    ldm.save(least_with_image, folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three pictures with captions."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows = [{"file_name": f"{i}.png", "text": "a toy"} for i in range(3)]
    for row in rows:
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / row["file_name"])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(out, **settings) -> int:
    """Runs the command."""
    file = out.with_suffix(".json")
    file.write_text(json.dumps({**COMMON, "optimiser": FAST, **settings}))
    return cli.main(["train", "ip_adapter", "--config", str(file), "--steps", "2", "--out", str(out)])


@pytest.mark.long
@pytest.mark.parametrize("kind", ["base", "plus", "full"])
def test_it_trains_on_a_folder_and_leaves_the_base_alone(base, pictures, tmp_path, least_with_image, kind):
    before = {file.name: file.read_bytes() for file in base.glob("*.safetensors")}
    loss = {"kind": kind, "tokens": 2, "width": 64, "depth": 1}
    data = {"path": str(pictures), "size": 64}
    assert run(tmp_path / "run", base=str(base), data=data, loss=loss, sample_every=1) == 0
    assert {file.name: file.read_bytes() for file in base.glob("*.safetensors")} == before
    adapter = read_adapter(tmp_path / "run" / ip_adapter.ADAPTER_FILE, least_with_image)
    first = ip_adapter.first_params(adapter.config, least_with_image, 0)
    assert all(not np.array_equal(adapter.params[name], first[name]) for name in ("k.0.kernel", "v.0.kernel"))
    measured = [line["measured"]["resemblance"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")]
    assert len(measured) == 2 and all(-1 <= value <= 1 for value in measured)
    settings = {"steps": 1, "output": "latents", "progress": False, "size": (64, 64)}
    plain = ldm.generate(least_with_image, "a toy", **settings)
    shown = ldm.ImagePrompt(adapter, np.asarray(Image.open(pictures / "0.png")))
    assert not np.array_equal(ldm.generate(least_with_image, "a toy", image_prompts=[shown], **settings), plain)


@pytest.mark.long
def test_joined_learns_the_tokens_alone(base, pictures, tmp_path, least_with_image):
    """And is then drawn with as more tokens of the context, by the U-Net's own kernels."""
    loss = {"tokens": 2, "joined": True}
    assert run(tmp_path / "run", base=str(base), data={"path": str(pictures), "size": 64}, loss=loss) == 0
    adapter = read_adapter(tmp_path / "run" / ip_adapter.ADAPTER_FILE, least_with_image)
    first = ip_adapter.first_params(adapter.config, least_with_image, 0)
    same = {name for name in first if np.array_equal(adapter.params[name], first[name])}
    assert same == {name for name in first if name.startswith(("k.", "v."))}
    tokens = tokens_of(ldm.ImagePrompt(adapter, np.asarray(Image.open(pictures / "0.png"))), 1)[0]
    context = np.concatenate([ldm.encode_prompts(least_with_image, "a toy"), tokens], axis=1)
    settings = {"steps": 1, "output": "latents", "progress": False, "size": (64, 64)}
    assert np.isfinite(ldm.generate(least_with_image, "a toy", context=context, **settings)).all()


def test_a_twentieth_without_caption_without_picture_and_without_both():
    keys = jax.random.split(jax.random.key(0), 20_000)
    caption, picture = (np.asarray(mask) for mask in ip_adapter.left_out(keys, 0.05))
    shares = {"caption": caption & ~picture, "picture": picture & ~caption, "both": caption & picture}
    assert all(abs(mask.mean() - 0.05) < 0.005 for mask in shares.values())


def test_it_begins_with_copies_of_the_text_kernels(least_with_image):
    options = ip_adapter.ImageOptions(tokens=2)
    config = ip_adapter.config_for(least_with_image, least_with_image.configs.image, options)
    params = ip_adapter.first_params(config, least_with_image, 0)
    site = next(iter(ip_adapter.sites(config.unet)))
    assert np.array_equal(params["k.0.kernel"], least_with_image.params["unet"][f"{site}.k.kernel"])
    assert config.image_dim == least_with_image.configs.image.projection


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"loss": {"kind": "best"}}, "kind"),
        ({"loss": {"drop": 0.5}}, "drop"),
        ({"data": {"count": 0}}, "what a tower sees is kept for pictures that stay the same"),
        ({"loss": {"tower": "nowhere"}}, "nowhere"),
    ],
)
def test_what_cannot_be_is_one_sentence(base, pictures, tmp_path, capsys, more, words):
    data = {"path": str(pictures), "size": 64}
    assert run(tmp_path / "run", **{"base": str(base), "data": data} | more) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
