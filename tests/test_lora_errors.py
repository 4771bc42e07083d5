"""What is said of LoRA files: of those that do not fit, and by ``ldm inspect``."""

import json

import numpy as np
import pytest
from lora_files import (
    ATTN,
    QUERY,
    RANK,
    W,
    kohya,
    numbers,
    plain,
    write,
)

import weights_convert
from weights_convert.inspection import inspect


def bad(kind: str) -> tuple[dict, str]:
    """A file, and what is said of it."""
    good = kohya({QUERY: plain(W, W, 1)[0]})
    renamed = lambda old, new: {name.replace(old, new): array for name, array in good.items()}
    other = lambda layer, *shape: kohya({layer: plain(*shape, 1)[0]})
    up = "lora_unet_" + QUERY.replace(".", "_") + ".lora_up.weight"
    return {
        "another width": (other(QUERY, 48, 48), "changes a kernel of 48x48 .* the model's is 32x32"),
        "another family": (other(f"{ATTN}.attn2.to_k", W, 2048), "it looks like one for SDXL"),
        "ranks": ({**good, up: numbers(1, W, 5)}, "ranks of its matrices differ: down has 3, up has 5"),
        "no up": ({n: a for n, a in good.items() if n != up}, "up is missing beside down"),
        "nothing fits": (
            renamed("lora_unet_", "lora_unet_unet_"),
            "nothing in it fits this model: 3 tensors, such as lora_unet_unet_",
        ),
        "not finite": ({**good, up: np.full((W, RANK), np.nan, np.float32)}, "up holds NaN or infinite numbers"),
        "alpha": ({**good, up.replace("lora_up.weight", "alpha"): numbers(0, 2)}, "alpha must be one finite number"),
        "GLoRA": ({"lora_unet_x.a1.weight": numbers(0, 2, 2)}, "holds GLoRA, which is not read"),
        "full": ({"lora_unet_x.diff": numbers(0, 2, 2)}, "holds full differences"),
        "OFT": ({"lora_unet_x.oft_blocks": numbers(0, 2, 2)}, "holds OFT"),
        "a model": ({"conv_in.weight": numbers(0, 2, 2)}, "no LoRA is in it: its tensors are such as conv_in.weight"),
        "twice": (
            {**good, **{f"unet.{QUERY}.lora.{r}.weight": a for r, a in plain(W, W, 1)[0].items()}},
            "two layers of it are the model's",
        ),
        "numbers": (
            {"unet:0:up": numbers(0, 9, 2), "unet:0:down": numbers(0, 2, 9)},
            "do not fit this model's 27 one after another",
        ),
    }[kind]


KINDS = (
    "another width",
    "another family",
    "ranks",
    "no up",
    "nothing fits",
    "not finite",
    "alpha",
    "GLoRA",
    "full",
    "OFT",
)
KINDS += ("a model", "twice", "numbers")


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_one_sentence(least, tmp_path, kind):
    tensors, words = bad(kind)
    path = write(tmp_path, tensors)
    with pytest.raises(ValueError, match=words) as caught:
        weights_convert.load_lora(path, least)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_what_fits_nothing_is_named(least, tmp_path):
    tensors = kohya({QUERY: plain(W, W, 1)[0], "elsewhere.to_q": plain(W, W, 2)[0]})
    with pytest.warns(UserWarning, match=r"3 tensors of the LoRA fit nothing: lora_unet_elsewhere_to_q\.alpha, "):
        assert len(weights_convert.load_lora(write(tmp_path, tensors), least)["unet"]) == 1


# ---- inspection ----


def test_inspection_says_what_a_file_is(tmp_path):
    names = [f"{ATTN}.{attn}.{to}" for attn in ("attn1", "attn2") for to in ("to_q", "to_k", "to_v", "to_out.0")]
    sizes = [(320, 768 if "attn2.to_k" in n or "attn2.to_v" in n else 320) for n in names]
    layers = {name: plain(o, i, n)[0] for n, (name, (o, i)) in enumerate(zip(names, sizes, strict=True))}
    tags = json.dumps({"10_cats": {"cat": 9, "sitting": 4}})
    path = write(
        tmp_path, kohya(layers), ss_tag_frequency=tags, ss_output_name="cats", ss_network_module="networks.lora"
    )
    said = inspect(path)
    for words in ("a LoRA", "for Stable Diffusion 1.x", "8 layers: 4 of self-attention, 4 of cross-attention"):
        assert words in said, said
    for words in ("LoRA (8); rank 3", "alpha 2", "trigger words: cat (9), sitting (4)", "ss_output_name: cats"):
        assert words in said, said
