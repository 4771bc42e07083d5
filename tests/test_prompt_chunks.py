"""Chunks of prompts, 75 tokens each, and the states that their weights multiply."""

import re
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.prompts import Chunks, chunks, joined, padded, weigh
from ldm.tokenizer import Tokenizer

CLIP, CLIP_2 = Tokenizer.clip(), Tokenizer.clip(pad="!")
PLAIN = st.text().filter(lambda text: not re.search(r"[()\[\]\\]|BREAK", text))

# ---------------------------------------------------------------------------------------------------------------------
# Chunks


def content(row: np.ndarray) -> list[int]:
    """The numbers of a row between begin and end."""
    return row[1 : row.tolist().index(CLIP.eos)].tolist()


@settings(max_examples=60, deadline=None)
@given(PLAIN.filter(lambda text: len(text.encode("utf-8", "replace")) < 70 and "<|" not in text))
def test_a_plain_text_that_fits_is_the_tokenizers_row(text):
    ids, weights = chunks(CLIP, text)
    assert (ids.dtype, weights.dtype, weights.shape) == (np.int32, np.float32, ids.shape)
    np.testing.assert_array_equal(ids, CLIP(text))
    assert (weights == 1).all()


@pytest.mark.parametrize("tokenizer", [CLIP, CLIP_2], ids=["sd1", "sd2"])
@pytest.mark.parametrize("words", [0, 1, 74, 75, 76, 150, 151, 400])
def test_a_long_text_is_cut_by_counting_and_keeps_every_token(words, tokenizer):
    text = " ".join(["cat", "horse", "antidisestablishmentarianism"][n % 3] for n in range(words))
    plain, (ids, weights) = tokenizer.encode(text), chunks(tokenizer, text)
    assert ids.shape == weights.shape == (max(1, -(-len(plain) // 75)), 77)
    assert list(chain(*map(content, ids))) == plain
    assert all(len(content(row)) == 75 for row in ids[:-1])
    last = len(content(ids[-1]))
    assert ids[-1].tolist() == [tokenizer.bos, *plain[len(plain) - last :], tokenizer.eos] + [tokenizer.pad] * (
        75 - last
    )


def test_weights_stand_at_their_tokens():
    ids, weights = chunks(CLIP, "a (red cat:1.3), [a]", length=9)
    assert ids.tolist() == [[49406, 320, 736, 2368, 267, 320, 49407, 49407, 49407]]
    np.testing.assert_allclose(weights, [[1, 1, 1.3, 1.3, 1, 1 / 1.1, 1, 1, 1]], rtol=1e-6)


def test_weights_go_on_in_the_next_chunk():
    ids, weights = chunks(CLIP, "a (red cat on a mat:1.5)", length=5)
    assert [content(row) for row in ids] == [[320, 736, 2368], CLIP.encode("on a mat")]
    assert weights.tolist() == [[1, 1, 1.5, 1.5, 1], [1, 1.5, 1.5, 1.5, 1]]


def test_a_word_that_changes_its_weight_is_two_words():
    assert content(chunks(CLIP, "(photo)graph")[0][0]) == CLIP.encode("photo") + CLIP.encode("graph")


CHUNKED = {  # text -> the texts of its chunks, 3 tokens each
    "a BREAK cat": ["a", "cat"],
    "a cat runs BREAK here": ["a cat runs", "here"],  # a full chunk needs no padding, and none is added
    "a cat runs here BREAK now": ["a cat runs", "here", "now"],
    "a BREAK": ["a"],
    "a BREAK BREAK": ["a", ""],
    "BREAK a": ["", "a"],
    "BREAK": [""],
    "": [""],
    "  ()": [""],
}


@pytest.mark.parametrize("text", CHUNKED)
def test_break_ends_a_chunk(text):
    np.testing.assert_array_equal(chunks(CLIP, text, length=5).ids, CLIP(CHUNKED[text], length=5))


def test_padding_adds_chunks_of_the_empty_text():
    text = chunks(CLIP, "(a:2) BREAK b", length=5)
    ids, weights = padded(text, 4, CLIP)
    np.testing.assert_array_equal(ids, CLIP(["a", "b", "", ""], length=5))
    assert (ids.dtype, weights.dtype) == (np.int32, np.float32)
    assert weights.tolist() == [[1, 2, 1, 1, 1]] + [[1] * 5] * 3
    for part, same in zip(padded(text, 2, CLIP), text, strict=True):
        np.testing.assert_array_equal(part, same)
    assert isinstance(padded(text, 2, CLIP), Chunks)
    with pytest.raises(ValueError, match="the text has 2 chunks, which cannot be padded to 1"):
        padded(text, 1, CLIP)
    with pytest.raises(ValueError, match="length 2 leaves no room for a token"):
        chunks(CLIP, "a", length=2)


# ---------------------------------------------------------------------------------------------------------------------
# States


WEIGH = jax.jit(weigh)


def states_and_weights() -> tuple[np.ndarray, np.ndarray]:
    """States [2, 6, 4] about a mean of 0.3, and weights [2, 6] about 1."""
    rng = np.random.default_rng(0)
    states = 0.3 + rng.standard_normal((2, 6, 4), np.float32)
    return states, 1 + 0.3 * rng.standard_normal((2, 6), np.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("run", [weigh, WEIGH])
def test_weights_of_1_change_no_bit(run, dtype):
    states, weights = states_and_weights()
    states, weights[1] = jnp.asarray(states, dtype), 1
    result = run(states, weights)
    assert result.dtype == dtype
    same = np.asarray(result) == np.asarray(states)
    assert same[1].all() and not same[0].all()


def test_weighing_multiplies_and_restores_each_texts_mean():
    states, weights = states_and_weights()
    result, product = np.asarray(WEIGH(states, weights)), states * weights[:, :, None]
    np.testing.assert_allclose(result.mean((1, 2)), states.mean((1, 2)), rtol=1e-5)
    scale = states.mean((1, 2)) / product.mean((1, 2))
    np.testing.assert_allclose(result, product * scale[:, None, None], rtol=1e-5)
    np.testing.assert_allclose(WEIGH(states, np.full_like(weights, 2)), states, rtol=1e-6)  # only ratios count
    other = np.stack([states[0], 7 * states[1]])
    np.testing.assert_array_equal(WEIGH(other, weights)[0], result[0])  # each text by itself


def test_a_mean_near_0_is_not_restored():
    states, weights = states_and_weights()
    balanced = states - states.mean(axis=2, keepdims=True)  # its mean is 0 whatever the weights
    np.testing.assert_array_equal(WEIGH(balanced, weights), balanced * weights[:, :, None])
    np.testing.assert_array_equal(WEIGH(states, 0 * weights), 0 * states)
    opposite = np.ones_like(states) * np.array([1, -1] * 3, np.float32)[:, None]  # mean 0 before, not after
    np.testing.assert_array_equal(WEIGH(opposite, weights), opposite * weights[:, :, None])
    gradient = jax.jit(jax.grad(lambda x: weigh(x, 0 * weights).sum()))(states)
    assert np.isfinite(gradient).all()


def test_joining_puts_the_chunks_of_a_text_in_a_row():
    states = np.arange(6 * 5 * 2).reshape(6, 5, 2)
    result = joined(states, 3)
    assert result.shape == (2, 15, 2)
    np.testing.assert_array_equal(result[1], np.concatenate(states[3:]))
    np.testing.assert_array_equal(joined(states, 1), states)
    with pytest.raises(ValueError, match="6 chunks are no whole number of texts of 4 chunks"):
        joined(states, 4)
