"""Laws of the hard negatives: false, near the truth, fair, and as many as were asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.toybox.captions import SHORT, VARIED, Wording, caption_of, relations, toys
from ldm.toybox.grammar import INVERSE, RELATIONS, WORDS, Description, Meaning, matches
from ldm.toybox.mistakes import UNSEEN, hard_captions
from ldm.toybox.parsing import parse
from ldm.toybox.sampling import random_scene

TERSE = Wording(kind=0.4, colour=0.3, size=0.3, material=0.2, relation=1, together=0.5)
SCENES = [random_scene(index) for index in range(150)]
TRUTHS = [(toys(one), relations(one)) for one in SCENES]

RED_BLUE = [Description("cube", "red", "large", "matte"), Description("sphere", "yellow", "small", "shiny")]
LEFT = [(0, "left", 1), (1, "right", 0)]


def possible(there: list, known: list) -> set:
    """All relations that are not certainly false."""
    every = {(i, word, j) for i in range(len(there)) for j in range(len(there)) if i != j for word in RELATIONS}
    return {way for way in every if (way[0], INVERSE[way[1]], way[2]) not in known}


@given(st.integers(0, len(SCENES) - 1), st.integers(0, 10**6), st.sampled_from([SHORT, VARIED, TERSE]))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_hard_captions_are_false_fair_sentences_about_as_many_toys(index: int, seed: int, wording: Wording):
    there, known = TRUTHS[index]
    rng = np.random.default_rng(seed)
    meaning = parse(caption_of(there, known, rng, wording))
    made = hard_captions(meaning, there, known, rng, 5, wording.paraphrase)
    assert len(made) == 5
    for text in made:
        wrong = parse(text)
        assert not matches(wrong, there, possible(there, known)), text
        assert wrong.toys == meaning.toys and len(wrong.relations) == len(meaning.relations), text
        assert not {(said.colour, said.kind) for said in wrong.descriptions} & UNSEEN and "handset" not in text
        assert set(text.replace(",", "").split()) <= set(WORDS), text


def test_every_kind_of_mistake_is_made_of_two_toys():
    meaning = Meaning((Description("cube", "red"), Description("sphere", "yellow")), (LEFT[0],))
    made = set(hard_captions(meaning, RED_BLUE, LEFT, np.random.default_rng(0), 20, paraphrase=0))
    assert made > {
        "a yellow sphere to the left of a red cube",  # order
        "a red cube to the right of a yellow sphere",  # relation
        "a green cube to the left of a yellow sphere",  # attribute
    }
    assert not [text for text in made if "yellow cube" in text], "kinds or colours swapped: this pair is held out"
    assert len(made) == 20


def test_colours_and_kinds_change_places():
    there = [Description("cube", "green", "large", "matte"), Description("torus", "red", "small", "shiny")]
    meaning = parse("a green cube and a red torus")
    made = hard_captions(meaning, there, [], np.random.default_rng(0), 12, paraphrase=0)
    assert {"a red cube and a green torus", "a green torus and a red cube"} <= set(made)


def test_a_relation_that_is_not_clear_is_not_called_false():
    meaning = Meaning((Description("cube", "red"), Description("sphere", "yellow")), (LEFT[0],))
    made = hard_captions(meaning, RED_BLUE, LEFT, np.random.default_rng(0), 100, paraphrase=0)
    assert not {text for text in made if "front" in text or "behind" in text}


def test_mistakes_of_one_toy_change_what_is_said_if_anything_is():
    there = [Description("torus", "red", "small", "matte")]
    rng = np.random.default_rng(0)
    made = hard_captions(Meaning((Description(colour="red"),)), there, [], rng, 7, paraphrase=0)
    assert sorted(made) == sorted(
        f"{'an' if colour == 'orange' else 'a'} {colour} toy"
        for colour in ("orange", "yellow", "green", "cyan", "blue", "purple", "gray")
    )
    made = hard_captions(Meaning((Description(),)), there, [], rng, 40, paraphrase=0)
    assert {"a large toy", "a shiny toy", "a blue toy", "a cube"} <= set(made)


def test_the_same_numbers_make_the_same_mistakes_and_none_are_asked_for_none():
    there, known = TRUTHS[3]
    meaning = parse(caption_of(there, known, np.random.default_rng(1)))
    first, again = (hard_captions(meaning, there, known, np.random.default_rng(2), 4) for _ in range(2))
    assert first == again
    assert hard_captions(meaning, there, known, np.random.default_rng(2), 0) == []


def test_a_false_meaning_is_refused():
    with pytest.raises(ValueError, match="made from a true meaning, and this is false: 'a blue cube'"):
        hard_captions(Meaning((Description("cube", "blue"),)), RED_BLUE, LEFT, np.random.default_rng(0), 1)
