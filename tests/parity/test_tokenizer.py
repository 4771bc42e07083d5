"""The tokenizer beside the public one, on many texts and on every code point. The oracle is ``transformers``' class."""

import json
import random
import sys
import unicodedata
import warnings

import numpy as np
import pytest

from ldm.tokenizer import Tokenizer

from . import oracle

PADS = ["<|endoftext|>", "!"]
MARKS = [chr(code) for code in range(0x110000) if unicodedata.combining(chr(code))]
SCALARS = [code for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]

VOCABULARY = """
a an the of on in with at and red green blue golden tiny giant portrait photograph painting astronaut horse
castle river cat dog fox dragon sphere cube cone torus mountain sunset night rain neon cyberpunk watercolour oil pencil
sketch highly detailed 4k 8k hdr cinematic lighting trending artstation unreal engine octane render f/1.4 35mm 1920s
it's don't they've I'll we're she'd I'M ROCK'N'ROLL 'sup (masterpiece:1.2) [deformed] {x|y} best_quality bokeh--v 4 -
café naïve Ångström façade über smörgåsbord Dvořák jalapeño Москва россия Ελλάδα ΣΊΣΥΦΟΣ ὈΔΥΣΣΕΎΣ İstanbul ISPARTA ışık
東京 北京 上海 서울 고양이 ねこ ネコ 猫がいる मंदिर สวัสดี مرحبا שלום გამარჯობა Հայաստան አማርኛ தமிழ் বাংলা ភាសាខ្មែរ"""
WORDS = VOCABULARY.split()

ODD = [
    *("👩‍👩‍👧‍👦", "🏳️‍🌈", "🇰🇷🇯🇵", "👍🏽", "❤️", "1️⃣", "🧑🏿‍🚀", "☃︎", "™️", "🫠", "🪿"),
    *(
        "e\u0301",
        "o\u0323\u0302",
        "q\u0307\u0323",
        "\u1e9b\u0323",
        "가",
        "\u1100\u1161\u11a8",
        "ﬁ",
        "ﬀ",
        "Ⅳ",
        "½",
        "²",
        "①",
        "٣",
        "५",
    ),
    *(
        "\u0344",
        "\u2126",
        "\u212b",
        "\u0958",
        "\u0f43",
        "\ufb1d",
        "\U0001d15e",
        "\U0002f800",
        "\u1abf\u0301",
        "\u0897\u0323",
    ),
    *(" ", "  ", "\t", "\n", "\r\n", "\x0b\x0c", "\x85", "\xa0", "\u1680", "\u2003", "\u2028", "\u202f", "\u3000"),
    *(
        "\u200b",
        "\u200c",
        "\u200d",
        "\u2060",
        "\ufeff",
        "\u180e",
        "\x00",
        "\x01",
        "\x1b[31m",
        "\x1c",
        "\x1f",
        "\x7f",
        "\xad",
    ),
    *(
        "<|endoftext|>",
        "<|startoftext|>",
        "<|EndOfText|>",
        "<|STARTOFTEXT|>",
        "<|endoftext|",
        "|endoftext|>",
        "</w>",
        "<|",
        "|>",
    ),
    *(
        "'",
        "''",
        "'s",
        "'S",
        "'re",
        "'VE",
        "’s",
        "“”",
        "--",
        "...",
        "…",
        "!!!",
        "?!",
        "!",
        "%&$#@",
        "\\n",
        "~~~~",
        "____",
        "=)",
    ),
    *(
        "ß",
        "ẞ",
        "ς",
        "Σ",
        "ΑΣ",
        "ΑΣΑ",
        "İ",
        "I",
        "ı",
        "ǅ",
        "Ꭰ",
        "ꭰ",
        "\u1c89",
        "\ua7dc",
        "\U00010400",
        "\U0001e900",
        "\U00016ea0",
    ),
    *("\ufffd", "\ufffe", "\U0010ffff", "\ue000", "\U000e0041", "\u0378", "\U0003fffd", "\u202e", "\ufff9"),
]
PLANES = [
    (0x20, 0x7F),
    (0x80, 0x250),
    (0x250, 0x590),
    (0x590, 0x900),
    (0x900, 0x1200),
    (0x1200, 0x2000),
    (0x2000, 0x3000),
]
PLANES += [
    (0x3000, 0xA000),
    (0xA000, 0xD800),
    (0xE000, 0x10000),
    (0x10000, 0x11000),
    (0x11000, 0x12000),
    (0x12000, 0x18000),
]
PLANES += [
    (0x18000, 0x1D000),
    (0x1D000, 0x1F000),
    (0x1F000, 0x20000),
    (0x20000, 0x32000),
    (0xE0000, 0xE0200),
    (0xF0000, 0x110000),
]


def prompt(rng: random.Random) -> str:
    """Words as people string them together, some in other cases."""
    chosen = rng.choices(WORDS, k=rng.randint(1, 30))
    return rng.choice([" ", ", ", "  ", " . "]).join(rng.choice([str, str.upper, str.title])(word) for word in chosen)


def noise(rng: random.Random) -> str:
    """Code points of one or several blocks of Unicode, assigned or not."""
    blocks = rng.choices(PLANES, k=rng.randint(1, 3))
    return "".join(chr(rng.randrange(*rng.choice(blocks))) for _ in range(rng.randint(1, 25)))


def marked(rng: random.Random) -> str:
    """Letters under piles of combining marks, old and new, in any order."""
    return "".join(rng.choice("aeioqΩкעกक") + "".join(rng.choices(MARKS, k=rng.randint(0, 5))) for _ in range(5))


