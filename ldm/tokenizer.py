"""The CLIP tokenizer: text to numbers by byte-pair encoding, equal to the public one on any Unicode text.

Shapes: B texts, L tokens in a row.

Sources: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (arXiv:1508.07909), section 3.2,
for the merging; Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section 2.2, for running
it on bytes; Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (arXiv:2103.00020),
section 2.4, for the vocabulary of 49,408. Encoding a text takes four steps:

1. cut out the added tokens (``<|endoftext|>`` and its like), which are numbers already;
2. clean the rest: Unicode form NFC, one space for any run of white space, lower case;
3. cut it into words: contractions, runs of letters, single digits, runs of anything else that is not white space;
4. write each word as bytes, mark the end of the last by ``</w>``, and merge neighbours, best merge first.

Two programs are called the public tokenizer. This one follows the class ``CLIPTokenizer`` of ``transformers`` (5.23),
because the public pipelines run it. The other, in OpenAI's ``clip`` and in ``open_clip``, gives the same numbers for
plain prompts, and other ones where it (a) repairs text: mis-decoded "Ã©" becomes "é", "&amp;" becomes "&", curly quotes
become straight, ligatures and full-width letters plain, control characters vanish; (b) lowers a whole text at once, so
that a Greek word may end in a final sigma; (c) reads ``<|endoftext|>`` in a prompt as words.

What a letter, a digit or a combining mark is depends on the edition of Unicode. ``data/clip_unicode.json`` holds the
editions of the public program, so that a newer or older Python gives the same numbers.
"""

import functools
import heapq
import json
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ldm import vocabulary
from ldm.vocabulary import BYTE_CHARACTERS, DATA, END_OF_WORD, AddedToken

UNICODE = json.loads((DATA / "clip_unicode.json").read_text(encoding="utf-8"))
CACHED_WORDS, CACHED_LENGTH = 1 << 14, 64  # longer words are rare, and would make the memory unbounded


CHARACTER_BYTES = {character: byte for byte, character in BYTE_CHARACTERS.items()}


def _class(name: str) -> str:
    """The inside of a regular expression's [...] for one class of ``clip_unicode.json``."""
    ends = (run.partition("-") for run in UNICODE[name].split())
    return "".join(f"\\U{int(first, 16):08x}-\\U{int(last or first, 16):08x}" for first, _, last in ends)


def _lower_table() -> dict[int, int]:
    """Code points whose lower case is newer than Python 3.11's tables."""
    table = {}
    for run in UNICODE["lower"].split():
        first, last, lower = (int(number, 16) for number in re.split("[-:]", run))
        table |= {first + n: lower + n for n in range(last - first + 1)}
    return table


LOWER = _lower_table()
SPACE = re.compile(f"[{_class('space')}]+")
UNNORMALIZED = re.compile(f"([{_class('unnormalized')}]+)")
WORD = re.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    f"|[{_class('letter')}]+|[{_class('number')}]|[^{_class('space')}{_class('letter')}{_class('number')}]+"
)
PARTS = {f"<|{name}|>": ("<|", name, "|>") for name in ("startoftext", "endoftext")}  # where they are no added tokens


def clean(text: str) -> str:
    """Step 2: NFC, single spaces, lower case letter by letter. Idempotent up to letters without a composed form."""
    if not text.isascii():
        parts = UNNORMALIZED.split(text)  # the odd ones are the marks that NFC must not see
        parts[::2] = (unicodedata.normalize("NFC", part) for part in parts[::2])
        text = "".join(parts).replace("Σ", "σ")  # Python's lower() would look at its neighbours
    return SPACE.sub(" ", text).lower().translate(LOWER)


def words(text: str) -> list[str]:
    """Step 3: the words of a cleaned text; white space is left out."""
    return [part for word in WORD.findall(text) for part in PARTS.get(word, (word,))]


