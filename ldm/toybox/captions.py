"""Captions: true sentences about a scene, and prompts to score a model with.

A caption names every toy, as fully as a `Wording` has it, groups those that are described alike, and gives relations
only where the camera sees them clearly. All chance comes from ``rng.random()`` of a `numpy.random.Generator`, uniform
numbers in [0, 1), whose stream is the same in every version of NumPy: the same seed gives the same caption.

N toys, in [..., N] slots.
Sources: our own; captions of varied length and detail as in DALL-E 3's report (Betker et al. 2023, section 2).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

import numpy as np

from ldm.toybox import camera
from ldm.toybox.grammar import ATTRIBUTES, RELATIONS, Description, Meaning, Relation, described, matches
from ldm.toybox.scene import COLOURS, HELD_OUT, KINDS, RADIUS, Scene, count
from ldm.toybox.sentences import Pick, canonical, phrase, sentence

LEFT_MARGIN = 0.12
"""Fractions of the picture's width: a toy is to the left of another if its centre is farther left by this or more."""

FRONT_MARGIN = 0.7
"""Toy units: a toy is in front of another if its centre's depth is smaller by this or more."""

CENTRE = 0.8  # radii above the ground: the height of a toy's centre


@dataclass(frozen=True)
class Wording:
    """How much captions say, and how freely: probabilities.

    kind, colour, size, material: that it is said (a toy without its kind is a "toy" or an "object"); relation: that a
    clear relation is said; together: that toys of one kind are said by what they share, "two cubes"; paraphrase: that
    a choice of form or word is free, and not the plain one.
    """

    kind: float = 0.97
    colour: float = 0.9
    size: float = 0.4
    material: float = 0.3
    relation: float = 0.6
    together: float = 0.25
    paraphrase: float = 0.85


VARIED = Wording()
PLAIN = Wording(kind=1, colour=1, size=1, material=1, relation=1, together=0, paraphrase=0)  # no chance is left
SHORT = replace(PLAIN, size=0, material=0)  # as prompts are: "a red cube to the left of a blue sphere"


# ---------------------------------------------------------------------------------------------------------------------
# What is true.


def toys(scene: Scene) -> list[Description]:
    """All that can be said of each toy of a scene."""
    fields = (np.asarray(getattr(scene, name)).tolist() for name in ("kind", "colour", "size", "material"))
    return [described(*indices) for indices in list(zip(*fields, strict=True))[: int(count(scene))]]


def seen_at(scene: Scene) -> tuple[Any, Any]:
    """(columns, depths), each [..., N] float32, of the toys' centres as the camera sees them; for batches too."""
    heights = CENTRE * RADIUS[np.asarray(scene.size)]
    ground = np.asarray(scene.position)
    where, depths = camera.project(scene.camera, np.stack([ground[..., 0], heights, ground[..., 1]], -1))
    return where[..., 0], depths


def compare(columns: Sequence[float], depths: Sequence[float]) -> list[Relation]:
    """All clear relations (i, relation, j) between toys seen at ``columns`` and ``depths`` [N], the clearest first."""
    places = np.stack([np.asarray(columns, np.float64) / LEFT_MARGIN, np.asarray(depths, np.float64) / FRONT_MARGIN])
    found = []
    for i, j in product(range(places.shape[1]), repeat=2):
        across, deep = places[:, j] - places[:, i]  # in margins
        found += [(gap, (i, word, j)) for gap, word in zip((across, -across, deep, -deep), RELATIONS, strict=True)]
    clear = sorted((-gap, relation) for gap, relation in found if gap >= 1)
    return [relation for _, relation in clear]


def relations(scene: Scene) -> list[Relation]:
    """All clear relations between the toys of one scene as its camera sees them, the clearest first.

    (i, "left", j): toy i is to the left of toy j, by ``LEFT_MARGIN``; "front": nearer, by ``FRONT_MARGIN``; "right" and
    "behind" are their inverses. A pair may have two relations, or none.
    """
    columns, depths = (np.asarray(values)[: int(count(scene))] for values in seen_at(scene))
    return compare(columns, depths)


def dominant(scene: Scene, i: int, j: int) -> str | None:
    """The clearest relation of toy ``i`` to toy ``j``; None if there is no clear one."""
    return next((word for a, word, b in relations(scene) if (a, b) == (i, j)), None)


def holds(meaning: Meaning, scene: Scene) -> bool:
    """Whether a meaning is true of a scene. Other toys may be there too: see :func:`ldm.toybox.grammar.matches`."""
    return matches(meaning, toys(scene), relations(scene))


# ---------------------------------------------------------------------------------------------------------------------
# Saying it.


def caption(scene: Scene, rng: Any, wording: Wording = VARIED) -> str:
    """A true sentence about one scene that names all its toys. ``rng``: a `numpy.random.Generator`."""
    return caption_of(toys(scene), relations(scene), rng, wording)


