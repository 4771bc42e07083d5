"""The toybox's small language: its words, and what a sentence can mean.

A `Meaning` is descriptions of toys and relations between them. `ldm.toybox.sentences` says it, `ldm.toybox.parsing`
reads it, `ldm.toybox.captions` says true things of scenes, and `matches` judges it against what there is: the truth of
a scene, or what the recogniser read in a picture.
Sources: our own grammar, in the manner of CLEVR's questions (Johnson et al. 2017).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import permutations, product

from ldm.toybox.scene import COLOURS, KINDS, MATERIALS, SIZES, SLOTS

Relation = tuple[int, str, int]  # (i, relation, j): i is to the left of j, ...

RELATIONS = ("left", "right", "front", "behind")
INVERSE = {"left": "right", "right": "left", "front": "behind", "behind": "front"}
ATTRIBUTES = {"size": SIZES, "material": MATERIALS, "colour": COLOURS, "kind": KINDS}  # in the order of English

# The words of an attribute; the first one is the plain one. What is not here has the word of its name alone.
SYNONYMS = {
    "sphere": ("sphere", "ball"),
    "cube": ("cube", "block", "box"),
    "cylinder": ("cylinder", "tube"),
    "torus": ("torus", "ring", "donut"),
    "head": ("head", "face", "character head"),
    "handset": ("handset", "phone", "telephone handset"),
    "small": ("small", "little", "tiny"),
    "large": ("large", "big"),
    "matte": ("matte", "dull"),
    "shiny": ("shiny", "glossy"),
    "gray": ("gray", "grey"),
}
ANY_KIND = ("toy", "object")
PLURALS = {"box": "boxes", "torus": "tori"}
NUMBERS = ("one", "two", "three")
ORDINALS = ("first", "second", "third")
OPENINGS = ("", "a photo of ", "a picture of ", "an image of ", "a view of ", "there is ")
PLACES = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "front": ("in front of", "nearer than"),
    "behind": ("behind", "farther than"),
}
PRONOUN_PLACES = {
    "left": ("to its left", "on its left", "to the left of it"),
    "right": ("to its right", "on its right", "to the right of it"),
    "front": ("in front of it",),
    "behind": ("behind it",),
}
PLURAL_PRONOUNS = {"it": "them", "its": "their"}
ROWS = {
    "left": "from left to right",
    "right": "from right to left",
    "front": "from front to back",
    "behind": "from back to front",
}
MIDDLE = "in the middle"
SIDES = {"left": "on the left", "right": "on the right", "front": "in front", "behind": "at the back"}


@dataclass(frozen=True)
class Description:
    """What is said of one toy, or of ``number`` toys alike: words of the scene's tuples, None for what is not said.

    Raises ValueError for a word that is not in its tuple and for a number outside 1 to 3.
    """

    kind: str | None = None
    colour: str | None = None
    size: str | None = None
    material: str | None = None
    number: int = 1

    def __post_init__(self) -> None:
        for name, known in ATTRIBUTES.items():
            if getattr(self, name) not in (None, *known):
                raise ValueError(f"a toy's {name} is one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.number not in range(1, SLOTS + 1):
            raise ValueError(f"a description is of 1 to {SLOTS} toys, got {self.number}")

    def fits(self, other: "Description") -> bool:
        """Whether all that is said here is said there too; the numbers are not compared."""
        return all(getattr(self, name) in (None, getattr(other, name)) for name in ATTRIBUTES)


@dataclass(frozen=True)
class Meaning:
    """What a sentence says: ``descriptions`` in the order of mention, ``relations`` (i, relation, j) between them.

    A relation of a group is one of each of its members. Raises ValueError for other than 1 to 3 toys in all, for a
    relation that is not in ``RELATIONS``, and for one that is not between two of the descriptions.
    """

    descriptions: tuple[Description, ...]
    relations: tuple[Relation, ...] = ()

    def __post_init__(self) -> None:
        known = range(len(self.descriptions))
        if not 1 <= self.toys <= SLOTS:
            raise ValueError(f"the toybox holds 1 to {SLOTS} toys, and this names {self.toys}: leave some out")
        for i, relation, j in self.relations:
            if relation not in RELATIONS or i not in known or j not in known or i == j:
                raise ValueError(
                    f"a relation is (i, one of {', '.join(RELATIONS)}, j) between two of {len(known)} descriptions,"
                    f" got {(i, relation, j)}"
                )

    @property
    def toys(self) -> int:
        """How many toys are named."""
        return sum(description.number for description in self.descriptions)


def described(kind: int, colour: int, size: int, material: int) -> Description:
    """All that can be said of a toy, from its indices into the scene's tuples."""
    return Description(KINDS[kind], COLOURS[colour], SIZES[size], MATERIALS[material])


def matches(meaning: Meaning, toys: Sequence[Description], relations: Collection[Relation]) -> bool:
    """Whether different ones of ``toys`` can stand for all that is named, with what is said of them and between them.

    ``toys`` is one description for each toy that there is; a None in it fits only where nothing is said. More toys
    than are named do no harm: compare ``meaning.toys`` with their number where they should.
    """
    named = [index for index, description in enumerate(meaning.descriptions) for _ in range(description.number)]
    places = [[place for place, index in enumerate(named) if index == k] for k in range(len(meaning.descriptions))]
    wanted = [(a, relation, b) for i, relation, j in meaning.relations for a, b in product(places[i], places[j])]
    known = set(relations)
    return any(
        all(meaning.descriptions[index].fits(toys[toy]) for index, toy in zip(named, chosen, strict=True))
        and all((chosen[a], relation, chosen[b]) in known for a, relation, b in wanted)
        for chosen in permutations(range(len(toys)), len(named))
    )


def referents(mentioned: Sequence[Description], said: Description) -> list[int]:
    """Which of the toys mentioned so far "the ..." can mean: those described just so, or else those it fits."""
    same = [index for index, description in enumerate(mentioned) if description == said]
    near = [index for index, other in enumerate(mentioned) if said.number == other.number and said.fits(other)]
    return same or near


def inverse(relation: Relation) -> Relation:
    """The same, said from the other end."""
    i, word, j = relation
    return j, INVERSE[word], i


def plural(noun: str) -> str:
    """The plural of a noun of the grammar; "telephone handset" -> "telephone handsets"."""
    return PLURALS.get(noun, noun + "s")


def _vocabulary() -> tuple[str, ...]:
    nouns = [noun for kind in KINDS for noun in SYNONYMS.get(kind, (kind,))] + list(ANY_KIND)
    others = [word for known in ATTRIBUTES.values() for name in known for word in SYNONYMS.get(name, (name,))]
    places = [place for table in (PLACES, PRONOUN_PLACES) for options in table.values() for place in options]
    said = [*nouns, *map(plural, nouns), *others, *places, *PLURAL_PRONOUNS.values(), *ROWS.values(), *SIDES.values()]
    return tuple(
        sorted(set(" ".join([*said, MIDDLE, *OPENINGS, *NUMBERS[1:], *ORDINALS, "are the an and with"]).split()))
    )


WORDS = _vocabulary()  # every word that a sentence can have, in small letters; beside them there is only the comma
