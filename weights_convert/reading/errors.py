"""The one error of this package, and how to speak of things that a stranger's file contains.

A message says what is wrong, where, and what was expected. Values out of a file are never printed whole: a hostile
file may hold a name of 60 MB, or an object nested a million deep.
"""


class CheckpointError(ValueError):
    """A checkpoint cannot be read. One sentence: the file, the place in it, what was expected, what to try."""


def quoted(text: str, most: int = 80) -> str:
    """``text`` in quotes, with control characters escaped, cut after ``most`` characters."""
    return repr(text if len(text) <= most else text[:most] + "…")


def kind(value: object) -> str:
    """What sort of thing ``value`` is, without looking inside."""
    return "None" if value is None else f"a value of type {type(value).__name__}"