def caption_of(there: Sequence[Description], known: Sequence[Relation], rng: Any, wording: Wording = VARIED) -> str:
    """:func:`caption` from what there is: a full description of each toy, and the relations between them."""
    return sentence(_meaning(there, known, rng, wording), _free(rng, wording.paraphrase))


def describe(scene: Scene, index: int, rng: Any, wording: Wording = PLAIN) -> str:
    """One toy of a scene with its article; "a small shiny red cube"."""
    mask = _mask(rng, wording)
    return phrase(_masked(toys(scene)[index], mask), _free(rng, wording.paraphrase))


def _free(rng: Any, paraphrase: float) -> Pick:
    """Takes any of the options with probability ``paraphrase``, else the first one; one number of ``rng`` a choice."""

    def pick(options: Sequence[Any]) -> Any:
        u = rng.random()
        free = int(u / paraphrase * len(options)) if u < paraphrase else 0
        return options[min(free, len(options) - 1)]  # the quotient can round up to 1

    return pick


def _any(rng: Any, options: Sequence[Any]) -> Any:
    return _free(rng, 1.0)(options)


def _mask(rng: Any, wording: Wording) -> frozenset[str]:
    """The attributes to say."""
    return frozenset(name for name in ATTRIBUTES if rng.random() < getattr(wording, name))


def _masked(toy: Description, mask: Collection[str]) -> Description:
    return replace(toy, **{name: None for name in ATTRIBUTES if name not in mask})


def _shared(toy: Description, alike: Sequence[Description]) -> Description:
    """What is true of all of ``alike``."""
    return _masked(toy, [name for name in ATTRIBUTES if len({getattr(other, name) for other in alike}) == 1])


def _meaning(there: Sequence[Description], known: Sequence[Relation], rng: Any, wording: Wording) -> Meaning:
    masks = [_mask(rng, wording) for _ in there]
    if rng.random() < wording.together:
        kinds = [toy.kind for toy in there]
        masks = [masks[kinds.index(kind)] for kind in kinds]
        there = [_shared(toy, [other for other in there if other.kind == toy.kind]) for toy in there]
    said = [_masked(toy, mask) for toy, mask in zip(there, masks, strict=True)]
    groups = {description: [i for i, other in enumerate(said) if other == description] for description in said}
    members = list(groups.values())
    chosen = _choose(members, known, rng, wording) if rng.random() < wording.relation else []
    return Meaning(tuple(replace(said[group[0]], number=len(group)) for group in members), tuple(chosen))


def _choose(members: list[list[int]], known: Sequence[Relation], rng: Any, wording: Wording) -> list[Relation]:
    """Relations that hold between all of two groups, enough of them to place each group by one other, if they can."""
    pick = _free(rng, wording.paraphrase)
    clear: dict[tuple[int, int], list[Relation]] = {}
    for a, b in combinations(range(len(members)), 2):
        pairs = list(product(members[a], members[b]))
        words = [word for i, word, j in known if (i, j) == pairs[0]]
        clear[a, b] = [(a, word, b) for word in words if all((i, word, j) in known for i, j in pairs)]
    edges = [pair for pair, options in clear.items() if options]
    trees = list(combinations(edges, min(len(edges), len(members) - 1)))
    tree = pick(sorted(trees, key=lambda tree: tree != ((0, 1), (1, 2)))) if trees else ()
    return [pick(clear[edge]) for edge in tree]


# ---------------------------------------------------------------------------------------------------------------------
# Prompts without a scene.


def pairs(held_out: bool = False) -> list[tuple[str, str]]:
    """(colour, kind) in words: all that are trained on, or those held out. The handset is in neither."""
    known = product(enumerate(COLOURS), enumerate(KINDS[:-1]))
    return [(colour, kind) for (c, colour), (k, kind) in known if ((c, k) in HELD_OUT) == held_out]


def prompts(held_out: bool = False) -> list[str]:
    """The plain prompt of one toy, "a red cube", for each of :func:`pairs`."""
    return [phrase(Description(kind, colour)) for colour, kind in pairs(held_out)]


def random_prompt(rng: Any, toys: int = 1, held_out: bool = False) -> str:
    """A plain prompt of one toy, or of two of different kinds and colours with a relation.

    With ``held_out`` one toy is a held-out pair of colour and kind, else none is. Raises ValueError for other ``toys``.
    """
    if toys not in (1, 2):
        raise ValueError(f"a prompt names 1 or 2 toys, got {toys}")
    colour, kind = _any(rng, pairs(held_out))
    others = [other for other in pairs() if other[0] != colour and other[1] != kind]
    named = [(colour, kind), *[_any(rng, others) for _ in range(toys - 1)]][:: _any(rng, (1, -1))]
    between = [(0, _any(rng, RELATIONS), 1)] if toys == 2 else []
    return canonical(Meaning(tuple(Description(kind, colour) for colour, kind in named), tuple(between)))
