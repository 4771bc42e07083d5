"""Textual inversion against diffusers and PyTorch: what they load, and what is written here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ldm
import weights_convert
from ldm.bundle import module
from weights_convert.adapters.export import export_embedding

from . import layouts, oracle

torch = oracle.torch
WORD = "<toy>"
PROMPT = f"a photo of {WORD} beside a {WORD}, and a cat"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ldm.Bundle]:
    """(a tiny pipeline of diffusers, ours from its folder)."""
    home = tmp_path_factory.mktemp("sd1")
    pipe = layouts.pipeline("sd1", home / "tokenizer")
    layouts.save_folder(pipe, home / "model")
    return pipe, weights_convert.load(home / "model")


def files(folder: Path, vectors: np.ndarray) -> dict[str, Path]:
    """Files by PyTorch itself, in the layouts that diffusers reads."""
    tensor = torch.from_numpy(vectors)
    torch.save({WORD: tensor}, folder / "learned.bin")
    layouts.save_file({WORD: tensor}, folder / "learned.safetensors")
    told = {"string_to_token": {"*": 265}, "string_to_param": {"*": tensor}, "name": WORD, "step": 9}
    torch.save(told, folder / "a1111.pt")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["learned.bin", "learned.safetensors", "a1111.pt", "ours.safetensors", "ours.pt"])
@pytest.mark.parametrize("count", [1, 3])
def test_against_diffusers(model: Any, tmp_path: Path, name: str, count: int):
    """Ids equal, states to 1e-5 (float32 rounding of a text tower); our own exports among the files."""
    pipe, bundle = model
    vectors = oracle.gaussian(5, count, 128)
    kinds = {"ours.safetensors": "diffusers", "ours.pt": "a1111"}
    path = tmp_path / name
    if name in kinds:
        export_embedding(WORD, vectors, path, kinds[name])
    else:
        path = files(tmp_path, vectors)[name]
    found = weights_convert.load_embedding(path, bundle)
    assert found.word == WORD and np.array_equal(found.vectors, vectors)
    taught = ldm.with_word(bundle, found.word, found.vectors)
    pipe.load_textual_inversion(tmp_path, weight_name=name, token=WORD)
    try:
        prompt = pipe.maybe_convert_prompt(PROMPT, pipe.tokenizer)
        ids = pipe.tokenizer(
            prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        np.testing.assert_array_equal(taught.tokenizer([PROMPT]), ids.numpy())
        wanted = pipe.text_encoder(ids).last_hidden_state.numpy()
    finally:
        pipe.unload_textual_inversion()
    drawn = np.asarray(module(taught.configs, taught.params, "text")(ids.numpy().astype(np.int32)).context)
    oracle.agree(f"{name}, {count} vectors", drawn, wanted, 1e-5)


def test_a_parameter_dict(model: Any, tmp_path: Path):
    """The original trainer's file, which PyTorch's own safe loader refuses."""
    vectors = oracle.gaussian(6, 2, 128)
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.from_numpy(vectors))})
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters}, tmp_path / "a-style.pt")
    found = weights_convert.load_embedding(tmp_path / "a-style.pt", model[1])
    assert found.word == "a-style" and np.array_equal(found.vectors, vectors)


def test_our_pickle_is_one_for_pytorch(tmp_path: Path):
    vectors = oracle.gaussian(7, 2, 128)
    export_embedding(WORD, vectors, tmp_path / "a.pt", "a1111")
    held = torch.load(tmp_path / "a.pt", weights_only=True)
    assert held["name"] == WORD and torch.equal(held["string_to_param"]["*"], torch.from_numpy(vectors))
