"""Image prompts on the command line: drawn with, inspected, converted; and what is said where they do not fit."""

import json

import numpy as np
import pytest
from ip_adapter_files import FACE, public, write
from lora_files import QUERY, kohya, numbers
from lora_files import plain as plain_lora
from PIL import Image
from safetensors.numpy import save_file

import ldm
from ldm.adapters.control_file import save_net
from ldm.adapters.controlnet import ControlNet, ControlNetConfig, Net
from ldm.adapters.ip_adapter_file import save_adapter
from ldm.bundle import Bundle, Configs
from ldm.cli import main
from ldm.models.layers import shapes
from weights_convert.adapters.ip_adapter import load_alone


@pytest.fixture(scope="module")
def home(tmp_path_factory, least, least_with_image):
    """A model, a tower above the adapters, adapters, pictures, and a face's vector."""
    folder = tmp_path_factory.mktemp("prompts")
    ldm.save(least, folder / "model")
    image = {"image": least_with_image.params["image"]}
    ldm.save(Bundle(Configs(image=least_with_image.configs.image), image), folder / "models/image_encoder")
    for kind, seen in {"base": 48, "plus": 64, "face": FACE}.items():
        tensors = public(kind, least.configs.unet, seen, lora=kind == "face")
        write(folder / f"models/{kind}.safetensors", tensors)
    (folder / "apart/alone").mkdir(parents=True)
    write(folder / "apart/alone/plus.bin", public("plus", least.configs.unet, 64))
    for seed in (1, 2):
        noise = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{seed}.png")
    Image.fromarray(np.random.default_rng(4).integers(0, 255, (48, 64, 3), np.uint8)).save(folder / "hint.png")
    np.save(folder / "face.npy", np.random.default_rng(3).standard_normal(FACE, np.float32))
    return folder


@pytest.fixture
def draw(home, tmp_path):
    """The picture of one command; options name files of ``home``."""

    def run(*given: str, steps: str = "1") -> np.ndarray:
        out = tmp_path / "out.png"
        told = [text.format(home=home) for text in given]
        assert main(["generate", "a", "--model", str(home / "model"), "--steps", steps, "--out", str(out), *told]) == 0
        return np.asarray(Image.open(out))

    return run


BASE, PLUS = ("--ip-adapter", "{home}/models/base.safetensors"), ("--ip-adapter", "{home}/models/plus.safetensors")


@pytest.mark.long
def test_pictures_as_prompts(draw, home, tmp_path):
    plain = draw()
    assert np.array_equal(draw(*BASE, "--image-prompt", "{home}/1.png@0"), plain)
    one = draw(*BASE, "--image-prompt", "{home}/1.png")
    assert (one != plain).any() and (one != draw(*BASE, "--image-prompt", "{home}/2.png")).any()
    halves = draw(*BASE, *["--image-prompt", "{home}/1.png@0.5"] * 2)
    assert np.abs(halves.astype(int) - one).max() <= 1, "prompts of one adapter are added"
    each = [*BASE, *PLUS, "--image-prompt", "{home}/1.png@0.6", "--image-prompt", "{home}/2.png"]
    both = draw(*each)
    assert (both != one).any()
    told = json.loads(Image.open(tmp_path / "out.png").text["ldm"])
    assert told["ip_adapter"] == [str(home / f"models/{kind}.safetensors") for kind in ("base", "plus")]
    assert told["image_prompt"] == [f"{home}/1.png@0.6", f"{home}/2.png"] and "image_encoder" not in told
    alone = ["--ip-adapter", "{home}/apart/alone/plus.bin", "--image-encoder", "{home}/models/image_encoder"]
    prompt = ["--image-prompt", "{home}/2.png"]
    assert np.array_equal(draw(*alone, *prompt), draw(*PLUS, *prompt))
    assert json.loads(Image.open(tmp_path / "out.png").text["ldm"])["image_prompt"] == [f"{home}/2.png"]


