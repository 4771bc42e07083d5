"""The tokenizer by itself: known numbers, laws, files, and what happens to broken ones."""

import itertools
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.tokenizer import Tokenizer, clean, merge, words
from ldm.vocabulary import BYTE_CHARACTERS, AddedToken

LAYOUTS = Path(__file__).parents[1] / "../shared/data/layouts"
CLIP = Tokenizer.clip()

GOLDEN = {  # from the public tokenizer, which tests/parity/test_tokenizer.py runs beside ours
    "": [],
    "a photograph of an astronaut riding a horse": [320, 8853, 539, 550, 18376, 6765, 320, 4558],
    "A Red Cube, on a BLUE sphere!": [320, 736, 11353, 267, 525, 320, 1746, 6987, 256],
    "it's 3 o'clock; they'll've gone": [585, 568, 274, 334, 262, 6716, 282, 889, 1342, 1200, 3601],
    "1234567 km²": [272, 273, 274, 275, 276, 277, 278, 4590, 41175],
    "naïve café": [1097, 35689, 563, 15304],
    "e\u0301 = \u00e9": [4166, 284, 4166],
    "İstanbul ΟΔΥΣ": [328, 16384, 11231, 138, 123, 138, 112, 139, 227, 139, 481],
    "北京 tokyo 東京": [161, 234, 245, 21078, 361, 6667, 48338, 21078, 361],
    "नमस्ते": [3124, 101, 48254, 28505, 19389, 27263, 25130],
    "👩‍👩‍👧 🇰🇷": [26304, 26304, 964, 356, 28232, 9869],
    "a\t\n b\u3000c": [320, 321, 322],
    "zero\u200bwidth\x00\x1c": [5848, 9844, 23571, 188, 472],
    "x<|endoftext|>y <|ENDOFTEXT|>!": [343, 49407, 344, 27, 347, 40786, 4160, 91, 285, 256],
    "!!!!!! ...": [9168, 678],
    "antidisestablishmentarianism": [3120, 4262, 7726, 12658, 1585, 44351],
    "trending on artstation, 8k": [6087, 525, 1486, 2631, 267, 279, 330],
}


def tiny() -> Tokenizer:
    """A vocabulary of some hundred tokens: all bytes, and the merges of 'cat' and 'the'."""
    characters = list(BYTE_CHARACTERS.values())
    merges = (("t", "h"), ("th", "e</w>"), ("c", "a"), ("ca", "t</w>"))
    texts = [*characters, *(c + "</w>" for c in characters), *(a + b for a, b in merges), "<s>", "</s>", "<pad>"]
    vocab = {text: i for i, text in enumerate(texts)}
    added = tuple(AddedToken(text, vocab[text], False) for text in ("<s>", "</s>", "<pad>"))
    return Tokenizer(vocab, merges, added, *(vocab[t] for t in ("<s>", "</s>", "<pad>", "</s>")), max_length=8)


@pytest.mark.parametrize("text", GOLDEN)
def test_known_numbers(text):
    assert CLIP.encode(text) == GOLDEN[text]


def test_the_packaged_vocabulary_has_the_public_size():
    assert (CLIP.vocab_size, len(CLIP.merges), CLIP.bos, CLIP.eos, CLIP.pad) == (49408, 48894, 49406, 49407, 49407)


def test_rows_begin_end_and_are_padded():
    rows = CLIP(["a cat", ""], length=6)
    assert rows.dtype == np.int32
    assert rows.tolist() == [[49406, 320, 2368, 49407, 49407, 49407], [49406] + [49407] * 5]
    assert CLIP("a cat").shape == (1, 77)
    assert Tokenizer.clip(pad="!")("a cat", length=6).tolist() == [[49406, 320, 2368, 49407, 0, 0]]


def test_a_pad_token_is_an_added_token_in_prompts_too():
    """As in the public Stable Diffusion 2 pipelines, whose folder pads with an exclamation mark."""
    assert CLIP.encode("wow!") == [2781, 256]
    assert Tokenizer.clip(pad="!").encode("wow!") == [2781, 0]