def mixture(rng: random.Random) -> str:
    """Words, oddities and noise, glued with and without spaces."""
    parts = [rng.choice([rng.choice(WORDS), rng.choice(ODD), noise(rng)[:3]]) for _ in range(rng.randint(1, 12))]
    return rng.choice(["", " "]).join(parts)


def corpus() -> list[str]:
    """24,000 texts of the four kinds, all the oddities alone and in pairs, and a few very long texts."""
    rng = random.Random(0)
    texts = [make(rng) for make in (prompt, noise, marked, mixture) for _ in range(6000)]
    pairs = [a + b for a in ODD for b in ODD]
    return texts + ODD + pairs + ["ab" * 5000, "é" * 5000, "!" * 5000, "9" * 5000, "cat " * 2000, "\u0301" * 500]


@pytest.fixture(scope="module", params=PADS, ids=["sd1", "sd2"])
def both(request, tmp_path_factory):
    """Ours and the oracle on one vocabulary, which tests/test_tokenizer.py holds equal to the public files."""
    ours, folder = Tokenizer.clip(request.param), tmp_path_factory.mktemp("clip")
    ours.save(folder)
    return ours, oracle.transformers.CLIPTokenizer.from_pretrained(folder)


def disagreements(ours: Tokenizer, theirs, texts: list[str]) -> list[str]:
    """The texts whose numbers differ."""
    expected = theirs(texts, add_special_tokens=False).input_ids
    return [text for text, ids in zip(texts, expected, strict=True) if ours.encode(text) != ids]


def test_many_texts(both):
    texts = corpus()
    wrong = disagreements(*both, texts)
    print(f"{len(texts)} texts, {len(set(texts))} of them different: {len(wrong)} disagree")
    assert len(set(texts)) >= 20_000
    assert not wrong, [ascii(text) for text in wrong[:10]]


def test_every_code_point(both):
    """Each twice after a letter, which tells letters, digits, white space and the rest apart; 64 to a text."""
    cells = [f"a{chr(code)}{chr(code)}" for code in SCALARS]
    wrong = disagreements(*both, [" ".join(cells[i : i + 64]) for i in range(0, len(cells), 64)])
    print(f"{len(cells)} code points: {len(wrong)} groups of 64 disagree")
    assert not wrong, [ascii(text) for text in wrong[:3]]


def test_rows_and_decoding(both):
    ours, theirs = both
    texts = [text for text in corpus()[::40] if len(text) < 200]
    options = {"padding": "max_length", "truncation": True, "return_tensors": "np"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # ours says what was cut
        rows = ours(texts, length=20)
    np.testing.assert_array_equal(rows, theirs(texts, max_length=20, **options).input_ids)
    for text in texts:
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_what_public_tools_save_is_read_alike(both, tmp_path):
    ours, theirs = both
    theirs.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").exists()
    read = Tokenizer.from_folder(tmp_path)
    assert (read.vocab, read.merges, read.added) == (ours.vocab, ours.merges, ours.added)
    assert (read.bos, read.eos, read.pad, read.unk, read.max_length) == (ours.bos, ours.eos, ours.pad, ours.unk, 77)


OBJECT = {
    "__type": "AddedToken",
    "content": "<|endoftext|>",
    "lstrip": False,
    "normalized": True,
    "rstrip": False,
    "single_word": False,
}
CONFIGS = {  # tokenizer_config.json, special_tokens_map.json, added_tokens.json
    "no names": ({}, {}, {}),
    "plain texts": ({"eos_token": "<|endoftext|>"}, {"pad_token": "!"}, {}),
    "objects": ({"eos_token": OBJECT, "unk_token": OBJECT, "pad_token": OBJECT}, {}, {}),
    "a text last": ({"eos_token": OBJECT}, {"pad_token": "<|endoftext|>"}, {}),
    "more special": ({"additional_special_tokens": ["cat</w>"], "mask_token": "dog</w>"}, {}, {}),
    "learned words": ({}, {}, {"<birb>": 49408, "<Toy Cat>": 49409}),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_every_way_to_name_special_tokens(case, tmp_path):
    """Which text becomes a special token depends on how the files spell it; the oracle says how."""
    Tokenizer.clip().save(tmp_path)
    for name, value in zip(("tokenizer_config", "special_tokens_map", "added_tokens"), CONFIGS[case], strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    ours = Tokenizer.from_folder(tmp_path)
    theirs = oracle.transformers.CLIPTokenizer.from_pretrained(tmp_path)
    texts = [
        "a! <|endoftext|>b<|EndOfText|>c",
        "<|STARTOFTEXT|>x",
        "cat</w>s DOG</w> dog</w>",
        "a<birb>b <BIRB> <toy cat><Toy  Cat>",
    ]
    assert not disagreements(ours, theirs, texts)
    assert ours.pad == theirs.pad_token_id


def test_the_other_public_tokenizer():
    """open_clip's agrees on plain prompts; where it does not, ldm.tokenizer's docstring says why."""
    from open_clip.tokenizer import SimpleTokenizer

    ours, theirs, rng = Tokenizer.clip(), SimpleTokenizer(), random.Random(1)
    plain = [" ".join(rng.choices(WORDS[:72], k=12)) for _ in range(500)]
    assert [ours.encode(text) for text in plain] == [theirs.encode(text) for text in plain]
    for text in ("Ã©", "&amp;", "“quotes”", "ﬁne", "ｆｕｌｌ", "a\x00b", "ΟΔΥΣΣΕΥΣ", "x<|endoftext|>"):
        assert ours.encode(text) != theirs.encode(text), text
