"""A tokenizer's files: the packaged CLIP vocabulary, and the folders that public pipelines keep beside their weights.

A folder holds ``vocab.json`` ({token: number}) and ``merges.txt`` (a pair of tokens a line), or, as newer tools write
it, only ``tokenizer.json``, which holds both. ``tokenizer_config.json`` names the special tokens and the length of a
row; ``special_tokens_map.json`` overrides those names, unless the config has an ``added_tokens_decoder``.
A special token that is named by a plain text is looked for in the text as it came; one that is described by an object
says itself, by ``normalized``, whether it is looked for in the cleaned text. These rules are those of
``transformers`` 5.23, and change numbers: see :class:`ldm.tokenizer.Tokenizer`.
"""

import gzip
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

DATA = resources.files("ldm") / "data"
END_OF_WORD = "</w>"
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
NAMES = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
ORDER = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LIST_NAMES = ("additional_special_tokens", "extra_special_tokens")
MAX_LENGTH, UNSET_LENGTH = 77, 1 << 20  # public files write a length of 1e30 for "not set"
Pairs = tuple[tuple[str, str], ...]


def byte_characters() -> dict[int, str]:
    """A printable character for each of the 256 bytes, in the vocabulary's order: printable Latin-1 stands for itself.

    Bytes that would print as nothing or as white space take the characters from U+0100 on, in turn.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


BYTE_CHARACTERS = byte_characters()


class AddedToken(NamedTuple):
    """A text that is one token wherever it stands, whatever is around it."""

    content: str
    id: int
    normalized: bool  # looked for in the cleaned text (so in any case), or in the text as it came


def packaged(pad: str) -> dict[str, Any]:
    """A Tokenizer's fields for CLIP."""
    merges = parse_merges(gzip.decompress((DATA / "clip_merges.txt.gz").read_bytes()).decode("utf-8"), "clip_merges")
    return from_merges(merges, pad)


def from_merges(merges: Pairs, pad: str = EOS, max_length: int = MAX_LENGTH) -> dict[str, Any]:
    """A Tokenizer's fields in CLIP's order: bytes, bytes that end a word, a token for each merge, two special tokens.

    Two merges may make the same token. Raises ValueError for a merge of tokens that are not there, and for a length
    below 2.
    """
    characters = list(BYTE_CHARACTERS.values())
    tokens = [*characters, *(c + END_OF_WORD for c in characters), *(a + b for a, b in merges), BOS, EOS]
    special = {"content": BOS, "normalized": True}, {"content": EOS, "normalized": True}
    config = {"bos_token": special[0], "eos_token": special[1], "unk_token": special[1], "pad_token": pad}
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return build(vocab, merges, config | {"model_max_length": max_length}, {}, "the vocabulary of these merges")


def read(folder: Path) -> dict[str, Any]:
    """A Tokenizer's fields out of a public folder. Raises ValueError for whatever is wrong in it."""
    config = read_json(folder / "tokenizer_config.json", optional=True)
    if "added_tokens_decoder" not in config:
        config |= read_json(folder / "special_tokens_map.json", optional=True)
    one_file = read_json(folder / "tokenizer.json", optional=True)
    if one_file:
        vocab, merges = one_file_tables(one_file, folder / "tokenizer.json")
    else:
        vocab = read_json(folder / "vocab.json")
        merges = parse_merges(read_text(folder / "merges.txt"), str(folder / "merges.txt"))
    bad = [token for token, number in vocab.items() if type(number) is not int or number < 0]
    if bad or len(set(vocab.values())) != len(vocab):
        raise ValueError(
            f"{folder}: the vocabulary must give every token its own number >= 0; look at {bad[:3] or 'twins'}"
        )
    return build(vocab, merges, config, stored_added(config, one_file, folder), str(folder))


def build(vocab: Mapping[str, int], merges: Pairs, config: dict, stored: dict, where: str) -> dict[str, Any]:
    """Puts the parts together: finds the four special tokens' numbers and how each added token is looked for."""
    numbers = {text: token.id for text, token in stored.items()} | dict(vocab)
    flags = named(config, where) | {text: token.normalized for text, token in stored.items()}
    if missing := [text for text in flags if text not in numbers]:
        raise ValueError(f"{where}: the special token {missing[0]!r} is not among the {len(numbers)} of the vocabulary")
    added = tuple(AddedToken(text, numbers[text], flag) for text, flag in flags.items())
    names = [content(config.get(key) or default, where) for key, default in NAMES.items()]
    bos, eos, unk, pad = (numbers[text] for text in names)
    length = config.get("model_max_length") or MAX_LENGTH
    if not isinstance(length, int | float) or length < 2:
        raise ValueError(f"{where}: model_max_length is {length!r}, and must be a number of at least 2")
    length = int(length) if length < UNSET_LENGTH else MAX_LENGTH
    merge_table(vocab, merges, f"{where}: ")
    fields = {"vocab": vocab, "merges": merges, "added": added, "max_length": length}
    return fields | {"bos": bos, "eos": eos, "pad": pad, "unk": unk}


