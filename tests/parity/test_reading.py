"""Our reader against PyTorch and the safetensors package: the same files, the same names, the same bits.

PyTorch writes the files here with its own ``torch.save``, in both containers, and reads them with ``torch.load``.
"""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle extra is not installed (no torch)")
safetensors = pytest.importorskip("safetensors", reason="the oracle extra is not installed (no safetensors)")
safetensors_torch = pytest.importorskip("safetensors.torch")

from tests import checkpoint_files as make  # noqa: E402
from tests.hostile_files import SAFETENSORS  # noqa: E402
from weights_convert.reading import CheckpointError, read_file  # noqa: E402

SHARED = Path(__file__).parents[3] / "shared" / "data"
BASE = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))
EIGHT_BITS = [
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
]
DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.uint16, torch.uint32, torch.uint64),
    *EIGHT_BITS,
]
VIEWS: dict[str, Callable] = {
    "transposed": lambda x: x.transpose(0, 2),
    "permuted": lambda x: x.permute(2, 0, 1),
    "channels last": lambda x: x[None].contiguous(memory_format=torch.channels_last),
    "stepped": lambda x: x[::2, 1::3, ::2],
    "sliced": lambda x: x[2:5, :, 1],
    "expanded": lambda x: x[:1, :, None].expand(6, 5, 3, 4),
    "expanded scalar": lambda x: x[0, 0, 0].expand(3, 3),
    "scalar": lambda x: x[3, 2, 1],
    "empty": lambda x: x[:, :0],
    "overlapping": lambda x: x.flatten().unfold(0, 7, 2),
    "parameter": lambda x: torch.nn.Parameter(x),
    "parameter with an attribute": lambda x: with_attribute(torch.nn.Parameter(x)),
    "tensor with an attribute": lambda x: with_attribute(x.clone()),
    "views of one storage": lambda x: [x, x[1:], x.transpose(0, 1), x.flatten()[7:]],
}


