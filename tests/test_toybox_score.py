"""The scores of a model: what counts as right, on readings that are written down."""

import numpy as np
import pytest

from ldm.toybox.parsing import parse
from ldm.toybox.recipe import score
from ldm.toybox.recogniser import Reading, Sighting
from ldm.toybox.sampling import random_scene
from ldm.toybox.scene import COLOURS, KINDS

pytestmark = pytest.mark.optimised


def seen(*toys: tuple[str, str, float], readable: bool = True) -> Reading:
    """A reading of (colour, kind, column) each, all at one depth."""
    make = lambda colour, kind, x: Sighting(
        KINDS.index(kind), COLOURS.index(colour), 1, 0, (x - 0.1, 0.4, x + 0.1, 0.6), x, 0.0, 0.9
    )
    return Reading(readable, tuple(make(*toy) for toy in toys))


PROMPT = parse("a red cube to the left of a blue sphere")
TABLE = {
    "right": (seen(("red", "cube", 0.3), ("blue", "sphere", 0.7)), (True, True, True, False)),
    "wrong side": (seen(("blue", "sphere", 0.3), ("red", "cube", 0.7)), (False, True, True, False)),
    "colours swapped": (seen(("blue", "cube", 0.3), ("red", "sphere", 0.7)), (False, False, True, False)),
    "wrong colour": (seen(("green", "cube", 0.3), ("blue", "sphere", 0.7)), (False, False, False, False)),
    "one missing": (seen(("red", "cube", 0.3)), (False, False, False, False)),
    "one too many": (
        seen(("red", "cube", 0.3), ("blue", "sphere", 0.7), ("red", "cone", 0.5)),
        (False, False, False, False),
    ),
    "unreadable": (seen(("red", "cube", 0.3), ("blue", "sphere", 0.7), readable=False), (False, False, False, True)),
}


def test_what_counts_as_right():
    for name, (reading, wanted) in TABLE.items():
        assert tuple(score.parts_right(PROMPT, reading).values()) == wanted, name


def test_prompts_are_fresh_but_fixed_and_keep_to_their_pairs():
    one, two = score.prompts_of(40, 1, False, 0), score.prompts_of(40, 2, False, 0)
    assert one == score.prompts_of(40, 1, False, 0) != score.prompts_of(40, 1, False, 1)
    assert {parse(text).toys for text in two} == {2} and all(parse(text).relations for text in two)
    held = {(d.colour, d.kind) for text in score.prompts_of(40, 1, True, 0) for d in parse(text).descriptions}
    assert ("red", "cone") in held and not held & {(d.colour, d.kind) for text in one for d in parse(text).descriptions}


def test_a_prompt_takes_the_words_of_a_scene():
    meanings = [score._about(random_scene(i, toys=2), PROMPT, 2) for i in range(30)]
    kept = [meaning for meaning in meanings if meaning is not None]
    assert 10 < len(kept) < 30
    for meaning in kept:
        a, b = meaning.descriptions
        assert a.kind != b.kind and a.colour != b.colour and meaning.relations == PROMPT.relations


def test_percent():
    assert score.percent([{"x": True}, {"x": False}, {"x": np.False_}]) == {"x": 33.3}
