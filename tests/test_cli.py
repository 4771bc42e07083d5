"""The command line: what it prints, what it writes, and that mistakes give one sentence and status 2."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import ldm
from ldm.cli import main

QUICK = ["--steps", "1", "--size", "64x48"]


def run(capsys, *argv):
    """(status, standard output, standard error) of one command."""
    try:
        status = main([str(a) for a in argv])
    except SystemExit as stop:  # argparse's own refusals
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


def fails(capsys, *argv):
    """The one sentence of a command that must fail."""
    status, out, err = run(capsys, *argv)
    assert status == 2
    assert "Traceback" not in err
    assert out == ""
    return err


def test_generate_writes_a_picture_that_records_its_settings(capsys, tiny_folder, tmp_path):
    out = tmp_path / "a.png"
    argv = [
        "generate",
        "a größer cube",
        "--model",
        tiny_folder,
        *QUICK,
        "--seed",
        "5",
        "--negative",
        "no",
        "--out",
        out,
    ]
    status, printed, _ = run(capsys, *argv)
    assert (status, printed.strip()) == (0, str(out))
    with Image.open(out) as picture:
        assert picture.size == (64, 48)
        settings = json.loads(picture.info["ldm"])
        pixels = np.asarray(picture)
    assert settings["prompt"] == "a größer cube"
    assert (settings["seed"], settings["negative"], settings["sampler"]) == (5, "no", "ddim")
    names = ("negative", "steps", "guidance", "sampler", "spacing", "seed", "size", "clip_skip", "eta")
    bundle = __import__("weights_convert").load(settings["model"], settings["dtype"])
    again = ldm.generate(bundle, settings["prompt"], **{name: settings[name] for name in names})
    assert np.array_equal(again[0], pixels)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_count_and_latents(capsys, tiny_folder, tmp_path):
    z, out = tmp_path / "z.npy", tmp_path / "b.png"
    noise = tmp_path / "noise.npy"
    np.save(noise, np.random.default_rng(0).standard_normal((2, 6, 8, 4)).astype(np.float32))
    argv = ["generate", "a", "--model", tiny_folder, *QUICK, "--count", "2", "--out", out]
    status, printed, _ = run(capsys, *argv, "--latents", noise, "--save-latents", z)
    assert status == 0
    assert printed.split() == [str(tmp_path / "b-0.png"), str(tmp_path / "b-1.png")]
    assert np.load(z).shape == (2, 6, 8, 4)
    assert not np.array_equal(
        np.asarray(Image.open(tmp_path / "b-0.png")), np.asarray(Image.open(tmp_path / "b-1.png"))
    )


def test_convert_then_generate_from_our_own_folder(capsys, tiny_folder, tmp_path):
    own = tmp_path / "own"
    assert run(capsys, "convert", tiny_folder, own, "--dtype", "bfloat16")[0] == 0
    assert "unet.safetensors" in {p.name for p in own.iterdir()}
    assert run(capsys, "generate", "a", "--model", own, *QUICK, "--out", tmp_path / "c.png")[0] == 0
    assert "not an empty folder" in fails(capsys, "convert", tiny_folder, own)


def test_inspect(capsys, tiny_folder):
    status, out, _ = run(capsys, "inspect", tiny_folder)
    assert status == 0
    assert "predicts epsilon (its scheduler_config.json)" in out


def test_a_cut_prompt_is_a_warning_not_an_error(capsys, tiny_folder, tmp_path):
    status, _, err = run(capsys, "generate", "word " * 90, "--model", tiny_folder, *QUICK, "--out", tmp_path / "d.png")
    assert status == 0
    assert err.startswith("warning: ")


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        (["--sampler", "eular"], "did you mean 'euler'"),
        (["--size", "60x60"], "not a multiple of 8"),
        (["--size", "64"], "write it as WIDTHxHEIGHT"),
        (["--steps", "0"], "steps must be between 1 and 1000"),
        (["--clip-skip", "9"], "clip_skip must be between"),
        (["--count", "0"], "--count must be at least 1"),
        (["--out", "no/such/folder/x.png"], "cannot be written"),
        (["--latents", "none.npy"], "none.npy: no readable .npy file"),
        (["--out", "x.jpg"], "pictures are written as PNG"),
        (["--out", "x.png", "--save-latents", "x.png"], "both the picture and the latents"),
        (["--guidance", "nan"], "guidance must be a finite number"),
        (["--size", "1000000x1000000"], "is more than"),
        (["--model", "~nobody1/x.ckpt"], "no such file or folder"),
        (["--ema"], "is a folder, for which ema means nothing"),
        (["--dtype", "int8"], "invalid choice"),
        (["--vae", "none"], "none: no such file or folder"),
        (["--devices", "99"], "99 devices were asked for, but JAX sees"),
    ],
)
def test_mistakes_in_options(capsys, tiny_folder, tmp_path, options, phrase):
    out = [] if "--out" in options else ["--out", tmp_path / "x.png"]
    assert phrase in fails(capsys, "generate", "a", "--model", tiny_folder, *QUICK, *out, *options)
    assert list(tmp_path.iterdir()) == []


BAD_FILES = {
    "empty": (b"", "empty"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n", "LFS"),
    "a web page": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "truncated": (b"\x40\0\0\0\0\0\0\0{", "truncated"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(64), ""),
}


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("command", ["generate", "inspect", "convert"])
def test_bad_files_in_every_command(capsys, tmp_path, name, command):
    content, phrase = BAD_FILES[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    argv = {
        "generate": ["generate", "a", "--model", path, "--out", tmp_path / "x.png"],
        "inspect": ["inspect", path],
        "convert": ["convert", path, tmp_path / "own"],
    }[command]
    message = fails(capsys, *argv)
    assert str(path) in message
    assert phrase in message
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_half_written_picture_never_appears(capsys, tiny_folder, tmp_path, monkeypatch):
    def fail(self, file, **_):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    message = fails(capsys, "generate", "a", "--model", tiny_folder, *QUICK, "--out", tmp_path / "x.png")
    assert "no space left" in message
    assert list(tmp_path.iterdir()) == []


def test_hub_id_without_a_network(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    command = [sys.executable, "-m", "ldm.cli", "inspect", "nobody/nothing-here"]
    env = {**__import__("os").environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 2
    assert "nobody/nothing-here" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_every_command(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    for command in ("generate", "inspect", "convert"):
        assert command in out
