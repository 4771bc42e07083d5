"""T2I-Adapter: its published sizes, where its features go, and that it is nothing at scale 0."""

import dataclasses
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm.adapters.t2i_adapter import (
    LIGHT,
    SDXL,
    T2IAdapter,
    T2IAdapterConfig,
    check_fit,
    halved,
    last_blocks,
    unshuffle,
    with_features,
)
from ldm.conditioning import Conditioning
from ldm.hooks import Hooks
from ldm.models.layers import bind, init, shapes
from ldm.models.unet import UNet, UNetConfig

SD1 = UNetConfig()
SDXL_UNET = UNetConfig(
    channels=(320, 640, 1280), depth=(0, 2, 10), middle_depth=10, heads=(5, 10, 20), context_dim=2048, pooled_dim=2816
)
UNET = UNetConfig(channels=(16, 32), blocks=1, depth=(1, 0), middle_depth=0, heads=(2, 2), context_dim=8, groups=8)
TINY = T2IAdapterConfig(channels=(16, 32), sites=last_blocks(2, 1), halves=(False, True), blocks=1)
GREY = dataclasses.replace(T2IAdapterConfig(), in_channels=1)


def gaussian(seed, *shape):
    """Unit noise."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# ---- sizes ----


@pytest.mark.parametrize(
    ("config", "arrays", "parameters"),
    [(T2IAdapterConfig(), 38, 77_369_280), (GREY, 38, 77_000_640), (LIGHT, 80, 18_689_200), (SDXL, 38, 79_028_160)],
    ids=["full", "grey", "light", "sdxl"],
)
def test_size_is_the_published_one(config, arrays, parameters):
    own = shapes(T2IAdapter, config)
    assert len(own) == arrays
    assert sum(prod(s.shape) for s in own.values()) == parameters


@pytest.mark.parametrize(
    ("config", "unet", "side"), [(T2IAdapterConfig(), SD1, 64), (LIGHT, SD1, 64), (SDXL, SDXL_UNET, 128)]
)
def test_every_map_has_the_shape_of_its_place_in_the_real_network(config, unet, side):
    check_fit(config, unet)
    real = lambda *shape: jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    cond = Conditioning(real(77, unet.context_dim), real(unet.pooled_dim) if unet.pooled_dim else None)
    seen = {}
    hooks = Hooks(tap=lambda site, h: seen.setdefault(site, h))
    run = lambda p, x, cond: bind(UNet, unet, p)(x, jnp.float32(1), cond, hooks=hooks)
    jax.eval_shape(run, shapes(UNet, unet), real(side, side, 4), cond)
    hint = real(8 * side, 8 * side, config.in_channels)
    maps = jax.eval_shape(lambda p, x: bind(T2IAdapter, config, p)(x), shapes(T2IAdapter, config), hint)
    assert {site: m.shape for site, m in maps.items()} == {site: seen[site].shape for site in config.sites}


def test_unshuffling_puts_the_pixels_of_a_block_into_channels():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    y = np.asarray(unshuffle(jnp.asarray(x), 2))
    assert y.shape == (2, 2, 3, 12)
    for channel in range(3):
        assert np.array_equal(y[1, 1, 2, 4 * channel : 4 * channel + 4], x[1, 2:4, 4:6, channel].ravel())


def test_halving_an_odd_size_means_over_the_pixels_that_there_are():
    x = gaussian(0, 1, 3, 5, 2)
    y = halved(x)
    assert y.shape == (1, 2, 3, 2)
    assert np.allclose(y[0, 0, 0], x[0, :2, :2].mean((0, 1)), atol=1e-6)
    assert np.allclose(y[0, 1, 2], x[0, 2, 4], atol=1e-6)


# ---- inside the U-Net ----


@pytest.fixture(scope="module")
def params():
    """(U-Net's, adapter's) parameters, freshly made."""
    return init(UNet, UNET, 0), init(T2IAdapter, TINY, 1)


@pytest.fixture(scope="module")
def inputs():
    """Noisy latent, hint, condition."""
    return gaussian(2, 2, 4, 6, 4), gaussian(3, 2, 32, 48, 3), Conditioning(gaussian(4, 2, 5, 8))


def plain(params, x, cond):
    """The U-Net alone."""
    return bind(UNet, UNET, params[0])(x, jnp.float32(7), cond)


def adapted(params, x, hint, cond, scale):
    """The U-Net with the adapter's features."""
    hooks = with_features(bind(T2IAdapter, TINY, params[1])(hint), scale=scale)
    return bind(UNet, UNET, params[0])(x, jnp.float32(7), cond, hooks=hooks)