def merge(symbols: Sequence[int], merges: Mapping[tuple[int, int], tuple[int, int]]) -> list[int]:
    """Step 4: join neighbouring symbols until no pair is in ``merges``, which maps a pair to (rank, joined symbol).

    Always the lowest rank next, and of equals the leftmost. A heap and a linked list make it n log n in the length.
    """
    symbols, count = list(symbols), len(symbols)
    before, after = list(range(-1, count - 1)), [*range(1, count), -1]
    heap = []

    def offer(i: int) -> None:
        if i >= 0 and after[i] >= 0 and (found := merges.get((symbols[i], symbols[after[i]]))):
            heapq.heappush(heap, (found[0], i, found[1]))

    for i in range(count):
        offer(i)
    while heap:
        _, i, joined = heapq.heappop(heap)
        j = after[i]
        if j < 0 or merges.get((symbols[i], symbols[j]), (0, None))[1] != joined:
            continue  # one of the two was joined to another since
        symbols[i], symbols[j], after[i], after[j] = joined, -1, after[j], -1
        if after[i] >= 0:
            before[after[i]] = i
        offer(i)
        offer(before[i])
    return [symbol for symbol in symbols if symbol >= 0]


def _finder(added: Sequence[AddedToken], normalized: bool) -> tuple[re.Pattern | None, dict[str, int]]:
    """A pattern for one kind of added tokens, the longest first, and their numbers by content."""
    ids = {clean(t.content) if normalized else t.content: t.id for t in added if t.normalized == normalized}
    longest_first = sorted(filter(None, ids), key=len, reverse=True)
    return (re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None), ids


