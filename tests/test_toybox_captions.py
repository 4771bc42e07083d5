"""Laws of the toybox's captions and prompts: what they say is true, and names what is there."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ldm.toybox import captions
from ldm.toybox.captions import PLAIN, SHORT, VARIED, Wording, caption, caption_of, holds, relations
from ldm.toybox.grammar import ATTRIBUTES, INVERSE, RELATIONS, WORDS, Meaning, inverse, matches
from ldm.toybox.parsing import parse
from ldm.toybox.scene import COLOURS, HELD_OUT, KINDS, MATERIALS, SIZES, Toy, scene, stack, view
from ldm.toybox.sentences import canonical

WORDINGS = {
    "varied": VARIED,
    "plain": PLAIN,
    "short": SHORT,
    "terse": Wording(kind=0.4, colour=0.3, size=0.1, material=0.1, relation=1, together=0.5, paraphrase=1),
    "wordy": Wording(kind=1, colour=1, size=0.9, material=0.9, relation=0.9, paraphrase=1),
}


# ---- scenes to try ----


def random_scene(rng: np.random.Generator, kinds: int = len(KINDS), azimuth: float | None = None):
    """One to three toys that do not overlap; few kinds make alike toys common."""
    places: list[np.ndarray] = []
    wanted = rng.integers(1, 4)
    while len(places) < wanted:
        place = rng.uniform(-2.5, 2.5, 2)
        if all(np.hypot(*(place - other)) > 2 for other in places):
            places.append(place)
    words = lambda known: known[rng.integers(len(known))]
    made = [
        Toy(words(KINDS[:kinds]), words(COLOURS[: kinds + 1]), words(SIZES), words(MATERIALS), *place)
        for place in places
    ]
    azimuth = rng.uniform(0, 360) if azimuth is None else azimuth
    return scene(made, camera=view(azimuth, rng.uniform(15, 60), rng.uniform(8, 13)))


def random_scenes(count: int, seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    return [random_scene(rng, kinds=(len(KINDS), 2)[k % 2]) for k in range(count)]


SCENES = random_scenes(2000)
COLUMNS, DEPTHS = (np.asarray(values) for values in captions.seen_at(stack(SCENES)))
TOYS = [captions.toys(one) for one in SCENES]
KNOWN = [captions.compare(c[: len(t)], d[: len(t)]) for c, d, t in zip(COLUMNS, DEPTHS, TOYS, strict=True)]


# ---- captions are true ----


@pytest.mark.parametrize("name", WORDINGS)
def test_captions_are_read_as_a_truth_that_names_every_toy(name: str):
    rng = np.random.default_rng(1)
    for there, known in zip(TOYS, KNOWN, strict=True):
        text = caption_of(there, known, rng, WORDINGS[name])
        meaning = parse(text)
        assert meaning.toys == len(there) and matches(meaning, there, known), text
        assert set(text.replace(",", "").split()) <= set(WORDS), text


def test_captions_of_a_scene_hold_in_it():
    rng = np.random.default_rng(2)
    for one in SCENES[:100]:
        text = caption(one, rng)
        assert holds(parse(text), one), text


def test_relations_of_one_scene_are_those_of_a_batch():
    assert [relations(one) for one in SCENES[:50]] == KNOWN[:50]


def test_plain_captions_say_all_and_are_canonical():
    rng = np.random.default_rng(3)
    for there, known in zip(TOYS[:500], KNOWN, strict=False):
        text = caption_of(there, known, rng, PLAIN)
        meaning = parse(text)
        said = [replace(d, number=1) for d in meaning.descriptions for _ in range(d.number)]
        assert canonical(meaning) == text and sorted(map(str, said)) == sorted(map(str, there))
        assert bool(meaning.relations) == bool(known) or len(meaning.descriptions) < len(there)


def test_a_wrong_attribute_is_not_true():
    rng = np.random.default_rng(4)
    for there, known in zip(TOYS[:300], KNOWN, strict=False):
        for name, words in ATTRIBUTES.items():
            meaning = parse(caption_of(there, known, rng, PLAIN))
            head, *rest = meaning.descriptions
            other = replace(head, **{name: words[words.index(getattr(head, name)) - 1]})
            assert not matches(replace(meaning, descriptions=(other, *rest)), there, known)


def test_a_relation_that_is_not_clear_is_not_true():
    rng = np.random.default_rng(5)
    wrong = 0
    for there, known in zip(TOYS[:300], KNOWN, strict=False):
        meaning = parse(caption_of(there, known, rng, PLAIN))
        for i, j in permutations(range(len(there)) if len(set(there)) == len(there) else (), 2):
            for word in set(RELATIONS) - {w for a, w, b in known if (a, b) == (i, j)}:
                turned = Meaning(tuple(there), ((i, word, j),))
                wrong += 1
                assert not matches(turned, there, known)
        for way in meaning.relations:
            i, word, j = way
            assert not matches(replace(meaning, relations=((i, INVERSE[word], j),)), there, known)
    assert wrong > 500


def test_one_seed_one_caption_and_only_random_is_asked():
    class Uniform:
        def __init__(self, seed: int):
            self.random = np.random.default_rng(seed).random

    for k, one in enumerate(SCENES[:20]):
        assert caption(one, np.random.default_rng(k)) == caption(one, Uniform(k))


def test_captions_vary():
    rng = np.random.default_rng(6)
    clear = next(k for k, known in enumerate(KNOWN) if len(TOYS[k]) == 2 and len(known) == 4)
    assert len({caption_of(TOYS[clear], KNOWN[clear], rng) for _ in range(1000)}) > 700
    said = " ".join(caption_of(there, known, rng) for there, known in zip(TOYS, KNOWN, strict=True)).split()
    unsaid = set(WORDS) - {word.strip(",") for word in said}
    assert len(unsaid) < 20, unsaid  # rare plurals, and the ordinals of toys described alike, which captions group


def test_counts_are_said():
    cubes = [Toy("cube", "red", x=-2), Toy("cube", "red", x=2), Toy("torus", "orange", z=-3, material="shiny")]
    rng = np.random.default_rng(7)
    assert caption(scene(cubes[:2]), rng, SHORT) == "two red cubes"
    assert caption(scene(cubes), rng, SHORT) == "two red cubes in front of an orange torus"
    assert caption(scene([*cubes[:2], replace(cubes[0], z=3, x=0)]), rng, SHORT) == "three red cubes"
    shared = replace(SHORT, together=1)
    assert caption(scene([cubes[0], replace(cubes[1], colour="blue")]), rng, shared) == "two cubes"


def test_a_toy_is_described():
    one = scene([Toy("head", "orange", "small", "matte"), Toy("cube", "gray", x=3)])
    rng = np.random.default_rng(8)
    assert captions.describe(one, 0, rng) == "a small matte orange head"
    assert captions.describe(one, 0, rng, SHORT) == "an orange head"
    assert captions.describe(one, 1, rng, replace(SHORT, kind=0, colour=0)) == "a toy"


# ---- relations, as the camera sees them ----


def test_relations_come_with_their_inverses_the_clearest_first():
    for one, there, known, depths in zip(SCENES, TOYS, KNOWN, DEPTHS, strict=True):
        assert {inverse(way) for way in known} == set(known)
        assert all(depths[i] < depths[j] for i, word, j in known if word == "front")
        for i, j in permutations(range(len(there)), 2) if one is SCENES[0] else ():
            assert captions.dominant(one, i, j) == next((w for a, w, b in known if (a, b) == (i, j)), None)


def test_margins():
    left, front = captions.LEFT_MARGIN, captions.FRONT_MARGIN
    assert captions.compare([0.4, 0.4 + 0.99 * left], [9, 9 + 0.99 * front]) == []
    assert captions.compare([0.4, 0.4 + 1.01 * left], [9, 9]) == [(0, "left", 1), (1, "right", 0)]
    assert captions.compare([0.4, 0.4 + 1.5 * left], [9 + 2 * front, 9])[::2] == [(0, "behind", 1), (0, "left", 1)]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.floats(0, 360), st.floats(15, 60), st.floats(-2.5, 2.5), st.floats(-2.5, 2.5))
def test_from_the_other_side_all_is_turned_round(azimuth, elevation, x, z):
    """For two toys of one size, opposite each other: perspective is then the same from both sides."""
    assume(np.hypot(x, z) > 1)
    opposite = [Toy("cube", x=x, z=z), Toy("cone", x=-x, z=-z)]
    here, there = (scene(opposite, camera=view(azimuth + turn, elevation)) for turn in (0, 180))
    gaps = np.abs([values[1] - values[0] for values in captions.seen_at(here)])
    assume((np.abs(gaps - [captions.LEFT_MARGIN, captions.FRONT_MARGIN]) > 1e-3).all())
    assert {(i, INVERSE[word], j) for i, word, j in relations(here)} == set(relations(there))


def test_left_and_front_are_the_pictures_own():
    row = [Toy("cube", x=-2), Toy("cone", x=2), Toy("sphere", z=3)]
    one = scene(row, camera=view(0, 30, 12))
    assert {(0, "left", 1), (2, "front", 0), (2, "front", 1), (1, "right", 0)} <= set(relations(one))
    turned = scene(row, camera=view(90, 30, 12))  # from +x: what was on the right is in front now
    assert {(1, "front", 0), (2, "left", 0), (2, "left", 1)} <= set(relations(turned))


# ---- prompts ----


def held_out(prompt: str) -> list[bool]:
    return [(COLOURS.index(d.colour), KINDS.index(d.kind)) in HELD_OUT for d in parse(prompt).descriptions]


def test_prompts_of_one_toy_are_each_pair_once():
    seen, unseen = captions.prompts(), captions.prompts(held_out=True)
    assert len({*seen, *unseen}) == len(seen) + len(unseen) == len(COLOURS) * (len(KINDS) - 1)
    assert len(unseen) == len(HELD_OUT) and all(all(held_out(prompt)) for prompt in unseen)
    assert not any(any(held_out(prompt)) for prompt in seen)


@pytest.mark.parametrize("toys", [1, 2])
@pytest.mark.parametrize("unseen", [False, True])
def test_random_prompts(toys: int, unseen: bool):
    draw = lambda seed: [captions.random_prompt(rng, toys, unseen) for rng in [np.random.default_rng(seed)] * 300]
    drawn = draw(0)
    assert drawn == draw(0) != draw(1)
    for prompt in drawn:
        meaning = parse(prompt)
        assert canonical(meaning) == prompt and len(meaning.relations) == toys - 1
        assert len({d.kind for d in meaning.descriptions}) == len({d.colour for d in meaning.descriptions}) == toys
        assert sum(held_out(prompt)) == unseen
    assert {word for prompt in drawn for _, word, _ in parse(prompt).relations} == set(RELATIONS if toys == 2 else ())


def test_a_prompt_of_three_toys_is_refused():
    with pytest.raises(ValueError, match="1 or 2 toys, got 3"):
        captions.random_prompt(np.random.default_rng(0), toys=3)
