"""Training a byte-pair vocabulary: from texts to the merges of a tokenizer.

A word begins as its bytes, the last one marked as the end of the word. The pair of neighbours that is most often seen
is joined to one token, everywhere; then the next one. The list of merges, in the order in which they were learned, is
the vocabulary: `ldm.tokenizer` replays it on any text. All 512 byte tokens stay, so that no text is out of reach.

Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (arXiv:1508.07909), algorithm 1;
on bytes, as in Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section 2.2.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from ldm import vocabulary
from ldm.tokenizer import Tokenizer, clean, words
from ldm.vocabulary import BYTE_CHARACTERS, END_OF_WORD, Pairs

Pair = tuple[str, str]


def learn(texts: Iterable[str], most: int | None = None) -> Pairs:
    """The merges learned from ``texts``, the first one first: at most ``most``, or until every word is one token.

    Of pairs that are seen equally often, the first in the order of their characters' code points is joined, so the
    result depends on how often each word occurs and on nothing else. Raises ValueError for a negative ``most``.
    """
    if most is not None and most < 0:
        raise ValueError(f"a vocabulary has 0 or more merges, got {most}")
    counts = Counter(word for text in texts for word in words(clean(text)))
    spelt = {word: spelling(word) for word in counts}
    seen: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[str]] = defaultdict(set)  # words that have, or once had, the pair

    def tell(word: str, sign: int) -> None:
        for pair in pairwise(spelt[word]):
            seen[pair] += sign * counts[word]
            places[pair].add(word)

    for word in counts:
        tell(word, 1)
    merges: list[Pair] = []
    while len(merges) != most and (best := min(seen, key=lambda pair: (-seen[pair], pair), default=None)):
        for word in places.pop(best):
            tell(word, -1)
            spelt[word] = joined(spelt[word], best)
            tell(word, 1)
        merges.append(best)
        seen = +seen  # without the pairs that are gone
    return tuple(merges)


def spelling(word: str) -> list[str]:
    """A word as the characters of its bytes; the last one ends the word."""
    characters = [BYTE_CHARACTERS[byte] for byte in word.encode("utf-8")]
    return [*characters[:-1], characters[-1] + END_OF_WORD]


def joined(symbols: Sequence[str], pair: Pair) -> list[str]:
    """``symbols`` with every occurrence of ``pair``, from the left, made one."""
    result: list[str] = []
    for symbol in symbols:
        if result and (result[-1], symbol) == pair:
            result[-1] += symbol
        else:
            result.append(symbol)
    return result


def tokenizer(merges: Pairs, max_length: int) -> Tokenizer:
    """A tokenizer of CLIP's form with these merges: 512 bytes, the merges, begin and end; rows padded with the end.

    ``max_length``: tokens in a row, begin and end counted. Raises ValueError for a merge of tokens that are not there.
    """
    return Tokenizer(**vocabulary.from_merges(merges, max_length=max_length))
