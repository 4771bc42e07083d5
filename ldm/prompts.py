r"""An optional syntax for prompts, the one of the Stable Diffusion web UI: weights, BREAK, long texts, change by step.

Nothing here is in force unless a caller asks for it: the tokenizer itself reads brackets as text.

1. Weights. ``(text)`` multiplies the weight of its tokens by 1.1, ``(text:1.3)`` by 1.3, ``[text]`` by 1/1.1. Brackets
   nest and their factors multiply. A written weight, and each product, must be between -100 and 100. What follows the
   last colon of round brackets is a weight if it looks like a number, so ``(16:9)`` is a weight of 9 and ``(a:b)`` is
   text. ``\(  \)  \[  \]  \:  \\`` are literal characters; any other backslash stands for itself. Neighbours of equal
   weight are one part, and each part is tokenized alone: a word that changes its weight half way is two words.
2. ``BREAK``, a whole word in capitals, inside of brackets or not, ends a chunk: the rest of the chunk is padding. At
   the end of the text it adds no chunk.
3. Length. A text of more than L - 2 tokens (75 for CLIP) is cut into chunks of L - 2 tokens, each with its own begin
   and end token and padding. The cut only counts tokens, so it may split a word; the web UI may go back to a comma. An
   empty text is one chunk of no tokens. The text tower reads each chunk alone, the U-Net the states of all in a row.
4. Scheduling. Of n steps ``[a:b:0.5]`` reads as a before step k (counted from 0) and as b from there on; ``[b:0.5]`` is
   nothing and then b; ``[a::0.5]`` is a and then nothing. A number below 1 is a fraction of the steps, k = n * number
   without its decimals; from 1 on it is k itself and must be whole, so 1.0 is one step. a and b may hold brackets of
   any kind. ``[a:b]``, without a number at the end, is text of weight 1/1.1.

Alternation ``[a|b]`` and ``AND`` are no part of this: they are read as text. Mistakes are a ValueError of one sentence,
which counts characters from 1.

Shapes: B texts, K chunks of a text, L tokens of a chunk, S = K L tokens of a text, E width of a state.
Source: the web UI's manual, page "Features": "Attention/emphasis", "Prompt editing", "Infinite prompt length".
"""

import itertools
import re
from decimal import Decimal
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from ldm.tokenizer import Tokenizer

LARGEST, RANGE = 100.0, "between -100 and 100"  # of a weight
NEAR_ZERO = 1e-3  # a mean this small beside the mean magnitude says nothing: restoring it could scale by anything
CLOSING = {"(": ")", "[": "]"}
OPENING = {close: open for open, close in CLOSING.items()}
MARK = re.compile(r"\\[\\()\[\]:]|[()\[\]:]")
BREAK = re.compile(r"\bBREAK\b")
LIKE_NUMBER = re.compile(r"[+-]?(nan|inf(inity)?)|[.,+-]*\d[\d.,+-]*(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)", re.ASCII)


class Stage(NamedTuple):
    """The text that is in force from step ``first`` on, counted from 0. Weights are still written in it."""

    first: int
    text: str


class Part(NamedTuple):
    """A run of text of one weight, with no syntax left in it."""

    text: str
    weight: float


class Chunks(NamedTuple):
    """The rows of one text: ``ids`` int32 [K, L] and ``weights`` float32 [K, L], 1 for begin, end and padding."""

    ids: np.ndarray
    weights: np.ndarray


class _Group(NamedTuple):
    """A pair of brackets: their positions in the text, and those of the colons directly inside of them."""

    open: int
    close: int
    colons: list[int]


def _error(text: str, position: int, what: str, expected: str) -> ValueError:
    near = repr(text[max(0, position - 12) : position + 13]).replace("\\\\", "\\")
    return ValueError(f"{what} at character {position + 1}, near {near}, {expected}")


