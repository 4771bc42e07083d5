"""Learning a vocabulary: against the paper's algorithm written plainly, and the laws of what it makes."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm import bpe
from ldm.tokenizer import Tokenizer, clean, words
from ldm.toybox import captions
from ldm.toybox.grammar import RELATIONS, WORDS, Description
from ldm.toybox.recipe import vocabulary
from ldm.vocabulary import BYTE_CHARACTERS

TEXTS = st.lists(st.text("abca ,é", max_size=12), max_size=6)
WORDY = captions.Wording(kind=1, colour=1, size=1, material=1, relation=1, together=0, paraphrase=1)


def slow(texts: list[str], most: int) -> list[tuple[str, str]]:
    """The paper's algorithm 1: count all pairs, join the best one in all words, begin again."""
    counts = Counter(word for text in texts for word in words(clean(text)))
    spelt = {word: [BYTE_CHARACTERS[b] for b in word.encode()] for word in counts}
    spelt = {word: [*parts[:-1], parts[-1] + "</w>"] for word, parts in spelt.items()}
    merges = []
    for _ in range(most):
        pairs = Counter()
        for word, parts in spelt.items():
            for i in range(len(parts) - 1):
                pairs[parts[i], parts[i + 1]] += counts[word]
        if not pairs:
            break
        merges.append(sorted(pairs, key=lambda pair: (-pairs[pair], pair))[0])
        for parts in spelt.values():
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == merges[-1]:
                    parts[i : i + 2] = ["".join(merges[-1])]
                i += 1
    return merges


@pytest.fixture(scope="module")
def toybox() -> Tokenizer:
    """The toybox's vocabulary, of fewer captions than the recipe takes."""
    return vocabulary.tokenizer(vocabulary.captions(60))


def test_the_papers_words():
    texts = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3  # seen: es 9, est 9, lo 7, ew 6
    assert bpe.learn(texts, 4) == (("e", "s"), ("es", "t</w>"), ("l", "o"), ("e", "w"))
    assert bpe.learn(texts, 0) == bpe.learn([]) == ()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(TEXTS, st.integers(0, 12))
def test_merges_are_those_of_the_paper(texts, most):
    assert list(bpe.learn(texts, most)) == slow(texts, most)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(TEXTS)
def test_learned_to_the_end_every_word_is_one_token(texts):
    tokenizer = bpe.tokenizer(bpe.learn(texts), 20)
    seen = {word for text in texts for word in words(clean(text))}
    assert all(len(tokenizer.encode(word)) == 1 for word in seen)
    assert sorted(tokenizer.vocab.values()) == list(range(tokenizer.vocab_size))  # no number is left out


def test_the_order_of_the_texts_is_nothing():
    texts = vocabulary.captions(20)
    assert bpe.learn(texts) == bpe.learn(texts[::-1]) == bpe.learn([" ".join(texts)])
    assert bpe.learn(texts, 30) == bpe.learn(texts)[:30]


def test_a_negative_number_of_merges_is_refused():
    with pytest.raises(ValueError, match="0 or more merges, got -1"):
        bpe.learn(["a"], -1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(max_size=30))
def test_any_text_is_within_reach(toybox, text):
    ids = toybox.encode(text)
    assert all(0 <= i < toybox.vocab_size for i in ids)
    dark = lambda some: [character for character in some if not character.isspace()]
    assert dark(toybox.decode(ids)) == dark(clean(text))


def test_every_word_of_the_grammar_is_one_token(toybox):
    assert all(len(toybox.encode(word)) == 1 for word in (*WORDS, ","))
    assert len({toybox.encode(word)[0] for word in WORDS}) == len(WORDS)
    assert len(toybox.encode("armchair")) > 1


def test_captions_come_back(toybox):
    for text in vocabulary.captions(60):
        assert toybox.decode(toybox.encode(text)).replace(" ,", ",") == text
        assert len(toybox.encode(text)) == len(text.replace(",", " ,").split())


def test_the_vocabulary_has_clips_form(toybox):
    assert (toybox.bos, toybox.eos, toybox.pad) == (toybox.vocab_size - 2, toybox.vocab_size - 1, toybox.vocab_size - 1)
    assert toybox.vocab_size == 514 + len(toybox.merges)
    (row,) = toybox("a red cube")
    assert row.shape == (vocabulary.MAX_LENGTH,) and row[0] == toybox.bos
    assert (row[4:] == toybox.eos).all() and (row[1:4] < toybox.bos).all()


def test_the_wordiest_sentences_fit_in_a_row(toybox):
    rng, longest = np.random.default_rng(0), 0
    for first, second, colour in list(product(RELATIONS, RELATIONS, ("red", "cyan"))) * 100:
        there = [Description("head", name, "small", "matte") for name in ("red", "blue", colour)]
        known = [(0, first, 1), (1, second, 2)]
        longest = max(longest, len(toybox.encode(captions.caption_of(there, known, rng, WORDY))))
    assert 36 <= longest <= vocabulary.MAX_LENGTH - 2


def test_the_folder_holds_the_same(toybox, tmp_path):
    toybox.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    assert (dict(again.vocab), again.merges, again.max_length) == (dict(toybox.vocab), toybox.merges, 40)
    assert (again.bos, again.eos, again.pad, again.added) == (toybox.bos, toybox.eos, toybox.pad, toybox.added)
