"""Textual inversion: a new word whose meaning is one or several vectors, and nothing else of the model changes.

Shapes: n vectors of the word, V words of the vocabulary, E width of the text tower.

Source: "An Image is Worth One Word" (arXiv:2208.01618), section 3: the embedding of one new token is found by
optimisation, with the whole model as it is.
"""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from ldm.bundle import Bundle

TABLE = "token_embedding.embedding"


def with_word(bundle: Bundle, word: str, vectors: Any) -> Bundle:
    """A bundle whose prompts may have ``word`` in them; it stands for ``vectors`` [n, E] or [E], in their order.

    They are the last rows of the embedding's table, whose others stay as they are. Raises ValueError for a word that
    is a token already, and for vectors of another width.
    """
    bundle.require("text")
    if bundle.tokenizer is None:
        raise ValueError("this checkpoint has no tokenizer, and cannot learn a word")
    table, vectors = bundle.params["text"][TABLE], np.atleast_2d(np.asarray(vectors))
    V, E = table.shape
    if vectors.ndim != 2 or vectors.shape[1] != E or not len(vectors):
        raise ValueError(f"the vectors of {word!r} have shape {vectors.shape}, but the text tower is {E} wide")
    if not np.isfinite(vectors.astype(np.float32)).all():
        raise ValueError(f"the vectors of {word!r} are not all finite")
    tokenizer = bundle.tokenizer.with_word(word, range(V, V + len(vectors)))
    text = {**bundle.params["text"], TABLE: jnp.concatenate([table, jnp.asarray(vectors, table.dtype)])}
    configs = replace(bundle.configs, text=replace(bundle.configs.text, vocabulary=V + len(vectors)))
    return replace(bundle, configs=configs, params={**bundle.params, "text": text}, tokenizer=tokenizer)


def vectors_of(bundle: Bundle, word: str) -> np.ndarray:
    """[n, E] float32: what ``word`` stands for. Raises ValueError if it is not one word of the vocabulary's."""
    ids = bundle.tokenizer.encode(word)
    own = {token.id for token in bundle.tokenizer.added}
    if len(ids) != 1 and not set(ids) <= own:
        raise ValueError(f"{word!r} is {len(ids)} tokens, not one word")
    return np.asarray(bundle.params["text"][TABLE], np.float32)[ids]
