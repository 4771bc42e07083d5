"""Controls on the command line: steered by, inspected, converted; and what is said where they do not fit."""

import json

import numpy as np
import pytest
from PIL import Image

from ldm import cli
from ldm.adapters.control_file import save_net
from ldm.adapters.controlnet import ControlNet, ControlNetConfig, Net
from ldm.models.layers import shapes


@pytest.fixture(scope="module")
def steering(tmp_path_factory, tiny):
    """(a ControlNet in a file of ours, a hint) for the model."""
    folder = tmp_path_factory.mktemp("control")
    config = ControlNetConfig(tiny.configs.unet, widths=(4, 8, 8, 8))
    rng = np.random.default_rng(5)
    made = {name: rng.standard_normal(s.shape, np.float32) / 9 for name, s in shapes(ControlNet, config).items()}
    save_net(Net(config, made), folder / "net.safetensors")
    Image.fromarray(rng.integers(0, 255, (256, 256, 3), np.uint8)).save(folder / "hint.png")
    return folder / "net.safetensors", folder / "hint.png"


@pytest.mark.long
def test_control_from_the_command_line(tiny_folder, steering, tmp_path, capsys):
    net, hint = steering
    draw = lambda name, *more: cli.main(
        ["generate", "a", "--model", str(tiny_folder), "--steps", "1", "--out", str(tmp_path / name), *more]
    )
    given = ["--control", f"{net}={hint}"]
    assert draw("plain.png") == draw("one.png", *given) == draw("off.png", "--control", f"{net}={hint}@0") == 0
    assert draw("two.png", *given, *given, "--hint", "canny", "--guess-mode", "guess") == 0
    plain, one, off, two = (np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("plain", "one", "off", "two"))
    assert np.array_equal(plain, off) and not np.array_equal(plain, one) and not np.array_equal(one, two)
    told = json.loads(Image.open(tmp_path / "two.png").text["ldm"])
    assert told["control"] == given[1:] * 2 and told["hint"] == "canny" and told["guess_mode"] == "guess"


def test_mistakes_with_controls_are_one_sentence(tiny_folder, steering, tmp_path, capsys):
    net, hint = steering
    (tmp_path / "no.png").write_text("no picture")
    for more, words in (
        (["--control", str(net)], "write it as SRC=HINT.png"),
        (["--control", f"{net}={hint}@much"], "'much' is no scale"),
        (["--control", f"{net}={tmp_path / 'no.png'}"], "no picture that can be read"),
        (["--guess-mode", "guess"], "--hint and --guess-mode are of controls"),
        (["--control", f"{net}={hint}", "--guess-mode", "x"], "unknown guess mode 'x'"),
        (["--control", f"{tiny_folder / 'vae'}={hint}"], "this is KL autoencoder, where a ControlNet is expected"),
    ):
        out = ["--out", str(tmp_path / "a.png")]
        assert cli.main(["generate", "a", "--model", str(tiny_folder), *out, *more]) == 2
        said = capsys.readouterr().err
        assert words in said and "Traceback" not in said, said


def test_a_controlnet_is_inspected_and_converted(tiny_folder, steering, tmp_path, capsys):
    net, _ = steering
    assert cli.main(["inspect", str(net)]) == 0
    assert "a ControlNet in a file of this project's own" in capsys.readouterr().out
    for layout in ("diffusers", "original"):
        out = tmp_path / layout
        assert cli.main(["convert", str(net), str(out), "--to", layout, "--model", str(tiny_folder)]) == 0
        assert cli.main(["inspect", str(out)]) == 0
        assert "every tensor used, every parameter filled" in capsys.readouterr().out
