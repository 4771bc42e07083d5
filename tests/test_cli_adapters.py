"""LoRA and embeddings on the command line: applied, inspected, converted; and what is said where they do not fit."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from lora_files import kohya, numbers, plain
from PIL import Image
from safetensors.numpy import load_file, save_file

import ldm
from ldm.adapters import lora as loras
from ldm.cli import main
from ldm.cli_adapters import scaled

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KERNEL = "encoder.down.0.attn.0.blocks.0.self_attn.q.kernel"


@pytest.fixture(scope="module")
def model(tmp_path_factory, least) -> Path:
    """The smallest whole model, as a folder."""
    ldm.save(least, tmp_path_factory.mktemp("models") / "least")
    return next(tmp_path_factory.getbasetemp().glob("models*/least"))


@pytest.fixture(scope="module")
def lora(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("loras") / "style.safetensors"
    save_file({n: np.ascontiguousarray(a) for n, a in kohya({QUERY: plain(32, 32, 1)[0]}).items()}, path)
    return path


@pytest.fixture(scope="module")
def word(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("words") / "word.safetensors"
    save_file({"<toy>": numbers(0, 2, 64)}, path)
    return path


def drawn(model: Path, out: Path, *more: str) -> np.ndarray:
    """The picture of one command."""
    assert main(["generate", "a <toy>", "--model", str(model), "--steps", "2", "--out", str(out), *more]) == 0
    return np.asarray(Image.open(out))


def test_they_change_the_picture_and_are_recorded(model, lora, word, tmp_path, capsys):
    plain_one = drawn(model, tmp_path / "a.png")
    assert np.array_equal(drawn(model, tmp_path / "b.png", "--lora", f"{lora}@0"), plain_one)
    one = drawn(model, tmp_path / "c.png", "--lora", str(lora))
    two = drawn(model, tmp_path / "d.png", "--lora", f"{lora}@0.5", "--lora", f"{lora}@0.5")
    assert (one != plain_one).any() and np.abs(one.astype(int) - two).max() <= 1
    capsys.readouterr()
    taught = drawn(model, tmp_path / "e.png", "--embedding", str(word))
    assert (taught != plain_one).any() and "write <toy> in the prompt" in capsys.readouterr().err
    settings = json.loads(Image.open(tmp_path / "d.png").text["ldm"])
    assert settings["lora"] == [f"{lora}@0.5"] * 2 and "embedding" not in settings


def test_scales_follow_an_at(tmp_path):
    assert scaled("a.safetensors@0.8") == ("a.safetensors", 0.8) and scaled("a.safetensors") == ("a.safetensors", 1.0)
    assert scaled("owner/name@-1") == ("owner/name", -1.0)
    (tmp_path / "odd@2").touch()
    assert scaled(str(tmp_path / "odd@2")) == (str(tmp_path / "odd@2"), 1.0), "a file that is called so"
    with pytest.raises(ValueError, match=r"'much' is no scale; write it as SRC@0\.8"):
        scaled("a.safetensors@much")


def test_inspect(lora, word, capsys):
    assert main(["inspect", str(lora)]) == 0 and "rank 3" in capsys.readouterr().out
    assert main(["inspect", str(word)]) == 0 and "<toy>: 2 vectors of 64" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["kohya", "peft", "diffusers"])
def test_a_lora_of_ours_is_written_for_others(model, tmp_path, capsys, layout):
    forms = loras.fresh({KERNEL: (32, 32)}, 2, jax.random.key(0))
    loras.save_lora({"unet": loras.changes_of(forms, 2.0)}, tmp_path / "ours.safetensors")
    command = [
        "convert",
        str(tmp_path / "ours.safetensors"),
        str(tmp_path / "out"),
        "--to",
        layout,
        "--model",
        str(model),
    ]
    assert main(command) == 0
    assert main(["inspect", str(tmp_path / "out")]) == 0 and "a LoRA" in capsys.readouterr().out
    assert main(command) == 2 and "exists; choose a new name" in capsys.readouterr().err


def test_an_embedding_is_written_for_others(model, word, tmp_path):
    command = ["convert", str(word), str(tmp_path / "a.pt"), "--to", "a1111", "--model", str(model)]
    assert main(command) == 0
    back = [
        "convert",
        str(tmp_path / "a.pt"),
        str(tmp_path / "b.safetensors"),
        "--to",
        "diffusers",
        "--model",
        str(model),
    ]
    assert main(back) == 0
    np.testing.assert_array_equal(load_file(tmp_path / "b.safetensors")["<toy>"], load_file(word)["<toy>"])


MISTAKES = {
    "scale": (["--lora", "x@much"], "'much' is no scale"),
    "no file": (["--lora", "nothing.safetensors"], "nothing.safetensors: no such file or folder"),
    "nan": (["--lora", "{lora}@nan"], "the scale of a LoRA must be a finite number"),
    "a lora as a word": (["--embedding", "{lora}"], "another family's"),
    "a word as a lora": (["--lora", "{word}"], "no LoRA is in it"),
    "twice": (["--embedding", "{word}", "--embedding", "{word}"], "'<toy>' is a token already"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_are_one_sentence(model, lora, word, tmp_path, capsys, kind):
    given, words = MISTAKES[kind]
    given = [text.format(lora=lora, word=word) for text in given]
    assert main(["generate", "a", "--model", str(model), "--out", str(tmp_path / "a.png"), *given]) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said and not (tmp_path / "a.png").exists()


def test_what_goes_together_in_convert(model, lora, tmp_path, capsys):
    assert main(["convert", str(lora), str(tmp_path / "a"), "--to", "kohya"]) == 2
    assert "--to LAYOUT and --model SRC go together" in capsys.readouterr().err
    assert main(["convert", str(lora), str(tmp_path / "a"), "--to", "onnx", "--model", str(model)]) == 2
    assert "layout 'onnx' is none of kohya, peft, diffusers" in capsys.readouterr().err
