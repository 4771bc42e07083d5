"""ControlNet: its published size, and that it adds exactly nothing before it is trained."""

from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm.adapters.controlnet import ControlNet, ControlNetConfig
from ldm.conditioning import Conditioning
from ldm.models.layers import bind, init, shapes
from ldm.models.unet import UNet, UNetConfig

pytestmark = pytest.mark.optimised

TINY = ControlNetConfig(
    UNetConfig(channels=(32, 64), depth=(1, 0), heads=(4, 4), context_dim=24, groups=8), widths=(4, 8, 8, 8)
)


def gaussian(seed, *shape):
    """Unit noise."""
    return jax.random.normal(jax.random.key(seed), shape)


def test_size_is_the_published_one():
    """Claim 15: 42 % of the U-Net by parameters."""
    count = lambda model, config: sum(prod(spec.shape) for spec in shapes(model, config).values())
    net, unet = count(ControlNet, ControlNetConfig()), count(UNet, UNetConfig())
    assert (net, unet, round(100 * net / unet, 1)) == (361_279_120, 859_520_964, 42.0)


def test_shapes_are_those_of_the_real_networks():
    """Claims 15 and 16: 12 residuals and the middle's, of the skips' shapes; the hint becomes 64 x 64 x 320, by way of
    16, 16, 32, 32, 96, 96 and 256 channels."""
    specs, spec = shapes(ControlNet, ControlNetConfig()), lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    hint, x, cond = spec(1, 512, 512, 3), spec(1, 64, 64, 4), Conditioning(spec(1, 77, 768))
    see = lambda params, hint: bind(ControlNet, ControlNetConfig(), params).see(hint)
    assert jax.eval_shape(see, specs, hint).shape == (1, 64, 64, 320)
    assert [specs[f"hint.convs.{i}.kernel"].shape[-1] for i in range(8)] == [16, 16, 32, 32, 96, 96, 256, 320]
    net = lambda params, x, cond, hint: bind(ControlNet, ControlNetConfig(), params)(x, jnp.float32(7), cond, hint)
    control = jax.eval_shape(net, specs, x, cond, hint)
    of_level = lambda side, channels: (1, side, side, channels)
    skips = [(64, 320)] * 3 + [(32, 320)] + [(32, 640)] * 2 + [(16, 640)] + [(16, 1280)] * 2 + [(8, 1280)] * 3
    assert [skip.shape for skip in control.skips] == [of_level(*skip) for skip in skips] and len(skips) == 12
    assert control.middle.shape == of_level(8, 1280)


@pytest.fixture(scope="module")
def params():
    """(U-Net's, ControlNet's) parameters, freshly made."""
    return init(UNet, TINY.unet, 0), init(ControlNet, TINY, 1)


@jax.jit
def controlled(params, x, hint, cond):
    """The U-Net's output without and with the ControlNet, and the control."""
    unet, net = bind(UNet, TINY.unet, params[0]), bind(ControlNet, TINY, params[1])
    control = net(x, jnp.float32(7), cond, hint)
    return unet(x, jnp.float32(7), cond), unet(x, jnp.float32(7), cond, control=control), control


@pytest.mark.long
def test_untrained_it_changes_no_bit_for_any_hint(params):
    x, hint, cond = gaussian(2, 1, 4, 6, 4), gaussian(3, 1, 32, 48, 3), Conditioning(gaussian(4, 1, 5, 24))
    plain, with_control, control = controlled(params, x, hint, cond)
    assert np.array_equal(plain, with_control)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(control))


def test_trained_it_follows_the_hint(params):
    moved = {
        k: gaussian(i, *a.shape) * 0.1 if "zero" in k or "convs.7" in k else a
        for i, (k, a) in enumerate(params[1].items())
    }
    x, cond = gaussian(2, 1, 4, 6, 4), Conditioning(gaussian(4, 1, 5, 24))
    outs = [controlled((params[0], moved), x, gaussian(seed, 1, 32, 48, 3), cond) for seed in (3, 5)]
    assert not np.allclose(outs[0][1], outs[0][0], atol=1e-3)
    assert not np.allclose(outs[0][1], outs[1][1], atol=1e-4)