def _groups(text: str) -> list[_Group]:
    """Every pair of brackets in the order in which they close, so that an inner pair comes before those around it."""
    found, stack = [], []
    for mark in MARK.finditer(text):
        at, sign = mark.start(), mark[0]
        hint = f"balance the brackets, or write \\{sign} for a literal bracket"
        if sign in CLOSING:
            stack.append(_Group(at, -1, []))
        elif sign == ":" and stack:
            stack[-1].colons.append(at)
        elif sign in OPENING:
            if not stack:
                raise _error(text, at, f"'{sign}'", f"has no '{OPENING[sign]}' before it: {hint}")
            wanted = CLOSING[text[stack[-1].open]]
            if sign != wanted:
                where = f"the '{OPENING[wanted]}' of character {stack[-1].open + 1}"
                raise _error(text, at, f"'{sign}'", f"stands where {where} expects its '{wanted}': {hint}")
            found.append(stack.pop()._replace(close=at))
    if stack:
        at, sign = stack[-1].open, text[stack[-1].open]
        hint = f"close it, or write \\{sign} for a literal bracket"
        raise _error(text, at, f"'{sign}'", f"has no '{CLOSING[sign]}' after it: {hint}")
    return found


def _number(text: str, group: _Group) -> str:
    """What follows the last colon of a pair of brackets if it looks like a number, right or wrong; else ''."""
    last = text[group.colons[-1] + 1 : group.close].strip() if group.colons else ""
    return last if LIKE_NUMBER.fullmatch(last) else ""


def _schedules(text: str, group: _Group) -> bool:
    return text[group.open] == "[" and bool(_number(text, group))


def _switch(text: str, group: _Group, steps: int) -> int:
    """The step, 0..steps, from which the second text of a scheduling group is read. Raises ValueError."""
    written = _number(text, group)
    value = float(written) if NUMBER.fullmatch(written) else -1.0
    if value < 0 or (value >= 1 and value % 1):  # the remainder of infinity is NaN, which is true
        rule = "must be a fraction of the steps below 1 or a whole number of steps; a weight is written (text:1.3)"
        raise _error(text, group.colons[-1], f"the number '{written[:30]}'", rule)
    if len(group.colons) > 2:
        rule = "expects one or two texts before its number, as in [a:b:0.5]: write \\: for a literal colon"
        raise _error(text, group.open, "'['", rule)
    return int(Decimal(written) * steps) if value < 1 else int(min(value, steps))


def _at_step(text: str, switches: list[tuple[_Group, int]], step: int) -> str:
    kept = np.ones(len(text), bool)
    for (open, close, colons), switch in switches:
        edges = [open] * (3 - len(colons)) + colons  # the first text lies between edges 0 and 1, the second 1 and 2
        first, last = edges[1:] if step >= switch else edges[:2]
        kept[open : first + 1] = False
        kept[last : close + 1] = False
    return "".join(itertools.compress(text, kept))


def stages(text: str, steps: int) -> list[Stage]:
    """The texts of a sampling of ``steps`` steps, by rule 4.

    The first stage begins at step 0, each later one at a later step below ``steps``, with another text. Raises
    ValueError for unbalanced brackets, a wrong number of scheduling, and no steps.
    """
    if steps < 1:
        raise ValueError(f"a schedule needs at least 1 step, got {steps}")
    switches = [(group, _switch(text, group, steps)) for group in _groups(text) if _schedules(text, group)]
    firsts = sorted({0, *(switch for _, switch in switches if switch < steps)})
    found = [Stage(first, _at_step(text, switches, first)) for first in firsts]
    return found[:1] + [after for before, after in itertools.pairwise(found) if after.text != before.text]


def _factor(text: str, group: _Group) -> tuple[float, int]:
    """The factor of a pair of brackets, and where the text inside of it ends. Raises ValueError."""
    if _schedules(text, group):
        raise _error(text, group.open, "'['", "begins scheduling by step: take the stages of the text first")
    if not (written := _number(text, group)):
        return (1.1 if text[group.open] == "(" else 1 / 1.1), group.close
    if not NUMBER.fullmatch(written) or abs(float(written)) > LARGEST:
        rule = f"must be a finite number {RANGE}, such as 1.3: write \\: for a literal colon"
        raise _error(text, group.colons[-1], f"the weight '{written[:30]}'", rule)
    return float(written), group.colons[-1]


