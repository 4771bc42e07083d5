"""ControlNets' files: what diffusers reads of ours, and we of theirs, gives the same 13 residuals.

Limits: 1e-5 small, float32 through some 60 layers (measured about 1e-6); 1e-4 at full size.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import weights_convert
from ldm.adapters.controlnet import ControlNet, ControlNetConfig, Net
from ldm.conditioning import Conditioning
from ldm.models.layers import Params, bind, shapes
from ldm.models.unet import Features
from weights_convert import export_control, load_control
from weights_convert.adapters.controlnet_export import public
from weights_convert.tables import controlnet as table

from . import layouts, oracle, ours
from .layouts import AFFINE, join, load_file, save_file
from .oracle import agree, gaussian, nchw, nhwc, torch

TINY, FULL = 1e-5, 1e-4
KEYS = Path(__file__).parents[3] / "shared" / "data" / "keys" / "cnetkeys.json"
WIDTHS = (8, 12, 16, 24)
PREFIX = "control_model."
FAMILIES = ["sd1", "sd2"]


def model_of(family: str, full: bool = False) -> Any:
    """``ControlNetModel`` of a family, abstract."""
    sizes = (oracle.UNETS if full else oracle.TINY_UNETS)[family]
    numbers = {name: value for name, value in sizes.items() if name != "up_block_types"}
    widths = {} if full else {"conditioning_embedding_out_channels": WIDTHS}
    return oracle.abstract(oracle.diffusers.ControlNetModel, **numbers, **widths)


def original_names(model: Any) -> dict[str, str]:
    """The original file's name of every parameter, by turning diffusers' converter around."""
    res = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection", "op"]
    wanted = list(model.state_dict())
    transformer = {name.split("attentions.")[1].split(".", 1)[1] for name in wanted if "attentions." in name}
    blocks = [f"input_blocks.{i}." for i in range(12)]
    names = join(("time_embed.0", "time_embed.2", "input_blocks.0.0", "middle_block_out.0"), AFFINE)
    names += join((f"input_hint_block.{i}" for i in range(0, 16, 2)), AFFINE)
    names += join((f"zero_convs.{i}.0" for i in range(12)), AFFINE)
    names += join([f"{block}0." for block in blocks[1:]] + ["middle_block.0.", "middle_block.2."], res, AFFINE)
    names += join([f"{block}1." for block in blocks[1:]] + ["middle_block.1."], transformer)
    convert = lambda numbered: layouts.converters.convert_controlnet_checkpoint(numbered, model.config)
    return layouts.turn_around(convert, join((PREFIX,), names), wanted)


def original_file(model: Any) -> dict[str, Any]:
    """The tensors of an original file with prefix."""
    names = original_names(model)
    return {names[name]: value.contiguous() for name, value in model.state_dict().items()}


@partial(jax.jit, static_argnums=0)
def control(config: ControlNetConfig, params: Params, *inputs: Any) -> Features:
    """Our ControlNet, compiled once for each family."""
    return bind(ControlNet, config, params)(*inputs)


def residuals(title: str, net: Net, model: Any, limit: float, size: tuple[int, int] = (8, 16)) -> None:
    """Ours against theirs, for one batch."""
    c, (h, w) = net.config, size
    x, hint = gaussian(1, 2, h, w, 4), gaussian(2, 2, 8 * h, 8 * w, 3)
    context, t = gaussian(3, 2, 7, c.unet.context_dim), np.array([1.0, 981.0], np.float32)
    want = model(nchw(x), torch.from_numpy(t), torch.from_numpy(context), nchw(hint), return_dict=False)
    got = control(c, net.params, x, t, Conditioning(context), hint)
    pairs = [(a, nhwc(b)) for a, b in zip((*got.skips, got.middle), (*want[0], want[1]), strict=True)]
    assert len(pairs) == 13
    agree(f"{title}, the worst of 13 residuals", *max(pairs, key=lambda pair: oracle.rel(*pair)), limit)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """A small one of each family, no weight of them zero."""
    return {family: oracle.randomize(model_of(family), seed) for seed, family in enumerate(FAMILIES)}


@pytest.mark.parametrize("family", FAMILIES)
def test_their_layouts_read_by_us(family: str, models: dict, tmp_path: Path):
    model, tensors = models[family], original_file(models[family])
    model.save_pretrained(tmp_path / "folder")
    residuals(f"{family} diffusers folder", net := load_control(tmp_path / "folder"), model, TINY)
    bare = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
    for title, named in (("original", tensors), ("without prefix", bare), ("diffusers names", model.state_dict())):
        (tmp_path / title).mkdir()
        save_file({name: value.clone() for name, value in named.items()}, tmp_path / title / "net.safetensors")
    torch.save(tensors | layouts.buffers(), tmp_path / "v11.pth")
    whole = tensors | layouts.unet_file(oracle.randomize(oracle.unet(family))) | layouts.buffers()
    torch.save({"state_dict": whole, "global_step": 1}, tmp_path / "whole.pth")
    for source in ("original", "without prefix", "diffusers names", "v11.pth", "whole.pth"):
        read = load_control(tmp_path / source)
        assert read.config == net.config and ours.same(read.params, net.params), source


@pytest.mark.parametrize("family", FAMILIES)
def test_our_layouts_read_by_them(family: str, models: dict, tmp_path: Path):
    config = table.config_from_json(models[family].config, "the oracle")
    specs = enumerate(shapes(ControlNet, config).items())
    net = Net(config, {name: gaussian(i, *s.shape) * (s.size // s.shape[-1] or 1) ** -0.5 for i, (name, s) in specs})
    export_control(net, tmp_path / "folder", "diffusers")
    export_control(net, tmp_path / "net.safetensors", "original")
    load, local = oracle.diffusers.ControlNetModel, {"local_files_only": True}
    residuals(f"{family} exported folder", net, load.from_pretrained(tmp_path / "folder", **local), TINY)
    made = load.from_single_file(str(tmp_path / "net.safetensors"), config=str(tmp_path / "folder"), **local)
    residuals(f"{family} exported original", net, made, TINY)
    theirs, written = models[family].state_dict(), load_file(tmp_path / "folder/diffusion_pytorch_model.safetensors")
    assert {name: value.shape for name, value in written.items()} == {name: v.shape for name, v in theirs.items()}
    file = load_file(tmp_path / "net.safetensors")
    assert {k: v.shape for k, v in file.items()} == {k: v.shape for k, v in original_file(models[family]).items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_differences_and_control_loras(family: str, models: dict, tmp_path: Path):
    """The sum is made here, in PyTorch, and read by diffusers. Changes are smaller than what they change, so that the
    sums keep activations near unit size."""
    unet = oracle.randomize(oracle.unet(family), 7)
    unet.save_pretrained(tmp_path / "unet")
    models[family].save_config(tmp_path / "config")
    bundle = weights_convert.load(tmp_path / "unet")
    base = {name.removeprefix(layouts.UNET): value for name, value in layouts.unet_file(unet).items()}
    own = {name.removeprefix(PREFIX): value for name, value in original_file(models[family]).items()}
    deltas = {PREFIX + name: value / 8 if name in base else value.clone() for name, value in own.items()}
    sums = {name: base.get(name, 0) + deltas[PREFIX + name] for name in own}
    save_file(deltas | {"difference": torch.ones(1)}, tmp_path / "difference")
    compare(f"{family} differences", load_control(tmp_path / "difference", bundle), sums, tmp_path)

    file, sums = {"lora_controlnet": torch.zeros(0)}, dict(own)
    generator = torch.Generator().manual_seed(1)
    for name, value in own.items():
        if value.ndim > 1 and name in base:
            o, i, window = *value.shape[:2], value.shape[2:]
            up = torch.randn(o, 4, *[1] * len(window), generator=generator) / 4
            down = torch.randn(4, i, *window, generator=generator) / (i * window.numel()) ** 0.5
            product = torch.einsum("or,r...->o...", up.flatten(1), down)
            layer, sums[name] = name.removesuffix(".weight"), base[name] + product
            file |= {f"{layer}.up": up, f"{layer}.down": down}
        else:
            file[name] = value.clone()
    save_file(file, tmp_path / "lora")
    compare(f"{family} control-LoRA", load_control(tmp_path / "lora", bundle), sums, tmp_path)


def compare(title: str, net: Net, sums: dict, folder: Path) -> None:
    """A net of ours against the original file of ``sums`` as diffusers reads it."""
    path = folder / f"{title}.safetensors"
    save_file({PREFIX + name: value.contiguous() for name, value in sums.items()}, path)
    load = oracle.diffusers.ControlNetModel.from_single_file
    residuals(title, net, load(str(path), config=str(folder / "config"), local_files_only=True), TINY)


# ---- full size ----


@pytest.mark.parametrize("family", FAMILIES)
def test_names_at_full_size(family: str):
    model = model_of(family, full=True)
    config = table.config_from_json(model.config, "the oracle")
    single, names = ours.tensors(original_file(model), PREFIX), original_names(model)
    in_folder = ours.bijection(ControlNet, config, ours.tensors(model.state_dict()), table.layouts(config))
    in_file = ours.bijection(ControlNet, config, single, table.layouts(config))
    assert in_file == {ours_: names[public].removeprefix(PREFIX) for ours_, public in in_folder.items()}
    for tensors in (single, ours.tensors(model.state_dict())):
        assert table.config_from_shapes(tensors) == config


@pytest.mark.parametrize(("family", "key"), [("sd1", "s15"), ("sd2", "s21")])
def test_names_and_shapes_are_those_of_the_public_files(family: str, key: str):
    if not KEYS.exists():
        pytest.skip("../shared/data/keys/cnetkeys.json is not there")
    known = {name.removeprefix(PREFIX): tuple(shape) for name, shape in json.loads(KEYS.read_text())[key].items()}
    assert len(known) == 340
    model = model_of(family, full=True)
    assert {name: tuple(tensor.shape) for name, tensor in ours.tensors(original_file(model), PREFIX).items()} == known
    config = table.config_from_json(model.config, "the oracle")
    empty = {name: np.zeros(s.shape, np.int8) for name, s in shapes(ControlNet, config).items()}
    written = public(Net(config, empty), table.single_file(config))
    assert {name: array.shape for name, array in written.items()} == known


@pytest.mark.full
def test_full_size(tmp_path: Path):
    model = oracle.randomize(model_of("sd1", full=True), 4)
    save_file(original_file(model), tmp_path / "net.safetensors")
    net = load_control(tmp_path / "net.safetensors")
    residuals("ControlNet at full size, 256x256", net, model, FULL, (32, 32))
    export_control(net, tmp_path / "folder", "diffusers")
    again = load_file(tmp_path / "folder/diffusion_pytorch_model.safetensors")
    theirs = model.state_dict()
    assert again.keys() == theirs.keys() and all(torch.equal(again[name], value) for name, value in theirs.items())
