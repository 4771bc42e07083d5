"""Reading a sentence of the toybox: text -> Meaning, the inverse of `ldm.toybox.sentences`.

It reads from left to right, and knows the toys mentioned so far. After a toy there may come

    a place and toys       "to the left of", "behind": of every toy since the last clause to each of these toys
    a place with "it"      "with a ball behind it": to the toy said before the ball; "behind them": to its whole list
    a side                 "on the left": of every toy since the last clause, to those of the other sides
    a row                  "from left to right": of every toy since the last clause to the next one
    a comma, "and", "with" and one more toy

Besides what the grammar says it knows some words that people say: numbers as digits, "is", no article, "the" at once.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from ldm.toybox.grammar import (
    ANY_KIND,
    ATTRIBUTES,
    MIDDLE,
    NUMBERS,
    OPENINGS,
    ORDINALS,
    PLACES,
    PLURAL_PRONOUNS,
    PRONOUN_PLACES,
    ROWS,
    SIDES,
    SYNONYMS,
    Description,
    Meaning,
    plural,
    referents,
)

Phrases = dict[tuple[str, ...], Any]  # words in a row -> what they mean

ALSO_PLACES = {"left": ("at the left of", "on the left side of"), "right": ("at the right of", "on the right side of")}
ALSO_SIDES = {
    "left": ("at the left",),
    "right": ("at the right",),
    "front": ("at the front",),
    "behind": ("in the back",),
}
ALSO_OPENINGS = ("photo of", "picture of", "image of", "a rendering of", "there are", "there 's", "this is", "here is")
COUNTS = {"a": 1, "an": 1, "another": 1, "1": 1, "2": 2, "3": 3} | {
    word: index + 1 for index, word in enumerate(NUMBERS)
}
BETWEEN = (",", "and", "with")
LINKS = ("is", "are", "that", "which", "standing")
EXAMPLE = 'try "a red cube to the left of a blue sphere"'


def _spell(table: Mapping[Any, Sequence[str]]) -> Phrases:
    """{meaning: phrases} turned round, by the words of a phrase."""
    return {tuple(phrase.split()): meaning for meaning, phrases in table.items() for phrase in phrases}


def _nouns() -> Phrases:
    singular = {kind: SYNONYMS.get(kind, (kind,)) for kind in ATTRIBUTES["kind"]} | {None: (*ANY_KIND, "thing")}
    several = {kind: tuple(map(plural, words)) for kind, words in singular.items()}
    several["torus"] += ("toruses",)
    return {words: (kind, False) for words, kind in _spell(singular).items()} | {
        words: (kind, True) for words, kind in _spell(several).items()
    }


def _events() -> Phrases:
    """What can come after a toy: {words: (what it is, its relation)}."""
    of_them = {word: [_of_several(place) for place in places] for word, places in PRONOUN_PLACES.items()}
    tables = {"of": [PLACES, ALSO_PLACES], "it": [PRONOUN_PLACES], "them": [of_them]}
    tables |= {"side": [_each(SIDES), ALSO_SIDES, {MIDDLE: (MIDDLE, "in the center")}], "row": [_each(ROWS)]}
    read = [(what, _spell(table)) for what, group in tables.items() for table in group]
    return {words: (what, word) for what, table in read for words, word in table.items()}


def _each(table: Mapping[str, str]) -> dict[str, tuple[str]]:
    return {word: (phrase,) for word, phrase in table.items()}


def _of_several(place: str) -> str:
    return " ".join(PLURAL_PRONOUNS.get(word, word) for word in place.split())


NOUNS = _nouns()
EVENTS = _events()
STARTS = _spell({"": [*filter(None, OPENINGS), *ALSO_OPENINGS]})
ADJECTIVES = {
    word: (field, value)
    for field in ("size", "material", "colour")
    for value in ATTRIBUTES[field]
    for word in SYNONYMS.get(value, (value,))
}


def parse(text: str) -> Meaning:
    """The meaning of a sentence, its descriptions in the order of mention.

    Takes every sentence of the grammar, in any letters, with extra spaces and a full stop. Raises ValueError, in one
    sentence that names the word or the place, for a text that it does not understand.
    """
    reader = _Reader(re.findall(r"[\w'-]+|[^\w\s]", re.sub(r"\.\s*$", "", text.lower()).replace("'s", " 's")))
    reader.sentence()
    return Meaning(tuple(reader.mentioned), tuple(reader.relations))


def _find(words: Sequence[str], at: int, table: Phrases) -> tuple[Any, int]:
    """(meaning, where it ends) of the longest phrase of ``table`` at a place; (None, ``at``) if there is none."""
    for length in range(max(map(len, table)), 0, -1):
        found = tuple(words[at : at + length])
        if found in table:
            return table[found], at + length
    return None, at


class _Reader:
    """Where the reading stands: the words, the place, and what was understood so far."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words, self.at = words, 0
        self.mentioned: list[Description] = []
        self.relations: list[tuple[int, str, int]] = []
        self.subjects: list[int] = []  # of this clause, as long as no place was said of them
        self.anchors: list[int] = []  # what "it" and "them" are
        self.sides: list[tuple[str, int]] = []

    def sentence(self) -> None:
        _, self.at = _find(self.words, 0, STARTS)
        self.subjects = self.anchors = [self.toy()]
        while self.at < len(self.words):
            event, after = self.event(self.at)
            if event and event[0] not in ("it", "them"):
                self.at = after
                {"of": self.place, "side": self.side, "row": self.row}[event[0]](event[1])
            elif self.words[self.at] in BETWEEN:
                self.more()
            else:
                raise ValueError(f"{self.here()} stands where a place, a comma or the end is expected: {EXAMPLE}")
        self.settle_sides()

    # What can come after a toy.

    def place(self, word: str) -> None:
        subjects, objects = self.subjects or self.anchors, [self.toy()]
        while self.word(self.at) == "and" and not self.begins_clause(self.at + 1):
            self.at += 1
            objects.append(self.toy())
        self.relate(subjects, word, objects)
        self.subjects, self.anchors = [], objects

    def side(self, word: str) -> None:
        self.sides += [(word, index) for index in self.subjects]
        self.subjects = []

    def row(self, word: str) -> None:
        if len(self.subjects) < 2:
            raise ValueError(f'"{ROWS[word]}" needs two toys or three before it: try "a cube and a cone {ROWS[word]}"')
        for i, j in pairwise(self.subjects):
            self.relate([i], word, [j])
        self.subjects = []

    def more(self) -> None:
        """Commas and "and", then a toy that has its place with "it" before or behind it, or that begins a clause."""
        self.skip(BETWEEN)
        before = self.place_of_it(self.anchors)
        self.skip((",",))
        toy = self.toy()
        found = before or self.place_of_it(self.anchors)
        if found:
            self.relate([toy], *found)
            self.subjects = []
        else:
            self.subjects = [*self.subjects, toy]
            self.anchors = self.subjects

    def place_of_it(self, anchors: list[int]) -> tuple[str, list[int]] | None:
        """The place "behind it", if it comes next: (relation, the toys that are meant)."""
        event, after = self.event(self.at)
        if not event or event[0] not in ("it", "them"):
            return None
        self.at = after
        return event[1], anchors if event[0] == "them" else anchors[-1:]

    def settle_sides(self) -> None:
        """Relations between those on the left, in the middle and on the right, or at the front and at the back."""
        said = {word for word, _ in self.sides}
        axis = ("left", MIDDLE, "right") if said & {"left", "right"} else ("front", MIDDLE, "behind")
        ranks = [[index for word, index in self.sides if word == side] for side in axis if side in said]
        if said and (len(ranks) < 2 or not said <= set(axis)):
            words = ", ".join(SIDES.get(word, word) for word in sorted(said))
            raise ValueError(f'"{words}" does not say of which toy: {EXAMPLE}')
        for near, far in pairwise(ranks):
            self.relate(near, axis[0], far)

    # Toys.

    def toy(self) -> int:
        """Reads a toy; the index of its description, an old one for "the ..." of a toy mentioned before."""
        said, definite, ordinal, self.at = self.phrase(self.at)
        old = referents(self.mentioned, said) if definite else []
        if ordinal is not None:
            old = old[ordinal : ordinal + 1]
        if len(old) > 1 or (ordinal is not None and not old):
            raise ValueError(f"it is not clear which toy is meant before {self.here()}: say more of its colour or size")
        if not old:
            self.mentioned.append(said)
        return old[0] if old else len(self.mentioned) - 1

    def phrase(self, at: int) -> tuple[Description, bool, int | None, int]:
        """(what is said, whether with "the", its ordinal, where it ends) of the toy at a place, which is not kept."""
        definite = self.word(at) == "the"
        ordinal = ORDINALS.index(self.word(at + definite)) if self.word(at + definite) in ORDINALS else None
        at += definite + (ordinal is not None)
        number = COUNTS.get(self.word(at))
        at += number is not None
        said: dict[str, str] = {}
        while self.word(at) in ADJECTIVES:
            field, value = ADJECTIVES[self.word(at)]
            if field in said:
                raise ValueError(f"one toy has one {field}, and {self.here(at)} is a second one: leave one out")
            said[field] = value
            at += 1
        noun, after = _find(self.words, at, NOUNS)
        if not noun:
            raise ValueError(f"{self.here(at)} stands where a toy's word is expected, as cube or red: {EXAMPLE}")
        if noun[1] and number is None:
            raise ValueError(f'{self.here(at)} are how many: say "two" or "three"')
        return replace(Description(kind=noun[0], number=number or 1), **said), definite, ordinal, after

    def begins_clause(self, at: int) -> bool:
        """Whether what comes at a place is not one more toy of a list: "and to its left", "and a cone behind"."""
        return bool(self.event(at)[0]) or bool(self.event(self.phrase(at)[-1])[0])

    # Words.

    def word(self, at: int) -> str:
        return self.words[at] if at < len(self.words) else ""

    def event(self, at: int) -> tuple[Any, int]:
        while self.word(at) in LINKS:
            at += 1
        return _find(self.words, at, EVENTS)

    def relate(self, near: Sequence[int], word: str, far: Sequence[int]) -> None:
        if set(near) & set(far):
            raise ValueError(f"a toy has no place beside itself, as it would before {self.here()}: {EXAMPLE}")
        self.relations += [(i, word, j) for i in near for j in far]

    def skip(self, known: Sequence[str]) -> None:
        while self.word(self.at) in known:
            self.at += 1

    def here(self, at: int | None = None) -> str:
        at = self.at if at is None else at
        return f'"{self.words[at]}" (word {at + 1})' if at < len(self.words) else "the end of the text"