def with_attribute(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with a Python attribute, which is pickled in another way."""
    tensor.note = "x"
    return tensor


def bits(tensor: torch.Tensor) -> bytes:
    """A tensor's numbers in C order."""
    return tensor.detach().resolve_conj().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def flat(value: object, prefix: str = "") -> dict[str, torch.Tensor]:
    """Nested dicts and lists of tensors by dotted name."""
    if isinstance(value, torch.Tensor):
        return {prefix: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {n: t for key, inner in pairs for n, t in flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()}


def assert_same(path: Path, theirs: dict[str, torch.Tensor]) -> None:
    """Names, shapes, types and bits; prints the relative error, which can only be 0."""
    ours = read_file(path).tensors
    assert list(ours) == list(theirs)
    different = 0
    for name, tensor in theirs.items():
        read = ours[name].read()
        assert (read.shape, str(read.dtype)) == (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        different += read.tobytes() != bits(tensor)
    print(f"{path.name}: {len(theirs)} tensors, {different} with other bits (relative error {float(different > 0)})")
    assert not different


@pytest.mark.parametrize(
    ("dtype", "zipped"),
    [(dtype, True) for dtype in DTYPES] + [(dtype, False) for dtype in DTYPES[:12]],  # PyTorch's old writer knows 12
    ids=lambda value: {True: "zip", False: "legacy"}.get(value, str(value)),
)
def test_every_type(tmp_path, dtype, zipped):
    tensor = (BASE * 3).to(torch.int16).to(dtype) if not dtype.is_floating_point else (BASE * 3).to(dtype)
    content = {"whole": tensor, "turned": tensor.transpose(0, 1), "scalar": tensor[0, 0, 0], "none": tensor[:0]}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert_same(tmp_path / "x.pt", torch.load(tmp_path / "x.pt", weights_only=True))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("view", VIEWS)
def test_every_stride(tmp_path, view, zipped):
    content = {"x": VIEWS[view](BASE), "y": VIEWS[view](BASE.bfloat16())}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    loaded = torch.load(tmp_path / "x.pt", weights_only="attribute" not in view)
    assert_same(tmp_path / "x.pt", flat(loaded))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_protocol_of_pickle(tmp_path, protocol, zipped):
    content = OrderedDict(x=BASE, ü={"y": [BASE[0], BASE[1]], "n": 1 << 40, "f": 0.5, "b": b"\xff", "s": {1, 2}})
    torch.save(content, tmp_path / "x.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert_same(tmp_path / "x.pt", flat(torch.load(tmp_path / "x.pt", weights_only=False)))
    assert read_file(tmp_path / "x.pt").extras == {"ü.n": 1 << 40, "ü.f": 0.5, "ü.s.0": 1, "ü.s.1": 2}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_training_checkpoint(tmp_path, zipped):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    with torch.enable_grad():
        model[2](torch.ones(4)).sum().backward()
    optimizer.step()
    content = {"state_dict": model.state_dict(), "global_step": 3, "optimizer_states": [optimizer.state_dict()]}
    content |= {"best": np.float64(0.5), "shape": torch.Size([1, 2]), "device": torch.device("cpu"), "t": torch.float16}
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped)
    assert_same(tmp_path / "x.ckpt", dict(model.state_dict()))
    assert read_file(tmp_path / "x.ckpt").extras == {"global_step": 3}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_dictionary_of_parameters(tmp_path, zipped):
    content = {"string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(BASE[0])}), "name": "birb"}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert_same(tmp_path / "x.pt", {"string_to_param.*": BASE[0]})


class Model(torch.nn.Module):
    """A module with what TorchScript treats specially: a parameter of no axes, a buffer, nested modules, a constant."""

    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.5))
        self.register_buffer("position_ids", torch.arange(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x) * self.logit_scale + torch.tensor([1.0, 2.0])


@pytest.mark.filterwarnings("ignore")  # the tracer warns of the constant that it is here to keep
@pytest.mark.parametrize("make_script", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(1, 3, 2, 2).half())])
def test_torchscript(tmp_path, make_script):
    model = Model().half().eval()
    make_script(model).save(tmp_path / "x.pt")
    assert_same(tmp_path / "x.pt", {name: model.state_dict()[name] for name in read_file(tmp_path / "x.pt").tensors})
    assert read_file(tmp_path / "x.pt").tensors.keys() == model.state_dict().keys()


def test_files_without_checksums(tmp_path):
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save({"x": BASE}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert_same(tmp_path / "x.pt", {"x": BASE})


@pytest.mark.parametrize(
    ("tensor", "phrase"),
    [
        (lambda: torch.eye(3).to_sparse(), "a sparse tensor"),
        (lambda: torch.quantize_per_tensor(BASE, 0.1, 0, torch.qint8), "a quantised tensor"),
        (lambda: torch.empty(3, device="meta"), "a shape without numbers"),
        (lambda: torch.ones(2, dtype=torch.complex64).conj(), "conjugated or negated"),
        (lambda: torch.ones(2, dtype=torch.complex32), "the type 'complex32', which is not read"),
    ],
    ids=["sparse", "quantised", "meta", "conjugated", "complex32"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_read_say_so(tmp_path, tensor, phrase):
    torch.save({"x": tensor()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=phrase):
        read_file(tmp_path / "x.pt")


def test_real_files_read_the_same():
    if not SHARED.exists():
        pytest.skip("../shared/data is not here")
    for path in sorted(SHARED.glob("lora/*.bin")) + sorted(SHARED.glob("textual_inversion/*.bin")):
        assert_same(path, flat(torch.load(path, weights_only=True, map_location="cpu")))
    for path in sorted(SHARED.glob("*/*.safetensors")):
        assert_same(path, safetensors_in_order(path))


def safetensors_in_order(path: Path) -> dict[str, torch.Tensor]:
    """The safetensors package's tensors, in the order of our reading (it does not keep the header's)."""
    theirs = safetensors_torch.load_file(path)
    return {name: theirs[name] for name in read_file(path).tensors} if theirs.keys() else {}


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.complex128], ids=str)
def test_every_type_of_safetensors(tmp_path, dtype):
    tensor = (BASE * 3).to(torch.int16).to(dtype) if not dtype.is_floating_point else (BASE * 3).to(dtype)
    content = {"whole": tensor, "scalar": tensor[0, 0, 0].clone(), "none": tensor[:0].clone()}
    safetensors_torch.save_file(content, tmp_path / "x.safetensors", {"a": "ü"})
    assert read_file(tmp_path / "x.safetensors").tensors.keys() == content.keys()
    assert read_file(tmp_path / "x.safetensors").metadata == {"a": "ü"}
    assert_same(tmp_path / "x.safetensors", safetensors_in_order(tmp_path / "x.safetensors"))


def theirs_reads(data: bytes) -> bool:
    """Whether the safetensors package takes the file."""
    try:
        safetensors_torch.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError, AttributeError, RuntimeError):
        return False
    return True


STRICTER = (
    "name twice",
    "header after a space",
    "shape of forty axes",
)  # where ours keeps the format's promises, or NumPy's limit


@pytest.mark.parametrize("bad", SAFETENSORS)
def test_the_package_refuses_the_same_files(bad):
    assert theirs_reads(SAFETENSORS[bad][0]) == (bad in STRICTER)


def test_files_that_we_write_by_hand_are_theirs_too(tmp_path):
    arrays = make.example_arrays()
    (tmp_path / "x.pt").write_bytes(make.torch_zip_bytes(arrays))
    (tmp_path / "y.pt").write_bytes(make.legacy_arrays(arrays))
    (tmp_path / "z").write_bytes(make.safetensors_bytes(arrays, {"format": "pt"}))
    for path in (tmp_path / "x.pt", tmp_path / "y.pt"):
        assert_same(path, torch.load(path, weights_only=True))
    assert_same(tmp_path / "z", safetensors_in_order(tmp_path / "z"))