def test_a_long_text_is_cut_with_one_warning_that_quotes_the_rest():
    with pytest.warns(UserWarning, match=r"has 5 tokens and the model reads 3; left out: 'horse \.'") as caught:
        rows = CLIP("an astronaut riding horse.", length=5)
    assert len(caught) == 1
    assert rows.tolist() == [[49406, 550, 18376, 6765, 49407]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CLIP("an astronaut riding horse.", length=7)  # fits exactly


def test_a_row_has_room_for_its_ends():
    with pytest.raises(ValueError, match="length 1 leaves no room"):
        CLIP("a", length=1)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40))
def test_any_text_gives_numbers_of_the_vocabulary(text):
    assert all(0 <= i < CLIP.vocab_size for i in CLIP.encode(text))


@settings(max_examples=300, deadline=None)
@given(st.text().filter(lambda text: "<|" not in text and "</w>" not in text))
def test_decoding_gives_the_cleaned_words_back(text):
    assert CLIP.decode(CLIP.encode(text)) == " ".join(words(clean(text))).strip()


def test_a_lone_surrogate_reads_as_the_replacement_character():
    assert CLIP.encode("a\ud800b") == CLIP.encode("a\ufffdb")
    assert CLIP.encode("\ud83d\ude00") == CLIP.encode("😀")


def test_decoding_leaves_out_the_ends_and_names_unknown_numbers():
    assert CLIP.decode(CLIP("two  Words")[0]) == "two words"
    assert CLIP.decode([188]) == "\x00"
    assert CLIP.decode([127]) == "\ufffd"
    with pytest.raises(ValueError, match="token 49408 is not in the vocabulary of 49408"):
        CLIP.decode([49408])


def plain_merge(symbols, merges):
    """The definition: look at every pair, join the best, again."""
    symbols = list(symbols)
    while found := [(*merges[pair], i) for i, pair in enumerate(itertools.pairwise(symbols)) if pair in merges]:
        _, joined, i = min(found, key=lambda pair: (pair[0], pair[2]))
        symbols[i : i + 2] = [joined]
    return symbols


PAIRS = {(0, 0): (0, 2), (0, 1): (1, 3), (2, 2): (2, 4), (2, 0): (3, 5), (1, 3): (4, 6), (3, 0): (5, 7)}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 1), max_size=40))
def test_merging_by_heap_is_merging_by_definition(symbols):
    assert merge(symbols, PAIRS) == plain_merge(symbols, PAIRS)


def test_a_very_long_word_does_not_take_quadratic_time():
    assert len(CLIP.encode("ab" * 100_000)) == 100_000  # a second; a quadratic loop takes hours


def test_small_vocabularies_work():
    tokenizer = tiny()
    the, cat = tokenizer.vocab["the</w>"], tokenizer.vocab["cat</w>"]
    assert tokenizer("the Cat", 8).tolist() == [[tokenizer.bos, the, cat, tokenizer.eos] + [tokenizer.pad] * 4]


def test_a_byte_that_the_vocabulary_lacks_is_unknown():
    vocab = {"a": 0, "a</w>": 1, "<s>": 2, "</s>": 3}
    tokenizer = Tokenizer(vocab, (), (), 2, 3, 3, unk=3)
    assert tokenizer.encode("ab aa") == [0, 3, 0, 1]


def same(a: Tokenizer, b: Tokenizer) -> bool:
    """Whether two tokenizers are equal in every field."""
    names = ("vocab", "merges", "added", "bos", "eos", "pad", "unk", "max_length")
    return all(getattr(a, name) == getattr(b, name) for name in names)


@pytest.mark.parametrize("tokenizer", [CLIP, Tokenizer.clip(pad="!"), tiny()], ids=["sd1", "sd2", "tiny"])
def test_saved_and_read_back_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    assert same(Tokenizer.from_folder(tmp_path), tokenizer)


