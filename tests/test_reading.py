"""Good checkpoint files come back bit for bit, from each container and one at a time."""

import gc
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from tests import checkpoint_files as make
from tests.checkpoint_files import FOUR
from weights_convert.reading import CheckpointError, read_component, read_file

SHARED = Path(__file__).parents[2] / "shared" / "data"
WRITERS = {"safetensors": make.safetensors_bytes, "zip": make.torch_zip_bytes, "legacy": make.legacy_arrays}


def written(folder: Path, data: bytes, name: str = "file") -> Path:
    """A file of these bytes."""
    (folder / name).write_bytes(data)
    return folder / name


def assert_same(tensors, arrays) -> None:
    """Names in order, types, shapes and bits."""
    assert list(tensors) == list(arrays)
    for name, array in arrays.items():
        read = tensors[name].read()
        assert (read.dtype, read.shape) == (array.dtype, array.shape) == (tensors[name].dtype, tensors[name].shape)
        assert read.tobytes() == array.tobytes()


@pytest.mark.parametrize("container", WRITERS)
def test_arrays_come_back_bit_for_bit_whatever_the_file_is_called(tmp_path, container):
    arrays = make.example_arrays()
    for name in ("model.safetensors", "model.ckpt", "model"):
        assert_same(read_file(written(tmp_path, WRITERS[container](arrays), name)).tensors, arrays)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(WRITERS)), st.data())
def test_any_arrays_come_back(tmp_path_factory, container, data):
    dtypes = st.sampled_from([np.dtype(kind) for kind in ("f4", "f2", "i8", "u1", "?", ml_dtypes.bfloat16)])
    shapes = arrays_of.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
    raw = st.binary(min_size=8, max_size=8)
    names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "state_dict")

    def array(dtype, shape, seed):
        values = np.random.default_rng(list(seed)).integers(0, 2, size=(*shape, dtype.itemsize), dtype=np.uint8)
        return values.view(dtype).reshape(shape)

    arrays = data.draw(st.dictionaries(names, st.builds(array, dtypes, shapes, raw), max_size=4))
    path = written(tmp_path_factory.mktemp("any"), WRITERS[container](arrays))
    assert_same(read_file(path).tensors, arrays)


def test_strided_tensors_and_shared_storages(tmp_path):
    storage = np.arange(24, dtype=np.float32)
    cases = {
        "transposed": (make.Saved("0", "float32", 24, (6, 4), (1, 6)), storage.reshape(4, 6).T),
        "stepped": (make.Saved("0", "float32", 24, (3,), (5,), 2), storage[2:17:5]),
        "expanded": (make.Saved("0", "float32", 24, (3, 2), (0, 1), 7), np.stack([storage[7:9]] * 3)),
        "one sized axes": (make.Saved("0", "float32", 24, (1, 4), (99, 1), 20), storage[None, 20:]),
        "scalar": (make.Saved("0", "float32", 24, (), (), 23), storage[23]),
    }
    content = {name: saved for name, (saved, _) in cases.items()}
    zipped = make.zip_bytes(make.torch_entries(content, [storage.tobytes()]))
    legacy = make.legacy_bytes(content, {"0": (24, storage.tobytes())})
    for data in (zipped, legacy):
        assert_same(read_file(written(tmp_path, data)).tensors, {name: array for name, (_, array) in cases.items()})


def test_a_view_of_an_old_storage_starts_where_it_says(tmp_path):
    storage = np.arange(10, dtype=np.float32)
    saved = make.Saved("0", "float32", 10, (2, 2), (2, 1), 1)
    view = make.tensor(saved, make.storage_id(saved, ("view", 3, 6)))
    path = written(tmp_path, make.legacy_bytes({"x": view}, {"0": (10, storage.tobytes())}))
    assert_same(read_file(path).tensors, {"x": storage[4:8].reshape(2, 2)})


def test_sixty_four_bit_zip_fields_and_wrong_checksums_are_read(tmp_path):
    array = np.arange(3, dtype=np.float32)
    entries = make.torch_entries(make.saved_arrays({"x": array}), [array.tobytes()])
    wrong = [make.Entry(entry.name, entry.data, crc=1) for entry in entries]
    for data in (make.zip_bytes(entries, wide=True), make.zip_bytes(wrong), make.zip_bytes(wrong, wide=True)):
        assert_same(read_file(written(tmp_path, data)).tensors, {"x": array})


def zip_of(folder: Path, content: object) -> Path:
    """A zip file by PyTorch of one pickled object over one storage of four floats."""
    return written(folder, make.zip_bytes(make.torch_entries(content, [np.arange(4, dtype=np.float32).tobytes()])))