def _runs(added: Sequence[AddedToken]) -> dict[int, range]:
    """Added tokens that stand for several: "x" with number n where "x_1", "x_2", … have n + 1, n + 2, …"""
    numbers, runs = {token.content: token.id for token in added}, {}
    for token in added:
        count = 1
        while numbers.get(f"{token.content}_{count}") == token.id + count:
            count += 1
        if count > 1:
            runs[token.id] = range(token.id, token.id + count)
    return runs


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A CLIP vocabulary and what is computed from it. Immutable; make one by :meth:`clip` or :meth:`from_folder`.

    ``vocab`` maps each token to its number, ``merges`` lists pairs of tokens, the best first. ``bos``, ``eos`` and
    ``pad`` are numbers: begin and end of the text, and what fills the row. ``unk`` stands for a byte that the
    vocabulary lacks (the public one has all 256).

    Some public folders (Stable Diffusion 2) pad with ``!``, and by naming it an added token take every ``!`` of a
    prompt for padding too. So do the public pipelines, and so does this class.

    An added token with followers "x_1", "x_2", … under the next numbers is a word of several vectors (textual
    inversion): where "x" stands in a text, all of them do.
    """

    vocab: Mapping[str, int] = field(repr=False)
    merges: tuple[tuple[str, str], ...] = field(repr=False)
    added: tuple[AddedToken, ...]
    bos: int
    eos: int
    pad: int
    unk: int
    max_length: int = 77

    def __post_init__(self):
        tokens = {i: token for token, i in self.vocab.items()} | {t.id: t.content for t in self.added}
        derived = {
            "_pairs": vocabulary.merge_table(self.vocab, self.merges),
            "_tokens": tokens,
            "_raw": _finder(self.added, normalized=False),
            "_normalized": _finder(self.added, normalized=True),
            "_runs": _runs(self.added),
            "_word": functools.lru_cache(CACHED_WORDS)(self._encode_word),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @classmethod
    def clip(cls, pad: str = "<|endoftext|>") -> "Tokenizer":
        """The packaged CLIP vocabulary; ``pad`` is ``<|endoftext|>`` for SD 1.x and ``!`` for SD 2.x."""
        return cls(**vocabulary.packaged(pad))

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of a public folder: vocab.json and merges.txt, or only tokenizer.json; else a ValueError."""
        return cls(**vocabulary.read(Path(folder)))

    def save(self, folder: str | Path) -> None:
        """Write vocab.json, merges.txt, tokenizer_config.json, special_tokens_map.json, as public tools read them."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        vocabulary.write(Path(folder), **fields)

    def with_word(self, word: str, numbers: range) -> "Tokenizer":
        """This tokenizer, and ``word`` as an added token of one number, or of several in a row.

        Raises ValueError if the word is a token already, or none that could stand in a text.
        """
        known = {*self.vocab, *(token.content for token in self.added)}
        if not clean(word).strip() or word != word.strip():
            raise ValueError(f"a new word must be a text without white space around it, got {word!r}")
        if taken := [name for name in (word, word + END_OF_WORD) if name in known or name.lower() in known]:
            raise ValueError(
                f"{word!r} is a token already ({taken[0]!r}); name the new word otherwise, such as <{word}>"
            )
        names = [word, *(f"{word}_{n}" for n in range(1, len(numbers)))]
        new = (AddedToken(name, number, normalized=True) for name, number in zip(names, numbers, strict=True))
        return replace(self, added=(*self.added, *new))

    @property
    def vocab_size(self) -> int:
        """Rows that an embedding table needs: one more than the largest number."""
        return 1 + max(self._tokens)

    def encode(self, text: str) -> list[int]:
        """The numbers of one text, without BOS and EOT, and not cut to any length."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # lone surrogates are no text
        ids = []
        for raw, raw_id in _split(text, *self._raw):
            ids.extend([raw_id] if raw is None else self._encode_cleaned(clean(raw)))
        return [number for i in ids for number in self._runs.get(i, (i,))]

    def _encode_cleaned(self, text: str) -> Iterator[int]:
        for part, added_id in _split(text, *self._normalized):
            if part is None:
                yield added_id
            else:
                for word in words(part):
                    yield from (self._word if len(word) <= CACHED_LENGTH else self._encode_word)(word)

    def _encode_word(self, word: str) -> tuple[int, ...]:
        characters = [BYTE_CHARACTERS[byte] for byte in word.encode("utf-8")]
        characters[-1] += END_OF_WORD
        return tuple(merge([self.vocab.get(character, self.unk) for character in characters], self._pairs))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the numbers without BOS, EOT and padding; one space after each word, none at the ends.

        Bytes that are no UTF-8 become U+FFFD. Raises ValueError for a number outside of the vocabulary.
        """
        known = [int(i) for i in ids if int(i) not in (self.bos, self.eos, self.pad)]
        if unknown := [i for i in known if i not in self._tokens]:
            raise ValueError(f"token {unknown[0]} is not in the vocabulary of {self.vocab_size}")
        data = b"".join(_token_bytes(self._tokens[i]) for i in known)
        return data.decode("utf-8", "replace").replace(END_OF_WORD, " ").strip()

    def __call__(self, texts: str | Sequence[str], length: int | None = None) -> np.ndarray:
        """Rows for the text tower: BOS, the text's numbers, EOT, padding; int32 [B, L], L = ``length`` or 77.

        A text too long for its row is cut, and one warning quotes what was left out.
        """
        length = self.max_length if length is None else length
        if length < 2:
            raise ValueError(f"length {length} leaves no room for the begin and end tokens; it must be at least 2")
        texts = [texts] if isinstance(texts, str) else texts
        rows = np.full((len(texts), length), self.pad, np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = self.encode(text)
            if cut := ids[length - 2 :]:
                message = (
                    f"the prompt has {len(ids)} tokens and the model reads {length - 2}; left out: {self.decode(cut)!r}"
                )
                warnings.warn(message, stacklevel=2)
            ids = [self.bos, *ids[: length - 2], self.eos]
            row[: len(ids)] = ids
        return rows


def _split(text: str, pattern: re.Pattern | None, ids: Mapping[str, int]) -> Iterator[tuple[str | None, int]]:
    """Pairs (text, 0) for what lies between added tokens and (None, number) for these, in order."""
    for n, part in enumerate(pattern.split(text) if pattern else [text]):
        if n % 2:
            yield None, ids[part]
        elif part:
            yield part, 0


def _token_bytes(token: str) -> bytes:
    """The bytes that a token's characters stand for; its own UTF-8 where it is not written in byte characters."""
    if all(character in CHARACTER_BYTES for character in token):
        return bytes(CHARACTER_BYTES[character] for character in token)
    return token.encode("utf-8", "replace")