def weighted(text: str) -> list[list[Part]]:
    """The sections of a text between BREAKs, each a list of parts, by rules 1 and 2.

    Neighbouring parts differ in weight. A section of no text is one empty part of weight 1. White space is kept as it
    is; the tokenizer overlooks it. Raises ValueError for unbalanced brackets, a wrong weight, and scheduling.
    """
    weights, kept = np.ones(len(text)), np.ones(len(text), bool)
    with np.errstate(over="ignore", invalid="ignore"):  # the products are checked below
        for group in _groups(text):
            factor, end = _factor(text, group)
            weights[group.open : group.close] *= factor
            kept[group.open] = False
            kept[end : group.close + 1] = False
    kept[[mark.start() for mark in MARK.finditer(text) if len(mark[0]) == 2]] = False
    for at in np.flatnonzero(kept & ~(np.abs(weights) <= LARGEST))[:1]:
        rule = f"multiply to {weights[at]:g}, but a weight must be {RANGE}: use fewer or smaller ones"
        raise _error(text, int(at), "the brackets around the text", rule)
    breaks = [mark.span() for mark in BREAK.finditer(text)]
    starts, ends = [0, *(end for _, end in breaks)], [*(start for start, _ in breaks), len(text)]
    return [_parts(text, weights, kept, start, end) for start, end in zip(starts, ends, strict=True)]


def _parts(text: str, weights: np.ndarray, kept: np.ndarray, start: int, end: int) -> list[Part]:
    places = start + np.flatnonzero(kept[start:end])
    runs = itertools.groupby(places.tolist(), key=weights.__getitem__)
    return [Part("".join(text[i] for i in run), float(weight)) for weight, run in runs] or [Part("", 1.0)]


def chunks(tokenizer: Tokenizer, text: str, length: int | None = None) -> Chunks:
    """The rows that the text tower reads for a text without scheduling, by rules 1 to 3; L = ``length`` or the
    tokenizer's own. A text that fits and has no syntax in it gives the tokenizer's own row. Raises ValueError.
    """
    length = tokenizer.max_length if length is None else length
    if length < 3:
        raise ValueError(f"length {length} leaves no room for a token between begin and end; it must be at least 3")
    rows: list[list[tuple[int, float]]] = []
    for section in weighted(text):
        tokens = [(token, part.weight) for part in section for token in tokenizer.encode(part.text)]
        rows += [tokens[n : n + length - 2] for n in range(0, max(1, len(tokens)), length - 2)]
    rows = rows if rows[-1] else rows[:-1] or rows  # nothing follows a last BREAK
    ids = np.full((len(rows), length), tokenizer.pad, np.int32)
    weights = np.ones((len(rows), length), np.float32)
    for n, row in enumerate(rows):
        ids[n, : len(row) + 2] = [tokenizer.bos, *(token for token, _ in row), tokenizer.eos]
        weights[n, 1 : len(row) + 1] = [weight for _, weight in row]
    return Chunks(ids, weights)


def padded(chunks: Chunks, count: int, tokenizer: Tokenizer) -> Chunks:
    """The same text in K = ``count`` chunks: those of the empty text follow. Raises ValueError if it has more."""
    have, length = chunks.ids.shape
    if have > count:
        raise ValueError(f"the text has {have} chunks, which cannot be padded to {count}")
    empty = np.repeat(tokenizer("", length), count - have, axis=0)
    weights = np.concatenate([chunks.weights, np.ones_like(empty, np.float32)])
    return Chunks(np.concatenate([chunks.ids, empty]), weights)


def joined(states: Array, count: int) -> Array:
    """States of chunks [B K, L, E], those of a text one after another -> states of texts [B, K L, E], K = ``count``."""
    rows, length, width = states.shape
    if count < 1 or rows % count:
        raise ValueError(f"{rows} chunks are no whole number of texts of {count} chunks")
    return states.reshape(rows // count, count * length, width)


def weigh(states: Array, weights: Array) -> Array:
    """States [B, S, E] times weights [B, S], rescaled per text so that the mean over its S E values is what it was.

    Not rescaled where the mean is near 0, before or after. A text whose weights are all 1 comes back bit for bit. The
    means are taken in float32; the result has the dtype of ``states``.
    """
    before, weights = states.astype(jnp.float32), weights.astype(jnp.float32)[:, :, None]
    after = before * weights
    (old, sure_old), (new, sure_new) = _mean(before), _mean(after)
    sure = sure_old & sure_new
    scale = jnp.where(sure, old / jnp.where(sure, new, 1.0), 1.0)
    unweighted = (weights == 1).all(axis=(1, 2), keepdims=True)
    return jnp.where(unweighted, states, (after * scale).astype(states.dtype))


def _mean(values: Array) -> tuple[Array, Array]:
    """The mean of each text [B, 1, 1], and whether it is far enough from 0 to divide by."""
    mean = values.mean(axis=(1, 2), keepdims=True)
    return mean, jnp.abs(mean) > NEAR_ZERO * jnp.abs(values).mean(axis=(1, 2), keepdims=True)
