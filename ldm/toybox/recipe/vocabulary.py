"""Trains the toybox's vocabulary on its captions, in a minute: ``python -m ldm.toybox.recipe.vocabulary --out DIR``.

Merges are learned until every word of the captions is one token. The words of the grammar are added once each: the
handset is in no training scene, and its words are to be tokens too, whose meaning a model can still learn. Any other
text is spelt out in pieces, down to bytes.

Sources: `ldm.bpe`.
"""

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from ldm import bpe
from ldm.files import check_vacant, into_place
from ldm.tokenizer import Tokenizer
from ldm.toybox.dataset import Dataset, example
from ldm.toybox.grammar import WORDS

SEED, CAPTIONS = 3101, 20_000
MAX_LENGTH = 40
"""Tokens in a row: begin, end, and the longest sentence of the grammar, which has 38 words and commas ("a photo of a
tiny dull red character head to the left of a ...", in two clauses). The longest of the 20,000 captions takes 33."""


def captions(count: int = CAPTIONS) -> list[str]:
    """Captions of the first ``count`` training scenes of a seed of their own, in varied wording."""
    data = Dataset(seed=SEED)
    return [example(i, data).caption for i in tqdm(range(count), desc="captions", leave=False, disable=None)]


def tokenizer(texts: list[str]) -> Tokenizer:
    """The toybox's tokenizer, learned from captions; every word of the grammar is one token of it."""
    return bpe.tokenizer(bpe.learn([*texts, " ".join(WORDS)]), MAX_LENGTH)


def main() -> None:
    """Writes the tokenizer's folder; prints its size, and the tokens of the longest caption with begin and end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the tokenizer; it must be empty or new")
    parser.add_argument("--captions", type=int, default=CAPTIONS, help="how many captions to learn from")
    options = parser.parse_args()
    check_vacant(options.out)
    texts = captions(options.captions)
    learned = tokenizer(texts)
    into_place(options.out, learned.save)
    longest = max((len(learned.encode(text)) for text in texts), default=0)
    print(json.dumps({"tokens": learned.vocab_size, "longest": longest + 2, "row": MAX_LENGTH}))


if __name__ == "__main__":
    main()
