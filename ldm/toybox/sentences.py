"""Saying a meaning of the toybox in a sentence, plainly or in one of many ways.

The forms, for toys A, B, C:

    list        A, B and C
    clauses     A to the left of B, and C behind the B        (a toy of an earlier clause comes back as "the ...")
    shared      A to the left of B and C                      (of both)
    anchored    B with A to its left and C behind it
    aside       B and, to its left, A
    row         A, B and C from left to right
    sides       A on the left, B in the middle and C on the right

Every choice of words goes through one function, ``pick(options)``. The plain sentence is the same code, and takes the
first option each time. `ldm.toybox.parsing.parse` is the inverse, whatever was picked.
Sources: our own grammar.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ldm.toybox.grammar import (
    ANY_KIND,
    ATTRIBUTES,
    INVERSE,
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
    Relation,
    inverse,
    plural,
    referents,
)

Pick = Callable[[Sequence[Any]], Any]  # options -> one of them


def first(options: Sequence[Any]) -> Any:
    """The plain choice."""
    return options[0]


def canonical(meaning: Meaning) -> str:
    """The plain sentence of a meaning; "a red cube to the left of a blue sphere"."""
    return sentence(meaning)


def sentence(meaning: Meaning, pick: Pick = first) -> str:
    """One sentence of a meaning; ``pick`` chooses its form and its words."""
    body = pick(_forms(meaning))(meaning, pick)
    opening = pick(OPENINGS)
    several = body.startswith(NUMBERS[1:])
    return (opening.replace("is", "are") if several and opening.startswith("there") else opening) + body


def phrase(said: Description, pick: Pick = first) -> str:
    """A description with its article or number: "a small red cube", "two boxes"."""
    words = _words(said, pick)
    article = "an" if words[0] in "aeiou" else "a"
    return f"{article if said.number == 1 else NUMBERS[said.number - 1]} {words}"


def _words(said: Description, pick: Pick) -> str:
    adjectives = [getattr(said, name) for name in ATTRIBUTES if name != "kind" and getattr(said, name)]
    noun = pick(SYNONYMS.get(said.kind, (said.kind,)) if said.kind else ANY_KIND)
    chosen = [pick(SYNONYMS.get(word, (word,))) for word in adjectives]
    return " ".join([*chosen, noun if said.number == 1 else plural(noun)])


def _definite(meaning: Meaning, index: int, mentioned: list[int], pick: Pick) -> str:
    """ "the ..." for a toy mentioned before: as short as is clear, or with an ordinal where others are the same."""
    earlier, full = [meaning.descriptions[k] for k in mentioned], meaning.descriptions[index]
    shorter = replace(full, size=None, material=None)
    options = [full, shorter, replace(shorter, colour=None)]
    clear = [said for said in options if [mentioned[k] for k in referents(earlier, said)] == [index]]
    alike = [k for k in mentioned if meaning.descriptions[k] == full]
    ordinal = "" if clear else f"{ORDINALS[alike.index(index)]} "
    said = pick(clear or [full])
    number = "" if said.number == 1 else f"{NUMBERS[said.number - 1]} "
    return f"the {ordinal}{number}{_words(said, pick)}"


def _forms(meaning: Meaning) -> list[Callable[[Meaning, Pick], str]]:
    """The forms that can say a meaning, the plain one first and three times as likely as each other one."""
    if not meaning.relations:
        return [_list]
    spokes = _spokes(meaning)
    forms = [_clauses] * 3 + ([_anchored] if spokes else []) + ([_row, _sides] if _order(meaning) else [])
    one_relation = len({(hub, word) for hub, word, _ in spokes[0]}) == 1 if spokes else False
    return forms + ([_aside] if spokes and len(spokes[0]) == 1 else [_shared] if one_relation else [])


def _join(parts: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def _list(meaning: Meaning, pick: Pick) -> str:
    return _join([phrase(said, pick) for said in pick([meaning.descriptions, meaning.descriptions[::-1]])])


def _clauses(meaning: Meaning, pick: Pick) -> str:
    mentioned: list[int] = []

    def mention(index: int) -> str:
        if index in mentioned:
            return _definite(meaning, index, mentioned, pick)
        mentioned.append(index)
        return phrase(meaning.descriptions[index], pick)

    clauses = []
    for relation in meaning.relations:
        ways = sorted([relation, inverse(relation)], key=lambda way: way[0] in mentioned)  # begin with what is new
        i, word, j = pick(ways)
        clauses.append(f"{mention(i)} {pick(PLACES[word])} {mention(j)}")
    rest = [mention(k) for k in range(len(meaning.descriptions)) if k not in mentioned]
    return ", and ".join(clauses + ([_join(rest)] if rest else []))


def _spokes(meaning: Meaning) -> list[list[Relation]]:
    """For each toy that has one relation to every other toy, and there are no more: these relations, from it."""
    count = len(meaning.descriptions)
    wheels = [[way if way[0] == hub else inverse(way) for way in meaning.relations] for hub in range(count)]
    return [
        wheel
        for hub, wheel in enumerate(wheels)
        if sorted(j for i, _, j in wheel if i == hub) == [k for k in range(count) if k != hub]
        and len(wheel) == count - 1
    ]


def _anchored(meaning: Meaning, pick: Pick) -> str:
    spokes = pick(_spokes(meaning))
    others = [
        f"{phrase(meaning.descriptions[k], pick)} {_at_it(meaning, way, pick)}" for way in spokes for k in way[2:]
    ]
    return f"{phrase(meaning.descriptions[spokes[0][0]], pick)} with {_join(others)}"


def _aside(meaning: Meaning, pick: Pick) -> str:
    (way,) = pick(_spokes(meaning))
    hub, other = (phrase(meaning.descriptions[k], pick) for k in (way[0], way[2]))
    return f"{hub} and, {_at_it(meaning, way, pick)}, {other}"


def _at_it(meaning: Meaning, spoke: Relation, pick: Pick) -> str:
    """Where the far end of a spoke is: "to its left", "behind them"."""
    hub, word, _ = spoke
    place = pick(PRONOUN_PLACES[INVERSE[word]])
    several = meaning.descriptions[hub].number > 1
    return " ".join(PLURAL_PRONOUNS.get(part, part) if several else part for part in place.split())


def _shared(meaning: Meaning, pick: Pick) -> str:
    (spokes,) = _spokes(meaning)
    hub, others = phrase(meaning.descriptions[spokes[0][0]], pick), [meaning.descriptions[k] for _, _, k in spokes]
    word, listed = spokes[0][1], _join([phrase(said, pick) for said in others])
    return pick([f"{hub} {pick(PLACES[word])} {listed}", f"{listed} {pick(PLACES[INVERSE[word]])} {hub}"])


def _order(meaning: Meaning) -> list[tuple[str, list[int]]]:
    """(relation, indices) where all toys stand in a row, each in this relation to the next; read from either end."""
    ways = [way if way[1] in ("left", "front") else inverse(way) for way in meaning.relations]
    following = {i: j for i, _, j in ways}
    row = sorted(set(following) - {j for _, _, j in ways})[:1]
    for _ in ways:
        row += [following[k] for k in row[-1:] if k in following]
    chain = len(ways) == len(meaning.descriptions) - 1 and sorted(row) == list(range(len(meaning.descriptions)))
    word = ways[0][1]
    one_word = {way[1] for way in ways} == {word}
    return [(word, row), (INVERSE[word], row[::-1])] if chain and one_word else []


def _row(meaning: Meaning, pick: Pick) -> str:
    word, row = pick(_order(meaning))
    return f"{_join([phrase(meaning.descriptions[k], pick) for k in row])} {ROWS[word]}"


def _sides(meaning: Meaning, pick: Pick) -> str:
    word, row = pick(_order(meaning))
    places = [SIDES[word], *[MIDDLE] * (len(row) - 2), SIDES[INVERSE[word]]]
    return _join([f"{phrase(meaning.descriptions[k], pick)} {place}" for k, place in zip(row, places, strict=True)])