@pytest.mark.long
def test_a_face_beside_a_control_a_lora_and_a_word(draw, home, least, tmp_path):
    """The LoRA of FaceID is in the weights whatever the scale of the prompt is."""
    face = ["--ip-adapter", "{home}/models/face.safetensors", "--image-prompt"]
    off, plain = draw(*face, "{home}/face.npy@0"), draw()
    faced = draw(*face, "{home}/face.npy")
    assert (off != plain).any() and (faced != off).any()
    save_file({"<toy>": np.ones((2, 64), np.float32)}, tmp_path / "word.safetensors")
    lora = {n: np.ascontiguousarray(a) for n, a in kohya({QUERY: plain_lora(32, 32, 1)[0]}).items()}
    save_file(lora, tmp_path / "lora.safetensors")
    config = ControlNetConfig(least.configs.unet, widths=(4, 8, 8, 8))
    net = {name: numbers(i, *s.shape) / 9 for i, (name, s) in enumerate(shapes(ControlNet, config).items())}
    save_net(Net(config, net), tmp_path / "net.safetensors")
    others = ["--embedding", str(tmp_path / "word.safetensors"), "--lora", str(tmp_path / "lora.safetensors")]
    with_others = draw(*face, "{home}/face.npy", *others)
    hint = f"{tmp_path / 'net.safetensors'}={home / 'hint.png'}"
    whole = draw(*face, "{home}/face.npy", *others, "--control", hint)
    assert (with_others != faced).any() and (whole != with_others).any()
    told = json.loads(Image.open(tmp_path / "out.png").text["ldm"])
    assert {"ip_adapter", "image_prompt", "lora", "embedding", "control"} <= set(told)


MISTAKES = {
    "no adapter": (["--image-prompt", "{home}/1.png"], "are of IP-Adapters: give --ip-adapter too"),
    "no prompt": ([*BASE], "has nothing to look at: give --image-prompt too"),
    "three and two": (
        [*BASE, *PLUS, *["--image-prompt", "{home}/1.png"] * 3],
        "there are 2 of --ip-adapter and 3 of --image-prompt: give one adapter, or one for each",
    ),
    "nan": ([*BASE, "--image-prompt", "{home}/1.png@nan"], "scale of an image prompt must be a finite number"),
    "no scale": ([*BASE, "--image-prompt", "{home}/1.png@much"], "'much' is no scale"),
    "corrupt": ([*BASE, "--image-prompt", "{home}/half.png"], "half.png: no picture that can be read"),
    "no picture": ([*BASE, "--image-prompt", "{home}/3.png"], "3.png: no picture that can be read"),
    "a picture for a face": (
        ["--ip-adapter", "{home}/models/face.safetensors", "--image-prompt", "{home}/1.png"],
        "has no image tower: in place of pictures it sees vectors of 24 finite numbers",
    ),
    "a vector for a picture": ([*BASE, "--image-prompt", "{home}/face.npy"], "image must be [H, W, 3]"),
    "no tower": (
        ["--ip-adapter", "{home}/apart/alone/plus.bin", "--image-prompt", "{home}/1.png"],
        "there is no folder image_encoder beside it: give the image tower that it was trained beside",
    ),
    "another tower": (
        [*BASE, "--image-prompt", "{home}/1.png", "--image-encoder", "{home}/model"],
        "model: holds no image tower",
    ),
    "no adapter's file": (["--ip-adapter", "{home}/1.png", "--image-prompt", "{home}/1.png"], "1.png: is a picture"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_sentence(home, tmp_path, capsys, case):
    (home / "half.png").write_bytes((home / "1.png").read_bytes()[:200])
    given, words = MISTAKES[case]
    told = [text.format(home=home) for text in given]
    out = tmp_path / "a.png"
    assert main(["generate", "a", "--model", str(home / "model"), "--steps", "1", "--out", str(out), *told]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not out.exists(), said


def test_one_of_ours_is_inspected_and_written_for_others(home, least, tmp_path, capsys):
    _, adapter = load_alone(home / "models/plus.safetensors", least)
    save_adapter(adapter, tmp_path / "ours.safetensors")
    assert main(["inspect", str(tmp_path / "ours.safetensors")]) == 0
    assert "an IP-Adapter in a file of this project's own, plus" in capsys.readouterr().out
    out = tmp_path / "theirs.safetensors"
    command = ["convert", str(tmp_path / "ours.safetensors"), str(out), "--model", str(home / "model"), "--to"]
    assert main([*command, "kohya"]) == 2 and "unknown layout of IP-Adapters 'kohya'" in capsys.readouterr().err
    assert main([*command, "original"]) == 0
    again = load_alone(out, least)[1]
    assert again.config == adapter.config
    assert all(np.array_equal(again.params[name], array) for name, array in adapter.params.items())
    assert main(["inspect", str(out)]) == 0 and "an IP-Adapter, plus, for no family" in capsys.readouterr().out
