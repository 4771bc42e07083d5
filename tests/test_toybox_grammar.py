"""Laws of the toybox's language: every sentence is read as it was meant, and judged by what there is."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.toybox.grammar import RELATIONS, WORDS, Description, Meaning, inverse, matches
from ldm.toybox.parsing import parse
from ldm.toybox.scene import COLOURS, KINDS, MATERIALS, SIZES
from ldm.toybox.sentences import canonical, sentence

LAWS = settings(max_examples=300, deadline=None, derandomize=True)


@st.composite
def meanings(draw) -> Meaning:
    """Any meaning at all, alike toys and contradictions among them."""
    some = lambda known: st.sampled_from([None, *known[:2]])
    description = st.builds(Description, some(KINDS), some(COLOURS), some(SIZES), some(MATERIALS), st.integers(1, 3))
    said = draw(st.lists(description, min_size=1, max_size=3).filter(lambda all_: sum(d.number for d in all_) <= 3))
    every = [(i, word, j) for i, j in permutations(range(len(said)), 2) for word in RELATIONS]
    drawn = draw(st.lists(st.sampled_from(every), max_size=3)) if every else []
    return Meaning(tuple(said), tuple(drawn))


def same(one: Meaning, other: Meaning) -> bool:
    """Whether two meanings are one, but for the order of mention and the end that relations are said from."""

    def normal(meaning: Meaning, order) -> tuple:
        renamed = [(order.index(i), word, order.index(j)) for i, word, j in meaning.relations]
        forward = {way if way[1] in ("left", "front") else inverse(way) for way in renamed}
        return [meaning.descriptions[k] for k in order], forward

    count = len(one.descriptions)
    return any(normal(one, order) == normal(other, range(count)) for order in permutations(range(count)))


# ---- sentences are read as they were meant ----


@LAWS
@given(meanings(), st.integers(0, 2**32 - 1))
def test_parsing_is_the_inverse_of_every_sentence(meaning: Meaning, seed: int):
    rng = np.random.default_rng(seed)
    text = sentence(meaning, lambda options: options[int(rng.random() * len(options))])
    assert same(parse(text), meaning), text
    assert parse(f"  {text.upper().replace(' ', '   ')} . ") == parse(text)


@LAWS
@given(meanings())
def test_the_plain_sentence_is_a_fixed_point(meaning: Meaning):
    text = canonical(meaning)
    assert same(parse(text), meaning) and canonical(parse(text)) == text


PEOPLE_SAY = {
    "a red cube on the left of a blue sphere": "a red cube to the left of a blue sphere",
    "The red cube is behind the blue ball.": "a red cube behind a blue sphere",
    "red cube and blue ball": "a red cube and a blue sphere",
    "a photo of 2 big GREY toruses": "two large gray tori",
    "a shiny small red cube": "a small shiny red cube",
    "a ball on the left and two cubes on the right": "a sphere to the left of two cubes",
    "a cone in front, a ring in the middle and a face at the back": (
        "a cone in front of a torus, and a head behind the torus"
    ),
    "a cube and a cone behind a ball": "a cube behind a sphere, and a cone behind the sphere",
    "There's a cube, with a ball to its left and a cone behind the cube": (
        "a sphere to the left of a cube, and a cone behind the cube"
    ),
    "a red cube left of a blue cube behind a cone": (
        "a red cube to the left of a blue cube, and a cone in front of the blue cube"
    ),
}


@pytest.mark.parametrize("text", PEOPLE_SAY)
def test_what_people_say(text: str):
    assert canonical(parse(text)) == PEOPLE_SAY[text]


NOT_UNDERSTOOD = {
    "": "the end of the text",
    "a red": "the end of the text",
    "a red cube behind": "the end of the text",
    "a red cat": '"cat" \\(word 3\\)',
    "a red blue cube": '"blue" \\(word 3\\)',
    "a red cube next to a ball": '"next" \\(word 4\\)',
    "a cube, a ball between a cone": '"between"',
    "a cube. a ball": '"."',
    "red cubes": "how many",
    "four cubes": '"four"',
    "two cubes and two balls": "names 4",
    "a ball on the left": "on the left",
    "a ball on the left and a cube at the back": "of which toy",
    "a ball from left to right": "from left to right",
    "a red cube, a red cube and a ball behind the red cube": "not clear which",
    "a cube and the second ball": "not clear which",
    "a red cube behind the cube": "beside itself",
}


@pytest.mark.parametrize("text", NOT_UNDERSTOOD)
def test_what_is_not_understood_is_said_in_one_sentence(text: str):
    with pytest.raises(ValueError, match=NOT_UNDERSTOOD[text]) as caught:
        parse(text)
    assert "\n" not in str(caught.value) and ". " not in str(caught.value)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([*WORDS, ",", ".", "2", "the", "a", "cube", "and"]), max_size=12))
def test_any_words_are_read_or_refused(words: list[str]):
    try:
        meaning = parse(" ".join(words))
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert same(parse(canonical(meaning)), meaning)


# ---- meanings against what there is ----

RED_CUBE, BLUE_BALL = Description("cube", "red"), Description("sphere", "blue")


def test_each_description_takes_a_toy_of_its_own():
    there = [Description("cube", "red", "small"), Description("cube", "blue", "small")]
    assert matches(parse("a red cube and a small cube"), there, [])
    assert matches(parse("two small cubes"), there, [])
    assert not matches(parse("two red cubes"), there, [])
    assert not matches(parse("a red cube and a red toy"), there, [])
    assert not matches(parse("three toys"), there, [])


def test_what_was_not_read_fits_only_what_is_not_said():
    unread = Description("cube", colour=None, size="large", material="matte")
    assert matches(parse("a large cube"), [unread], [])
    assert not matches(parse("a red cube"), [unread], [])


def test_a_relation_of_a_group_is_of_each_member():
    there = [RED_CUBE, RED_CUBE, BLUE_BALL]
    meaning = parse("two red cubes to the left of a ball")
    assert matches(meaning, there, [(0, "left", 2), (1, "left", 2)])
    assert not matches(meaning, there, [(0, "left", 2)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Description("cat"), "kind is one of"),
        (lambda: Description("cube", number=0), "1 to 3 toys, got 0"),
        (lambda: Meaning(()), "names 0"),
        (lambda: Meaning((RED_CUBE,), ((0, "left", 0),)), "a relation is"),
        (lambda: Meaning((RED_CUBE, BLUE_BALL), ((0, "above", 1),)), "above"),
    ],
)
def test_meanings_that_cannot_be(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
