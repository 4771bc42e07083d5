"""New words: what they do to a model and its tokenizer, public files of every layout, and words that cannot be."""

import numpy as np
import pytest
from safetensors.numpy import save_file

import ldm
import weights_convert
from ldm.adapters.textual_inversion import TABLE, vectors_of
from ldm.tokenizer import Tokenizer
from weights_convert.adapters.export import export_embedding
from weights_convert.inspection import inspect
from weights_convert.reading import read_file

WIDE = 64
VECTORS = np.random.default_rng(0).standard_normal((3, WIDE)).astype(np.float32)
QUIET = {"steps": 2, "output": "latents", "progress": False}


def write(path, tensors, **metadata):
    """A file."""
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path, metadata or None)
    return path


# ---- the model ----


def test_nothing_but_new_rows(least):
    taught = ldm.with_word(least, "<toy>", VECTORS)
    before, after = least.params["text"][TABLE], taught.params["text"][TABLE]
    assert after.shape == (len(before) + 3, WIDE) and np.array_equal(after[: len(before)], before)
    assert np.array_equal(after[len(before) :], VECTORS)
    others = {part: {n for n in own if n != TABLE} for part, own in least.params.items()}
    assert all(taught.params[part][n] is least.params[part][n] for part, names in others.items() for n in names)
    assert np.array_equal(ldm.generate(taught, "a cat", **QUIET), ldm.generate(least, "a cat", **QUIET))
    assert not np.array_equal(ldm.generate(taught, "a <toy>", **QUIET), ldm.generate(least, "a <toy>", **QUIET))


def test_a_word_of_several_vectors_is_several_tokens(least):
    taught = ldm.with_word(least, "<toy>", VECTORS)
    first = least.configs.text.vocabulary
    ids = taught.tokenizer.encode("a <toy> on a <TOY>")
    assert ids == [
        *least.tokenizer.encode("a"),
        *range(first, first + 3),
        *least.tokenizer.encode("on a"),
        *range(first, first + 3),
    ]
    assert taught.tokenizer.encode("<toy>_2") == [first + 2], "one of them, by its own name"
    np.testing.assert_array_equal(vectors_of(taught, "<toy>"), VECTORS)
    one = ldm.with_word(least, "<one>", VECTORS[0])
    assert one.tokenizer.encode("<one>") == [first]


def test_words_add_up_and_come_back_from_a_folder(least, tmp_path):
    both = ldm.with_word(ldm.with_word(least, "<toy>", VECTORS), "<other>", VECTORS[:1] + 1)
    ldm.save(both, tmp_path / "model")
    back = ldm.load(tmp_path / "model")
    assert back.tokenizer.encode("a <toy> <other>") == both.tokenizer.encode("a <toy> <other>")
    assert np.array_equal(ldm.generate(back, "a <toy>", **QUIET), ldm.generate(both, "a <toy>", **QUIET))


def test_words_that_cannot_be(least):
    for word in ("foo", "cat", "<|endoftext|>", "Cat"):
        with pytest.raises(ValueError, match="is a token already"):
            ldm.with_word(least, word, VECTORS)
    for word in ("", " ", " x", "x\n"):
        with pytest.raises(ValueError, match="a text without white space around it"):
            ldm.with_word(least, word, VECTORS)
    with pytest.raises(ValueError, match="is a token already"):
        ldm.with_word(ldm.with_word(least, "<toy>", VECTORS), "<toy>", VECTORS)
    with pytest.raises(ValueError, match=r"shape \(2, 7\), but the text tower is 64 wide"):
        ldm.with_word(least, "<toy>", np.ones((2, 7)))
    with pytest.raises(ValueError, match="not all finite"):
        ldm.with_word(least, "<toy>", np.full(WIDE, np.inf))
    with pytest.raises(ValueError, match="'a red cube' is 3 tokens, not one word"):
        vectors_of(least, "a red cube")


# ---- files ----


def a1111(path):
    """As that program writes it."""
    export_embedding("toy", VECTORS, path, "a1111")
    return path


FILES = {
    "diffusers": (lambda path: write(path, {"<toy>": VECTORS}), "<toy>"),
    "diffusers, one vector": (lambda path: write(path, {"<toy>": VECTORS[0]}), "<toy>"),
    "emb_params": (lambda path: write(path, {"emb_params": VECTORS}), "file"),
    "two towers": (lambda path: write(path, {"clip_l": VECTORS, "clip_g": np.ones((3, 9), np.float32)}), "file"),
    "A1111": (a1111, "toy"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.filterwarnings("ignore:the embedding's clip_g")
def test_every_layout(least, tmp_path, kind):
    make, word = FILES[kind]
    found = weights_convert.load_embedding(make(tmp_path / "file.pt"), least)
    assert found.word == word
    np.testing.assert_array_equal(found.vectors, VECTORS[: len(found.vectors)])
    assert weights_convert.load_embedding(tmp_path / "file.pt", least, "<mine>").word == "<mine>"


@pytest.mark.parametrize("layout", ["diffusers", "a1111"])
def test_exports_come_back_to_the_bit(least, tmp_path, layout):
    export_embedding("<toy>", VECTORS, tmp_path / "out", layout)
    back = weights_convert.load_embedding(tmp_path / "out", least)
    assert back.word == "<toy>" and np.array_equal(back.vectors, VECTORS)


def test_a_pickle_written_here_holds_what_it_should(tmp_path):
    held = read_file(a1111(tmp_path / "a.pt"))
    assert held.extras["name"] == "toy" and held.extras["string_to_token.*"] == 265
    np.testing.assert_array_equal(held.tensors["string_to_param.*"].read(), VECTORS)
    with pytest.raises(ValueError, match="layout 'onnx' is none of diffusers, a1111"):
        export_embedding("x", VECTORS, tmp_path / "b", "onnx")
    assert not (tmp_path / "b").exists()


def test_files_that_do_not_fit(least, tmp_path):
    wide = write(tmp_path / "wide.safetensors", {"<toy>": np.ones((2, 768), np.float32)})
    with pytest.raises(
        ValueError, match=r"wide\.safetensors: its vectors are 768 wide, and this model's text tower 64"
    ):
        weights_convert.load_embedding(wide, least)
    many = write(tmp_path / "many.safetensors", {"<a>": VECTORS, "<b>": VECTORS})
    with pytest.raises(ValueError, match="holds 2 embeddings of this width, <a>, <b>"):
        weights_convert.load_embedding(many, least)
    none = write(tmp_path / "none.safetensors", {"x": np.ones((2, 2, 2, 2), np.float32)})
    with pytest.raises(ValueError, match="holds no embedding: its tensors are such as x"):
        weights_convert.load_embedding(none, least)
    with pytest.raises(ValueError, match="holds none of learned_embeds"):
        weights_convert.load_embedding(tmp_path, least)


def test_inspection(tmp_path):
    said = inspect(a1111(tmp_path / "a.pt"))
    assert "a textual inversion embedding" in said and "3 vectors of 64" in said and "trigger word: toy" in said


def test_tokenizers_without_new_words_are_as_they_were():
    """Runs of tokens come from followers "x_1", which no public vocabulary has."""
    assert Tokenizer.clip()._runs == {}