@pytest.mark.long
@pytest.mark.optimised
def test_scale_is_a_run_time_value_and_0_changes_no_bit(params, inputs):
    x, hint, cond = inputs
    run, base = jax.jit(adapted), jax.jit(plain)(params, x, cond)
    none, half, one, each = (run(params, x, hint, cond, jnp.float32(s)) for s in (0.0, 0.5, 1.0, -1.0))
    assert run._cache_size() == 1
    assert np.array_equal(none, base)
    assert all(np.abs(a - b).max() > 1e-2 for a, b in [(half, base), (one, half), (each, one)])
    per_picture = run(params, x, hint, cond, jnp.float32([0.0, 1.0])[:, None, None, None])
    assert np.allclose(per_picture[0], base[0], atol=1e-5)
    assert np.allclose(per_picture[1], one[1], atol=1e-5)


def test_without_features_the_program_is_the_plain_one(params, inputs):
    """Sites that nobody uses leave no trace: the same operations in the same order."""
    x, _, cond = inputs
    bare = lambda p, x, cond: bind(UNet, UNET, p[0])(x, jnp.float32(7), cond, hooks=with_features({}))
    assert str(jax.make_jaxpr(bare)(params, x, cond)) == str(jax.make_jaxpr(plain)(params, x, cond))


def test_features_go_into_the_skip_and_into_what_is_deeper(params, inputs):
    x, _, cond = inputs
    site = TINY.sites[0]
    added = {site: gaussian(5, 2, 4, 6, 16)}

    @jax.jit
    def encoded(params, x, cond):
        net = bind(UNet, UNET, params)
        run = lambda hooks: net.encoder(x, net.embed(jnp.float32(7), cond, 2, x.dtype), cond.context, hooks)
        return run(Hooks()), run(with_features(added))

    before, after = encoded(params[0], x, cond)
    assert np.array_equal(before.skips[0], after.skips[0])
    assert np.allclose(after.skips[1] - before.skips[1], added[site], atol=1e-5)
    deeper = list(zip((*before.skips[2:], before.middle), (*after.skips[2:], after.middle), strict=True))
    assert len(deeper) == 3 and all(np.abs(a - b).max() > 1e-2 for a, b in deeper)


def test_several_adapters_add_up_in_any_order(params, inputs):
    x, _, cond = inputs
    first, second = (
        {site: gaussian(k, 1, 4 >> i, 6 >> i, 16 << i) for i, site in enumerate(TINY.sites)} for k in (6, 7)
    )

    @jax.jit
    def run(params, one, two, scales):
        hooks = with_features(two, with_features(one, scale=scales[0]), scale=scales[1])
        return bind(UNet, UNET, params)(x, jnp.float32(7), cond, hooks=hooks)

    together = {site: 0.7 * first[site] + 0.3 * second[site] for site in TINY.sites}
    both = run(params[0], first, second, jnp.float32([0.7, 0.3]))
    for other in (
        run(params[0], second, first, jnp.float32([0.3, 0.7])),
        run(params[0], together, together, jnp.float32([0.5, 0.5])),
    ):
        assert np.allclose(both, other, atol=1e-5)  # float32 sums of three, in another order
    assert not np.allclose(both, run(params[0], second, first, jnp.float32([0.7, 0.3])), atol=1e-2)


def test_a_hint_of_another_form_is_refused_in_a_sentence():
    see = lambda config, *shape: jax.eval_shape(
        lambda p, x: bind(T2IAdapter, config, p)(x),
        shapes(T2IAdapter, config),
        jax.ShapeDtypeStruct(shape, jnp.float32),
    )
    with pytest.raises(ValueError, match="the hint has 3 channels, and this T2I-Adapter sees 1"):
        see(GREY, 1, 64, 64, 3)
    with pytest.raises(ValueError, match="the hint is 72x64, and this T2I-Adapter needs sides that 16 divides"):
        see(SDXL, 1, 64, 72, 3)


@pytest.mark.parametrize(
    ("config", "unet", "told"),
    [
        (SDXL, SD1, "1280 channels at 1/32 of the picture's size to encoder.middle, and this U-Net has 1280 at 1/64"),
        (T2IAdapterConfig(), SDXL_UNET, "to encoder.down.3.block.1, and this U-Net has no such place"),
        (
            dataclasses.replace(TINY, sites=last_blocks(2)),
            SD1,
            "adds 16 channels at 1/8 of .* to encoder.down.0.block.1, and this U-Net has 320 at 1/8",
        ),
    ],
)
def test_an_adapter_of_another_family_is_refused(config, unet, told):
    with pytest.raises(ValueError, match=told):
        check_fit(config, unet)
