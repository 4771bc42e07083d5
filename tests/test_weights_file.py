"""Parameters in a file: any tool reads it, nearly nothing is copied on loading, and it is checked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ldm import weights_file

ARRAYS = {
    "odd": np.arange(5, dtype=np.float32),
    "large": np.arange(4096, dtype=np.float32).reshape(64, 64).T,
    "half": np.arange(32, dtype=np.float16),
    "brain": np.asarray(jnp.arange(64, dtype=jnp.bfloat16).reshape(2, 32)),
    "scalar": np.float32(3).reshape(()),
    "none": np.zeros((0, 4), np.float32),
}


@pytest.fixture
def path(tmp_path):
    """A file of ``ARRAYS``."""
    weights_file.write(ARRAYS, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("read", [weights_file.read, load_file], ids=["ours", "the library"])
def test_what_is_written_is_read(path, read):
    got = read(path)
    assert got.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert got[name].dtype == array.dtype
        assert got[name].shape == array.shape
        assert np.array_equal(got[name], array)


def test_a_file_of_the_library_is_read(tmp_path):
    save_file({"a": np.ones((2, 3), np.float32)}, tmp_path / "y.safetensors", {"format": "np"})
    assert np.array_equal(weights_file.read(tmp_path / "y.safetensors")["a"], np.ones((2, 3)))


def test_large_arrays_are_aligned_and_stay_where_they_lie(path):
    large = weights_file.read(path)["large"]
    assert large.ctypes.data % weights_file.ALIGNMENT == 0
    assert not large.flags.writeable
    on_device = jax.device_put(large)
    if jax.default_backend() == "cpu":
        assert on_device.unsafe_buffer_pointer() == large.ctypes.data


def test_what_cannot_be_read_is_named(path, tmp_path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"x\.safetensors: cannot be read"):
        weights_file.read(path)
    save_file({"a": np.ones(2, np.int8)}, tmp_path / "z.safetensors")
    with pytest.raises(ValueError, match="holds I8 numbers, where F32, F16, BF16 are expected"):
        weights_file.read(tmp_path / "z.safetensors")
