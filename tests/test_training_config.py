"""The configuration of a run: what files may say, and the one sentence for each mistake."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.models.unet import UNetConfig
from ldm.training.config import TrainConfig, differences, load, one_of, plain, read, within
from ldm.training.optimiser import OptimiserConfig

RECIPE = """
batch = 32
base = "runs/text"
layers = ["attn", 'cross\\.']
[optimiser]
learning_rate = 1
clip = inf
[data]
toys = [1, 2.5]
[model.unet]
channels = [64, 128]
"""


@dataclass(frozen=True)
class Inner:
    size: int
    crop: str = one_of("centre", "centre", "random")


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner(3)
    pair: tuple[int, float] = (1, 2.0)
    either: int | str | None = None
    share: float = within(0.5, (">", 0), ("<=", 1))
    flag: bool = False
    table: Mapping[str, Any] | None = None


def test_a_file_is_read_into_dataclasses(tmp_path: Path):
    (tmp_path / "a.toml").write_text(RECIPE)
    config = load(tmp_path / "a.toml")
    assert (config.batch, config.base, config.layers) == (32, "runs/text", ("attn", "cross\\."))
    assert config.optimiser == OptimiserConfig(learning_rate=1.0, clip=math.inf)
    assert type(config.optimiser.learning_rate) is float
    assert config.data == {"toys": [1, 2.5]} and config.seed == TrainConfig().seed
    unet = read(UNetConfig, config.model["unet"], "model.unet")
    assert unet == UNetConfig(channels=(64, 128)) and hash(unet)
    (tmp_path / "a.json").write_text(json.dumps(plain(config)))
    assert load(tmp_path / "a.json") == config


def test_types_within_types():
    given = {"inner": {"size": 4, "crop": "random"}, "pair": [3, 4], "either": "x", "flag": True, "table": {"a": [1]}}
    assert read(Outer, given) == Outer(Inner(4, "random"), (3, 4.0), "x", 0.5, True, {"a": [1]})
    assert read(Outer, {"either": 7, "table": None}) == Outer(either=7)
    assert read(Outer, {}) == Outer()


numbers = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**31 - 1),
        "batch": st.integers(1, 10**6),
        "ema": st.floats(0, 1, exclude_max=True),
        "dtype": st.sampled_from(["float32", "bfloat16"]),
        "layers": st.lists(st.text(st.characters(categories=("L",)))),
        "data": st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans())),
        "optimiser": st.fixed_dictionaries({}, optional={"warmup": st.floats(0, 0.5), "restarts": st.integers(1, 9)}),
    },
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(numbers)
def test_plain_and_read_are_inverse(mapping: dict):
    config = read(TrainConfig, mapping)
    assert read(TrainConfig, plain(config)) == config
    assert differences(plain(config), plain(config)) == []
    assert read(TrainConfig, json.loads(json.dumps(plain(config)))) == config


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"bach": 3}, "unknown key 'bach'; did you mean 'batch'? (known: seed, batch, "),
        ({"optimiser": {"learnin_rate": 1}}, "unknown key in optimiser 'learnin_rate'; did you mean 'learning_rate'?"),
        (
            {"optimiser": {"learning_rate": -1}},
            "optimiser: learning_rate of the optimiser must be between 0.0 and 10.0",
        ),
        ({"optimiser": 3}, "optimiser must be a table of keys and values, got 3"),
        ({"batch": "64"}, "batch must be a whole number, got '64'"),
        ({"batch": 64.0}, "batch must be a whole number, got 64.0"),
        ({"batch": True}, "batch must be a whole number, got True"),
        ({"batch": None}, "batch must be a whole number, got None"),
        ({"batch": 0}, "batch must be > 0, got 0"),
        ({"ema": 1}, "ema must be >= 0 and < 1, got 1.0"),
        ({"ema": math.nan}, "ema must be a number, got nan"),
        ({"ema": "0.9"}, "ema must be a number, got '0.9'"),
        ({"seed": -1}, "seed must be >= 0 and < 2147483648, got -1"),
        ({"dtype": "flot32"}, "unknown dtype 'flot32'; did you mean 'float32'? (known: float32, bfloat16)"),
        ({"layers": "attn"}, "layers must be a list, got 'attn'"),
        ({"layers": ["a", 3]}, "layers[1] must be a text, got 3"),
        ({"layers": ["("]}, "layers holds '(', which is no regular expression"),
        ({"base": 3}, "base must be a text, got 3"),
        ({"data": []}, "data must be a table of keys and values, got []"),
        ({"data": {"when": object}}, "data must hold numbers, texts, lists and tables only"),
        ({"batch": 10, "accumulate": 3}, "batch must be a multiple of accumulate, got 10 and 3"),
        ([], "a configuration must be a table of keys and values, got []"),
    ],
)
def test_a_mistake_is_one_sentence(mapping: Any, words: str):
    with pytest.raises(ValueError, match=r".") as error:
        read(TrainConfig, mapping)
    assert str(error.value).startswith(words) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"inner": {}}, "data.inner.size is missing"),
        ({"inner": {"size": 1, "crop": "centr"}}, "unknown data.inner.crop 'centr'; did you mean 'centre'?"),
        ({"inner": {"sise": 1}}, "unknown key in data.inner 'sise'; did you mean 'size'?"),
        ({"pair": [1]}, "data.pair must be a list of 2, got [1]"),
        ({"pair": [1, "2"]}, "data.pair[1] must be a number, got '2'"),
        ({"either": 1.5}, "data.either must be a text, got 1.5"),
        ({"flag": 1}, "data.flag must be true or false, got 1"),
        ({"share": 0}, "data.share must be > 0 and <= 1, got 0.0"),
    ],
)
def test_a_mistake_is_named_by_its_place(mapping: Any, words: str):
    with pytest.raises(ValueError, match=r".") as error:
        read(Outer, mapping, "data")
    assert str(error.value).startswith(words)


def test_a_configuration_made_by_hand_is_checked_too():
    with pytest.raises(ValueError, match="keep must be > 0, got 0"):
        TrainConfig(keep=0)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", "batch = ", r"a\.toml: Invalid value"),
        ("a.toml", "batch = 3\nbatch = 4", r"a\.toml: Cannot overwrite a value"),
        ("a.toml", "[data]\nwhen = 2020-01-01", r"a\.toml: data must hold numbers, texts, lists and tables only"),
        ("a.json", "{", r"a\.json: Expecting property name"),
        ("a.json", '{"bach": 1}', r"a\.json: unknown key 'bach'; did you mean 'batch'"),
        ("a.yaml", "batch: 3", r"a\.yaml: a configuration is a \.toml or a \.json file"),
    ],
)
def test_a_file_that_cannot_be_understood_is_named(tmp_path: Path, name: str, text: str, words: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        load(tmp_path / name)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"none\.toml: cannot be read \(No such file or directory\)"):
        load(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'base = "caf\xe9"')
    with pytest.raises(ValueError, match=r"latin\.toml: 'utf-8' codec"):
        load(tmp_path / "latin.toml")


def test_differences_are_named_by_their_keys():
    old = {"batch": 3, "data": {"size": 64, "old": 1}, "same": [1]}
    new = {"batch": 4, "data": {"size": 32, "new": {"a": 1}}, "same": [1]}
    assert differences(old, new) == [
        "batch was 3 and is 4",
        'data.new was nothing and is {"a": 1}',
        "data.old was 1 and is nothing",
        "data.size was 64 and is 32",
    ]
