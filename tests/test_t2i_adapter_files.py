"""Public T2I-Adapter files: names and shapes of the originals, configurations, and what is refused."""

import dataclasses

import pytest

from ldm.adapters.t2i_adapter import LIGHT, SDXL, T2IAdapterConfig
from weights_convert.adapters.t2i_adapter import t2i_part
from weights_convert.engine import compare
from weights_convert.families import identify
from weights_convert.tables import t2i_adapter as table

GREY = dataclasses.replace(T2IAdapterConfig(), in_channels=1)


@dataclasses.dataclass(frozen=True)
class Named:
    """A tensor of which only the shape is asked."""

    shape: tuple[int, ...]


def weight_and_bias(name, c_out, c_in, window):
    """The two tensors of a public convolution."""
    return {f"{name}.weight": Named((c_out, c_in, window, window)), f"{name}.bias": Named((c_out,))}


def original_full(seen=192, c=(320, 640, 1280, 1280)):
    """The published full adapters' names and shapes, written down apart from our table."""
    tensors = weight_and_bias("conv_in", c[0], seen, 3)
    for n in range(8):
        tensors |= weight_and_bias(f"body.{n}.block1", c[n // 2], c[n // 2], 3)
        tensors |= weight_and_bias(f"body.{n}.block2", c[n // 2], c[n // 2], 1)
    return tensors | weight_and_bias("body.2.in_conv", c[1], c[0], 1) | weight_and_bias("body.4.in_conv", c[2], c[1], 1)


def original_light():
    """The published light (colour) adapter's."""
    tensors = {}
    for n, (c_in, c) in enumerate([(192, 320), (320, 640), (640, 1280), (1280, 1280)]):
        tensors |= weight_and_bias(f"body.{n}.in_conv", c // 4, c_in, 1) | weight_and_bias(
            f"body.{n}.out_conv", c, c // 4, 1
        )
        for j in range(4):
            for k in (1, 2):
                tensors |= weight_and_bias(f"body.{n}.body.{j}.block{k}", c // 4, c // 4, 3)
    return tensors


@pytest.mark.parametrize(
    ("tensors", "count", "config"),
    [
        (original_full(), 38, T2IAdapterConfig()),
        (original_full(64), 38, GREY),
        (original_full(768), 38, SDXL),
        (original_light(), 80, LIGHT),
    ],
    ids=["full", "grey", "sdxl", "light"],
)
def test_the_original_layouts_fit_name_by_name(tensors, count, config):
    assert len(tensors) == count
    part = t2i_part("adapter.pth", tensors)
    assert part.config == config
    assert str(compare(part)) == ""
    nested = t2i_part("adapter.pth", {f"adapter.{name}": tensor for name, tensor in tensors.items()})
    assert nested.tensors == part.tensors
    assert identify(tensors).name == "a T2I-Adapter"


STYLE = {"style_embedding": Named((1, 8, 1024)), "proj": Named((1024, 768))} | weight_and_bias("ln_pre", 9, 9, 1)


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        (STYLE, "x.pth: this is a T2I style adapter"),
        ({"task_embedding": Named((16, 768))}, "x.pth: this is a CoAdapter's fuser"),
        ({}, "x.pth: this is not a whole T2I-Adapter: it has 0 bodies"),
        ({**original_full(), "conv_in.weight": Named((320, 100, 3, 3))}, "sees 100 channels, but a multiple of 64"),
        ({**original_full(), "conv_in.weight": Named((320, 192))}, "but 4 axes, none empty, are expected"),
        ({k: v for k, v in original_full().items() if k != "conv_in.weight"}, "tensor 'conv_in.weight' is missing"),
        ({**original_light(), "body.0.in_conv.weight": Named((80, 768, 1, 1))}, "an adapter for SDXL, which is full"),
        ({**original_light(), "body.1.out_conv.weight": Named((3, 1, 1, 1))}, "its maps have 3 channels"),
        ({"body.999999.block1.weight": Named((1, 1, 1, 1))}, "a number in its name that 1 tensors do not allow"),
    ],
)
def test_what_is_no_adapter_is_refused_in_a_sentence(tensors, told):
    with pytest.raises(ValueError, match=told) as error:
        t2i_part("x.pth", tensors)
    assert "\n" not in str(error.value)


def test_style_adapters_are_named_by_the_inspection():
    assert identify(STYLE).name == "a T2I style adapter"


@pytest.mark.parametrize(
    ("data", "config"),
    [
        ({}, T2IAdapterConfig()),
        ({"adapter_type": "full_adapter_xl", "downscale_factor": 16, "in_channels": 3}, SDXL),
        ({"adapter_type": "light_adapter", "channels": [320, 640, 1280], "num_res_blocks": 4}, LIGHT),
    ],
)
def test_configurations(data, config):
    assert table.config_from_json(data, "config.json") == config


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"adapter_type": "style"}, "adapter_type is 'style', but one of full_adapter"),
        ({"adapter_type": "full_adapter_xl"}, "downscale_factor is 8, but 16 is expected of a full_adapter_xl"),
        ({"downscale_factor": 16}, "downscale_factor is 16, but 8 is expected of a full_adapter"),
        ({"adapter_type": "full_adapter_xl", "downscale_factor": 16, "channels": [8, 8]}, ".* 4 of them are expected"),
        ({"channels": "wide"}, "channels is 'wide', but a list of 1 to 8 whole numbers"),
        ({"num_res_blocks": 0}, "num_res_blocks is 0, but a whole number from 1"),
    ],
)
def test_configurations_that_cannot_be_are_refused(data, told):
    with pytest.raises(ValueError, match=rf"config\.json: {told}"):
        table.config_from_json(data, "config.json")
