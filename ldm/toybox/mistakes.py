"""Sentences that are nearly true of a scene, and false: hard negatives for a text tower.

A tower that reads a sentence as a bag of words takes "a red cube and a blue ball" and "a blue cube and a red ball" for
the same. Beside the true sentence it is shown some of these, each said with the same machinery:

    colours, kinds, others      an attribute changes places between two of the toys
    order                       two toys change places around the words of their relation
    relation                    another relation
    attribute                   one attribute of one toy is another one

No sentence names a pair of colour and kind that is held out, or the handset, unless the true one does: a tower that met
them in false sentences only would learn that they are false.
Sources: Yuksekgonul et al., "When and why vision-language models behave like bags-of-words" (arXiv:2210.01936),
section 4, for hard negatives in the batch; the edits are our own.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

from ldm.toybox.captions import VARIED
from ldm.toybox.grammar import ATTRIBUTES, INVERSE, RELATIONS, Description, Meaning, Relation, matches
from ldm.toybox.scene import COLOURS, HANDSET, HELD_OUT, KINDS
from ldm.toybox.sentences import sentence

Edit = tuple[tuple[int, str, Any], ...]  # (description or relation, name of its field or "word", new value)

UNSEEN = frozenset((COLOURS[c], KINDS[k]) for c, k in HELD_OUT)


def hard_captions(
    meaning: Meaning,
    there: Sequence[Description],
    known: Collection[Relation],
    rng: Any,
    k: int,
    paraphrase: float = VARIED.paraphrase,
) -> list[str]:
    """``k`` false sentences near a true ``meaning``; different ones, unless there are fewer than ``k``.

    ``there``, ``known``: the scene's toys and clear relations, as `ldm.toybox.captions` has them. A sentence is false
    however one sees the relations that are not clear. ``rng``: a `numpy.random.Generator`, of which only ``random()``
    is used; ``paraphrase``: as in `ldm.toybox.captions.Wording`. Raises ValueError for a ``meaning`` that is not true.
    """
    if not matches(meaning, there, known):
        raise ValueError(f"hard captions are made from a true meaning, and this is false: {sentence(meaning)!r}")
    granted = _granted(len(there), set(known))
    true = lambda edited: matches(edited, there, granted)
    found = _first(k, meaning, _edits(meaning), true, rng) or _first(k, meaning, [_changes(meaning, False)], true, rng)
    pick = lambda options: options[int(rng.random() * len(options)) if rng.random() < paraphrase else 0]
    return [sentence(found[n % len(found)], pick) for n in range(k)]


def _first(
    k: int, meaning: Meaning, groups: list[list[Edit]], true: Callable[[Meaning], bool], rng: Any
) -> list[Meaning]:
    """The first ``k`` false and fair meanings that come up, the groups of edits taken equally often."""
    found: list[Meaning] = []
    while len(found) < k and groups:
        edits = groups[int(rng.random() * len(groups))]
        edited = _edited(meaning, edits.pop(int(rng.random() * len(edits))))
        groups = [edits for edits in groups if edits]
        if _fair(edited, meaning) and edited not in found and not true(edited):
            found.append(edited)
    return found


def _granted(count: int, known: set[Relation]) -> set[Relation]:
    """All relations between ``count`` toys that are true or not clear."""
    every = {(i, word, j) for i, j in permutations(range(count), 2) for word in RELATIONS}
    return {(i, word, j) for i, word, j in every if (i, INVERSE[word], j) not in known}


def _fair(edited: Meaning, meaning: Meaning) -> bool:
    """Whether nothing gives an edited meaning away: toys that would be counted together, or that are held out."""
    before, after = meaning.descriptions, edited.descriptions
    pairs = {(said.colour, said.kind) for said in after} - {(said.colour, said.kind) for said in before}
    kinds = {said.kind for said in after} - {said.kind for said in before}
    alike = len({replace(said, number=1) for said in after}) < len({replace(said, number=1) for said in before})
    return not alike and not pairs & UNSEEN and KINDS[HANDSET] not in kinds


# ---------------------------------------------------------------------------------------------------------------------
# The edits.


def _edits(meaning: Meaning) -> list[list[Edit]]:
    """What can be changed, in groups that are equally likely."""
    said = meaning.descriptions
    pairs = list(combinations(range(len(said)), 2))
    swaps = {name: [_swap(said, a, b, [name]) for a, b in pairs if _differ(said, a, b, name)] for name in ATTRIBUTES}
    order = [_swap(said, i, j, [*ATTRIBUTES, "number"]) for i, _, j in meaning.relations]
    words = [((n, "word", other),) for n, way in enumerate(meaning.relations) for other in RELATIONS if other != way[1]]
    groups = [swaps["colour"], swaps["kind"], swaps["size"] + swaps["material"], order, words, _changes(meaning, True)]
    return [group for group in groups if group]


def _differ(said: Sequence[Description], a: int, b: int, name: str) -> bool:
    return getattr(said[a], name) != getattr(said[b], name)


def _swap(said: Sequence[Description], a: int, b: int, names: Sequence[str]) -> Edit:
    return tuple((to, name, getattr(said[other], name)) for to, other in ((a, b), (b, a)) for name in names)


def _changes(meaning: Meaning, told: bool) -> list[Edit]:
    """Every other value of every attribute that is said; with ``told`` False, of those that are not."""
    values = [(n, name, getattr(one, name)) for n, one in enumerate(meaning.descriptions) for name in ATTRIBUTES]
    return [((n, a, new),) for n, a, old in values if (old is not None) == told for new in ATTRIBUTES[a] if new != old]


def _edited(meaning: Meaning, edit: Edit) -> Meaning:
    descriptions, relations = list(meaning.descriptions), list(meaning.relations)
    for n, name, value in edit:
        if name == "word":
            relations[n] = (relations[n][0], value, relations[n][2])
        else:
            descriptions[n] = replace(descriptions[n], **{name: value})
    return Meaning(tuple(descriptions), tuple(relations))