def merge_table(vocab: Mapping[str, int], merges: Pairs, where: str = "") -> dict[tuple[int, int], tuple[int, int]]:
    """{(left, right): (rank, joined)} in numbers. Raises ValueError for a merge of unknown tokens."""
    for rank, (a, b) in enumerate(merges):
        if a not in vocab or b not in vocab or a + b not in vocab:
            missing = next(token for token in (a, b, a + b) if token not in vocab)
            raise ValueError(f"{where}merge {rank}, {a!r} + {b!r}, needs {missing!r}, which the vocabulary lacks")
    return {(vocab[a], vocab[b]): (rank, vocab[a + b]) for rank, (a, b) in enumerate(merges)}


def content(entry: Any, where: str) -> str:
    """The text of a special token, which files give as a plain text or as an object."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    if not isinstance(text, str) or not text:
        raise ValueError(f"{where}: a special token must be a text or an object with 'content', not {entry!r}")
    return text


def in_cleaned(entry: dict) -> bool:
    """Whether an added token described by an object is looked for in the cleaned text."""
    return bool(entry.get("normalized", not entry.get("special", False)))


def named(config: dict, where: str) -> dict[str, bool]:
    """{text: looked for in the cleaned text} of each special token a config names; a plain text overrules an object."""
    entries = list(filter(None, (config.get(key) or NAMES.get(key) for key in ORDER)))
    for key in LIST_NAMES:
        value = config.get(key) or []
        entries += value.values() if isinstance(value, dict) else value
    flags: dict[str, bool] = {}
    objects = set()
    for entry in entries:
        text, is_object = content(entry, where), isinstance(entry, dict)
        if not (is_object and text in objects):
            flags[text] = is_object and in_cleaned(entry)
        objects |= {text} if is_object else set()
    return flags


def stored_added(config: dict, one_file: dict, folder: Path) -> dict[str, AddedToken]:
    """The added tokens that the files list with their numbers, by content: these overrule what the names say."""
    listed = config.get("added_tokens_decoder")
    if listed is None:
        extra = read_json(folder / "added_tokens.json", optional=True)
        listed = {
            number: {"content": text, "normalized": text not in named(config, str(folder))}
            for text, number in extra.items()
        }
        listed |= {entry.get("id"): entry for entry in one_file.get("added_tokens", [])}
    try:
        tokens = [AddedToken(content(e, str(folder)), int(i), in_cleaned(e)) for i, e in listed.items()]
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder}: the list of added tokens is broken ({error})") from None
    return {token.content: token for token in tokens}


def one_file_tables(one_file: dict, path: Path) -> tuple[dict[str, int], Pairs]:
    """Vocabulary and merges of a tokenizer.json; older ones write a merge as one text with a space."""
    model = one_file.get("model")
    if (
        not isinstance(model, dict)
        or not isinstance(model.get("vocab"), dict)
        or not isinstance(model.get("merges"), list)
    ):
        raise ValueError(f"{path}: there is no byte-pair vocabulary under 'model' ('vocab' and 'merges')")
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    if wrong := [pair for pair in merges if len(pair) != 2]:
        raise ValueError(f"{path}: a merge is a pair of tokens, not {wrong[0]!r}")
    return model["vocab"], tuple(merges)


def parse_merges(text: str, where: str) -> Pairs:
    """The pairs of a merges.txt: two tokens a line, after a line that begins with #version."""
    lines = [line.rstrip("\r") for line in text.split("\n")]
    pairs = tuple(tuple(line.split(" ")) for line in lines if line and not line.startswith("#version"))
    if wrong := [pair for pair in pairs if len(pair) != 2]:
        raise ValueError(f"{where}: a line must hold two tokens with a space between, not {' '.join(wrong[0])!r}")
    return pairs


def read_text(path: Path) -> str:
    """A UTF-8 file, or a ValueError that says in a sentence why not."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    if text.startswith("version https://git-lfs"):
        raise ValueError(f"{path}: is a git-LFS pointer, not the file itself; fetch it with `git lfs pull`")
    return text


def read_json(path: Path, optional: bool = False) -> dict:
    """A JSON object; {} where an optional file is absent; otherwise a ValueError that says in a sentence why not."""
    if optional and not path.exists():
        return {}
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is not JSON ({error})") from None
    except RecursionError:
        raise ValueError(f"{path}: is not a vocabulary (its JSON is nested too deeply)") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a JSON {type(value).__name__}, not an object")
    return value


def write(folder: Path, vocab, merges, added, max_length: int, **numbers: int) -> None:
    """Write a Tokenizer's fields as the four files of the public layout, all added tokens spelt out."""
    contents = {number: token for token, number in vocab.items()} | {token.id: token.content for token in added}
    names = {f"{key}_token": contents[number] for key, number in numbers.items()}
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "special": True}
    listed = {str(t.id): {"content": t.content, "normalized": t.normalized} | plain for t in added}
    config = {"added_tokens_decoder": listed, "do_lower_case": True, "errors": "replace"} | names
    config |= {"model_max_length": max_length, "tokenizer_class": "CLIPTokenizer"}
    folder.mkdir(parents=True, exist_ok=True)
    files = {"vocab.json": dict(vocab), "tokenizer_config.json": config, "special_tokens_map.json": names}
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