@pytest.mark.skipif(not LAYOUTS.exists(), reason="../shared/data holds no public layouts")
@pytest.mark.parametrize(("layout", "pad"), [("sd-v1-4", "<|endoftext|>"), ("sd-v2-1", "!")])
def test_public_folders_are_the_packaged_vocabulary(layout, pad):
    assert same(Tokenizer.from_folder(LAYOUTS / layout / "tokenizer"), Tokenizer.clip(pad))


def one_file(tokenizer: Tokenizer, folder: Path, as_text: bool) -> None:
    """The layout of newer tools: tokenizer.json, with the merges as pairs or, in older files, as texts."""
    merges = [" ".join(pair) if as_text else pair for pair in tokenizer.merges]
    added = [{"id": t.id, "content": t.content, "normalized": t.normalized, "special": True} for t in tokenizer.added]
    value = {"added_tokens": added, "model": {"type": "BPE", "vocab": tokenizer.vocab, "merges": merges}}
    (folder / "tokenizer.json").write_text(json.dumps(value))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>", "model_max_length": 8}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


@pytest.mark.parametrize("as_text", [False, True])
def test_one_file_is_enough(as_text, tmp_path):
    one_file(tiny(), tmp_path, as_text)
    assert same(Tokenizer.from_folder(tmp_path), tiny())


BROKEN = {  # file -> (its contents or None to remove it, what the error says)
    "no vocabulary": ("vocab.json", None, r"vocab\.json: cannot be read \(No such file"),
    "no merges": ("merges.txt", None, r"merges\.txt: cannot be read \(No such file"),
    "cut JSON": ("vocab.json", '{"a": 0,', r"vocab\.json: is not JSON"),
    "nested JSON": ("vocab.json", "[" * 200_000, r"vocab\.json: is not"),
    "a list": ("vocab.json", "[1, 2]", r"vocab\.json: holds a JSON list, not an object"),
    "texts for numbers": ("vocab.json", '{"a": "0"}', r"must give every token its own number >= 0; look at \['a'\]"),
    "twins": ("vocab.json", '{"a": 0, "b": 0}', r"must give every token its own number"),
    "LFS pointer": ("merges.txt", "version https://git-lfs.github.com/spec/v1\n", r"merges\.txt: is a git-LFS pointer"),
    "not UTF-8": ("merges.txt", b"\xff\xfe\x00", r"merges\.txt: is not UTF-8 text \(byte 0\)"),
    "three in a line": ("merges.txt", "a b c\n", r"must hold two tokens with a space between, not 'a b c'"),
    "unknown merge": ("merges.txt", "q zz\n", r"merge 0, 'q' \+ 'zz', needs 'q', which the vocabulary lacks"),
    "no such special": ("special_tokens_map.json", '{"pad_token": "<fill>"}', "special token '<fill>' is not among"),
    "odd special": ("special_tokens_map.json", '{"pad_token": 7}', "must be a text or an object with 'content', not 7"),
    "odd length": ("tokenizer_config.json", '{"model_max_length": "long"}', "model_max_length is 'long'"),
    "odd added": (
        "tokenizer_config.json",
        '{"added_tokens_decoder": {"x": {"content": "a"}}}',
        "added tokens is broken",
    ),
    "odd one file": ("tokenizer.json", '{"model": {"vocab": []}}', "no byte-pair vocabulary under 'model'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders_give_one_sentence_with_the_path(case, tmp_path):
    name, contents, message = BROKEN[case]
    small = Tokenizer({"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}, (), (), 1, 2, 2, 2)
    (tmp_path / "vocab.json").write_text(json.dumps(small.vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    Tokenizer.from_folder(tmp_path)  # good until it is broken
    (tmp_path / name).unlink(missing_ok=True)
    if contents is not None:
        (tmp_path / name).write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.from_folder(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert not re.search("\n", str(error.value))