INERT = make.name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
NUMPY = make.name("numpy.core.multiarray", "scalar") + make.pickled((make.name("numpy", "dtype"), b"C\x01a")) + b"R"
ORDERED = make.name("collections", "OrderedDict") + b")R" + b"(" + make.pickled("w") + make.tensor(FOUR) + b"u"
PARAMETERS = make.name("torch.nn.modules.container", "ParameterDict") + b")\x81"
SCRIPT = make.name("__torch__.model", "CLIP") + b")\x81"
LAYOUTS = {
    "flat": ({"a.b": FOUR}, ["a.b"], {}),
    "training checkpoint": (
        {"state_dict": {"w": FOUR}, "global_step": 7, "callbacks": {INERT: {"best": NUMPY}}, "optimizer": [FOUR]},
        ["w"],
        {"global_step": 7},
    ),
    "state dict in a state dict": ({"state_dict": {"state_dict": {"w": FOUR}, "epoch": 1}}, ["w"], {"epoch": 1}),
    "nested": ({"model": {"w": FOUR}, "ema": {"w": FOUR}}, ["model.w", "ema.w"], {}),
    "list": ({"params": [FOUR, {"w": FOUR}]}, ["params.0", "params.1.w"], {}),
    "integer keys": ({0: FOUR, 1: 2.5}, ["0"], {"1": 2.5}),
    "attributes of a state dict": (
        {"m": ORDERED + make.pickled({"_metadata": {"": {"version": 1}}}) + b"b"},
        ["m.w"],
        {},
    ),
    "parameter dict": ({"p": PARAMETERS + make.pickled({"_parameters": {"*": FOUR}}) + b"b"}, ["p.*"], {}),
    "TorchScript": (SCRIPT + make.pickled({"v": FOUR, "t": True}) + b"b", ["v"], {"t": True}),
    "parameter": (
        {"w": make.name("torch._utils", "_rebuild_parameter") + make.pickled((FOUR, True, {})) + b"R"},
        ["w"],
        {},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_pickled_files(tmp_path, layout):
    content, names, extras = LAYOUTS[layout]
    checkpoint = read_file(zip_of(tmp_path, content))
    assert_same(checkpoint.tensors, {name: np.arange(4, dtype=np.float32) for name in names})
    assert checkpoint.extras == extras


def test_metadata_of_safetensors(tmp_path):
    data = make.safetensors_bytes({"x": np.zeros(2, np.float32)}, {"format": "pt"})
    assert read_file(written(tmp_path, data)).metadata == {"format": "pt"}


def test_a_safetensors_header_may_have_any_length(tmp_path):
    """The length is the file's first byte, which must not be taken for the first of "{", "<" or a pickle."""
    header = b'{"x":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'
    for length in (*range(len(header), len(header) + 256), 0x0280, 0x0480, 0x8B1F):
        data = make.safetensors_raw(header.ljust(length), b"abc")
        assert read_file(written(tmp_path, data)).tensors["x"].read().tobytes() == b"abc"


def test_unaligned_numbers_are_read(tmp_path):
    header = b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    while (len(header) + 8) % 4 != 1:
        header += b" "
    array = np.array([1.5, -2], np.float32)
    read = read_file(written(tmp_path, make.safetensors_raw(header, array.tobytes()))).tensors["x"].read()
    assert read.flags.aligned and (read == array).all()


def mapped(path: Path) -> int:
    """How many mappings of ``path`` this process has."""
    return Path("/proc/self/maps").read_text().count(os.fspath(path))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mappings")
@pytest.mark.parametrize("container", WRITERS)
def test_a_file_is_mapped_only_as_long_as_one_of_its_arrays_lives(tmp_path, container):
    path = written(tmp_path, WRITERS[container]({"x": np.zeros(4096, np.float32), "y": np.zeros(4096, np.float32)}))
    tensors = read_file(path).tensors
    assert mapped(path) == 0
    for tensor in tensors.values():
        array = tensor.read()
        assert mapped(path) <= 1
        del array
        gc.collect()
        assert mapped(path) == 0


def test_a_file_that_shrinks_is_reported(tmp_path):
    path = written(tmp_path, make.safetensors_bytes({"x": np.zeros(4096, np.float32)}))
    tensor = read_file(path).tensors["x"]
    path.write_bytes(b"short")
    with pytest.raises(CheckpointError, match="changed since it was opened"):
        tensor.read()


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not here")
def test_real_files():
    two = [read_file(SHARED / "lora" / f"pytorch_lora_weights.{ending}").tensors for ending in ("bin", "safetensors")]
    assert two[0].keys() == two[1].keys() and len(two[0]) == 256
    assert all(two[0][name].shape == two[1][name].shape for name in two[0])  # their numbers are of two trainings
    embedding = read_file(SHARED / "textual_inversion" / "birb-style.bin").tensors["<birb-style>"]
    assert embedding.shape == (768,) and np.isfinite(embedding.read()).all()
    with pytest.raises(CheckpointError, match=r"git-LFS pointer of \d+ bytes to a file of 3\d{9} bytes"):
        read_component(SHARED / "layouts" / "sd-v1-4" / "unet", "diffusion_pytorch_model")
