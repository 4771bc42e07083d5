"""Which file of a folder is read, shards by all their names, and what is fetched of the hub's repositories."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from tests import checkpoint_files as make
from tests.test_reading import assert_same, written
from weights_convert.reading import CheckpointError, fetch, read_component, read_sharded
from weights_convert.reading.hub import choose


def one(value: float) -> bytes:
    """A file of one number, to see which file was read."""
    return make.safetensors_bytes({"x": np.array(value, np.float32)})


def sharded(folder: Path, index: str, shards: dict[str, dict[str, np.ndarray]], **metadata: object) -> None:
    """Shards and the index of them."""
    for name, arrays in shards.items():
        written(folder, make.safetensors_bytes(arrays), name)
    weight_map = {key: name for name, arrays in shards.items() for key in arrays}
    (folder / index).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))


@pytest.mark.parametrize(
    ("names", "variant", "chosen"),
    [
        (("net.bin", "net.safetensors"), None, 1),
        (("net.fp16.safetensors", "net.bin"), None, 1),
        (("net.fp16.safetensors", "net.non_ema.bin", "net.bf16.safetensors"), None, 1),
        (("net.odd.bin", "net.bf16.bin"), None, 1),
        (("net.bin", "net.fp16.bin"), "fp16", 1),
        (("old.safetensors", "net.bin"), None, 0),
        (("net.bin", "old.safetensors"), None, 1),
    ],
)
def test_which_file_of_a_folder_is_read(tmp_path, names, variant, chosen):
    for value, name in enumerate(names):
        written(tmp_path, one(value), name)
    assert read_component(tmp_path, ("net", "old"), variant).tensors["x"].read() == chosen


@pytest.mark.parametrize(
    ("index", "shards", "variant"),
    [
        ("net.safetensors.index.json", "net-0000{}-of-00002.safetensors", None),
        ("net.safetensors.index.fp16.json", "net.fp16-0000{}-of-00002.safetensors", "fp16"),
        ("net.safetensors.index.fp16.json", "net-0000{}-of-00002.fp16.safetensors", "fp16"),
        ("net.safetensors.fp16.index.json", "net-0000{}-of-00002.fp16.safetensors", "fp16"),
        ("net.safetensors.index.fp16.json", "net.fp16-0000{}-of-00002.safetensors", None),
        ("net.bin.index.json", "net-0000{}-of-00002.bin", None),
    ],
)
def test_shards_by_every_name_they_have(tmp_path, index, shards, variant):
    arrays = make.example_arrays()
    halves = dict(list(arrays.items())[:3]), dict(list(arrays.items())[3:])
    sharded(tmp_path, index, {shards.format(k + 1): half for k, half in enumerate(halves)})
    assert_same(read_component(tmp_path, "net", variant).tensors, arrays)


def test_shards_may_be_links(tmp_path):
    blob = written(tmp_path, one(3), "a1b2c3")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "net-00001-of-00001.safetensors").symlink_to(blob)
    (tmp_path / "snapshot" / "net.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "net-00001-of-00001.safetensors"}})
    )
    assert read_component(tmp_path / "snapshot", "net").tensors["x"].read() == 3


def test_a_wrong_total_size_is_a_warning_and_a_right_one_is_not(tmp_path):
    x = {"net-1.safetensors": {"x": np.zeros(3, np.float32)}}
    sharded(tmp_path, "net.safetensors.index.json", x, total_size=12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_component(tmp_path, "net")
    sharded(tmp_path, "net.safetensors.index.json", x, total_size=13)
    with pytest.warns(UserWarning, match="total_size is 13, the shards' tensors have 12 bytes"):
        read_sharded(tmp_path / "net.safetensors.index.json")


def test_a_folder_without_the_weights_says_what_it_has(tmp_path):
    written(tmp_path, b"{}", "config.json")
    written(tmp_path, one(1), "net.safetensors")
    with pytest.raises(CheckpointError, match=r"fp16.*net.*is missing.*config\.json, net\.safetensors"):
        read_component(tmp_path, "net", "fp16")
    with pytest.raises(CheckpointError, match="cannot be read as a folder"):
        read_component(tmp_path / "nowhere", "net")


def test_what_is_fetched_of_a_repository():
    files = """README.md model_index.json v1-5.safetensors v1-5.ckpt scheduler/scheduler_config.json
        unet/config.json unet/diffusion_pytorch_model.bin unet/diffusion_pytorch_model.safetensors
        unet/diffusion_pytorch_model.fp16.safetensors unet/diffusion_pytorch_model.non_ema.safetensors
        vae/diffusion_pytorch_model.bin vae/diffusion_pytorch_model.fp16.safetensors
        text_encoder/model.safetensors.index.json text_encoder/model.safetensors.index.fp16.json
        text_encoder/model-00001-of-00002.safetensors text_encoder/model-00002-of-00002.safetensors
        text_encoder/model.fp16-00001-of-00002.safetensors text_encoder/pytorch_model.bin
        tokenizer/vocab.json tokenizer/merges.txt safety_checker/config.json safety_checker/model.safetensors"""
    assert choose(files.split()) == [
        *("model_index.json", "safety_checker/config.json", "scheduler/scheduler_config.json"),
        *("text_encoder/model.safetensors.index.json", "text_encoder/model-00001-of-00002.safetensors"),
        *("text_encoder/model-00002-of-00002.safetensors", "tokenizer/merges.txt", "tokenizer/vocab.json"),
        *("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin"),
    ]
    assert choose(["a.safetensors", "a.bin", "b.txt"]) == ["b.txt", "a.safetensors"]
    assert choose(["a.ckpt", "models/b.bin"]) == ["a.ckpt", "models/b.bin"]


@pytest.mark.parametrize(
    ("failure", "phrase"),
    [
        ("OfflineModeIsEnabled", "not in the cache, and the hub cannot be reached"),
        ("RepositoryNotFoundError", "not on the hub, or is private"),
        ("RevisionNotFoundError", "not this revision"),
        ("GatedRepoError", "is gated"),
    ],
)
def test_why_a_repository_cannot_be_fetched(monkeypatch, failure, phrase):
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*args, **kwargs):
        kind = getattr(errors, failure)
        raise kind.__new__(kind)  # some want a server's response to be made

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=phrase):
        fetch("nobody/nothing", "main")


def test_a_hub_id_must_look_like_one():
    with pytest.raises(CheckpointError, match="is no hub id"):
        fetch("a/b/c/d")
