"""The models: their sizes, their shapes at real resolutions, and the laws that hold whatever the weights are."""

import dataclasses
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm.conditioning import Conditioning, stack
from ldm.hooks import Hooks
from ldm.models.autoencoder import VAE, VAEConfig, reparameterize
from ldm.models.layers import bind, init, shapes, upsample_nearest
from ldm.models.taesd import TinyVAE, TinyVAEConfig
from ldm.models.text import TextConfig, TextTower
from ldm.models.unet import Features, UNet, UNetConfig, skip_channels, timestep_embedding

SD1, SD2 = UNetConfig(), UNetConfig(heads=(5, 10, 20, 20), context_dim=1024)
SDXL = UNetConfig(
    channels=(320, 640, 1280),
    depth=(0, 2, 10),
    middle_depth=10,
    heads=(5, 10, 20),
    context_dim=2048,
    pooled_dim=2816,
)
VIT_L = TextConfig()
VIT_H = TextConfig(width=1024, mlp_width=4096, layers=23, heads=16, activation="gelu")
TINY = UNetConfig(channels=(32, 64), depth=(1, 0), heads=(4, 4), context_dim=24, groups=8)
TINY_VAE = VAEConfig(channels=(16, 32), groups=8)
TINY_TEXT = TextConfig(vocabulary=50, length=9, width=32, mlp_width=64, layers=3, heads=2, projection=16, end_id=49)

PUBLISHED = [  # model, configuration, arrays, parameters
    (UNet, SD1, 686, 859_520_964),
    (UNet, SD2, 686, 865_910_724),
    (UNet, SDXL, 1680, 2_567_463_684),
    (VAE, VAEConfig(), 248, 83_653_863),
    (TextTower, VIT_L, 196, 123_060_480),
    (TextTower, VIT_H, 372, 340_387_840),
    (TinyVAE, TinyVAEConfig(), 134, 2_445_063),
]


def abstract(model, config):
    """The parameters' shapes, as arguments for ``jax.eval_shape``."""
    return shapes(model, config)


def gaussian(seed, *shape):
    """Unit noise."""
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture(scope="module")
def unet():
    """A small U-Net's parameters."""
    return init(UNet, TINY, 0)


@pytest.fixture(scope="module")
def inputs():
    """(x, t, cond) for it."""
    return gaussian(1, 2, 8, 6, 4), jnp.array([3, 900]), Conditioning(gaussian(2, 2, 5, 24))


plain = jax.jit(lambda params, x, t, cond: bind(UNet, TINY, params)(x, t, cond))


def run(params, x, t, cond, **options):
    """One evaluation of the small U-Net with ``control`` or ``hooks``, compiled for this call."""
    return jax.jit(lambda p, *inputs: bind(UNet, TINY, p)(*inputs, **options))(params, x, t, cond)


def tower(params, ids):
    """The small text tower's output, compiled for this shape."""
    return encode(params, ids, 0)


encode = jax.jit(lambda params, ids, skip: bind(TextTower, TINY_TEXT, params)(ids, skip))


@pytest.mark.parametrize(("model", "config", "arrays", "parameters"), PUBLISHED)
def test_sizes_are_the_published_ones(model, config, arrays, parameters):
    specs = shapes(model, config)
    assert len(specs) == arrays
    assert sum(prod(spec.shape) for spec in specs.values()) == parameters


@pytest.mark.parametrize(
    ("config", "side", "width"), [(SD1, 64, 77), (SD2, 96, 77), (dataclasses.replace(SD1, in_channels=9), 64, 154)]
)
def test_unet_shapes_at_real_sizes(config, side, width):
    extra = config.in_channels - 4
    concat = jax.ShapeDtypeStruct((2, side, side, extra), jnp.float32) if extra else None
    cond = Conditioning(jax.ShapeDtypeStruct((2, width, config.context_dim), jnp.float32), concat=concat)
    x = jax.ShapeDtypeStruct((2, side, side, 4), jnp.float32)
    out = jax.eval_shape(lambda p, x, c: bind(UNet, config, p)(x, jnp.float32(1), c), abstract(UNet, config), x, cond)
    assert (out.shape, out.dtype) == (x.shape, jnp.float32)


def test_sdxl_follows_from_the_configuration():
    cond = Conditioning(jax.ShapeDtypeStruct((1, 77, 2048), jnp.float32), jax.ShapeDtypeStruct((1, 2816), jnp.float32))
    x = jax.ShapeDtypeStruct((1, 128, 128, 4), jnp.float32)
    out = jax.eval_shape(lambda p, x, c: bind(UNet, SDXL, p)(x, jnp.float32(1), c), abstract(UNet, SDXL), x, cond)
    assert out.shape == (1, 128, 128, 4)


def test_skips_are_the_twelve_of_the_paper():
    assert skip_channels(SD1) == [320] * 4 + [640] * 3 + [1280] * 5


def test_autoencoder_shapes_at_real_sizes():
    x = jax.ShapeDtypeStruct((1, 512, 768, 3), jnp.float32)
    params = abstract(VAE, VAEConfig())
    mean, logvar = jax.eval_shape(lambda p, x: bind(VAE, VAEConfig(), p).encode(x), params, x)
    assert mean.shape == logvar.shape == (1, 64, 96, 4)
    assert jax.eval_shape(lambda p, z: bind(VAE, VAEConfig(), p).decode(z), params, mean).shape == x.shape


@pytest.mark.parametrize("config", [VIT_L, VIT_H])
def test_text_shapes_at_real_sizes(config):
    ids = jax.ShapeDtypeStruct((3, 77), jnp.int32)
    out = jax.eval_shape(lambda p, i: bind(TextTower, config, p)(i), abstract(TextTower, config), ids)
    assert (out.context.shape, out.pooled.shape) == ((3, 77, config.width), (3, config.width))


def test_bind_undoes_init(unet):
    assert {name: a.shape for name, a in unet.items()} == {n: s.shape for n, s in shapes(UNet, TINY).items()}
    with pytest.raises(KeyError, match=r"conv_out\.bias"):
        bind(UNet, TINY, {name: a for name, a in unet.items() if name != "conv_out.bias"})


def test_no_two_random_kernels_are_alike(unet):
    kernels = [np.asarray(a).ravel()[:4].tobytes() for name, a in unet.items() if name.endswith("kernel")]
    assert len(set(kernels)) == len(kernels)


def test_zero_control_changes_no_bit(unet, inputs):

    def features(params, x, t, cond):
        net = bind(UNet, TINY, params)
        return net.encoder(x, net.embed(t, cond, 2, jnp.float32), cond.context, Hooks())

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape), jax.eval_shape(features, unet, *inputs))
    assert isinstance(zeros, Features)
    base = plain(unet, *inputs)
    assert np.array_equal(run(unet, *inputs, control=zeros), base)
    ones = jax.tree.map(jnp.ones_like, zeros)
    assert not np.allclose(run(unet, *inputs, control=ones), base, atol=1e-3)


def test_hooks_see_every_site_once_and_by_its_parameter_path(unet, inputs):
    attended, tapped = [], []
    base = Hooks()

    def attend(site, q, k, v):
        attended.append(site)
        return base.attend(site, q, k, v)

    def tap(site, features):
        tapped.append(site)
        return features

    hooked = run(unet, *inputs, hooks=Hooks(attend, tap))
    assert np.array_equal(hooked, plain(unet, *inputs))
    attention_paths = {name.rsplit(".", 2)[0] for name in unet if "_attn.q." in name}
    assert set(attended) == attention_paths
    assert len(attended) == len(attention_paths) == 2 * (2 + 1 + 3)
    assert len(tapped) == len(set(tapped))
    blocks = {name.split(".conv1")[0] for name in unet if ".res." in name and name.endswith("conv1.kernel")}
    assert attention_paths | blocks | {"encoder.middle"} <= set(tapped)
    whole = {name.replace(".res.", ".block.") for name in blocks if name.startswith("encoder.down")}
    assert whole | {"encoder.down.0.downsample"} <= set(tapped)


def test_a_tap_changes_what_follows(unet, inputs):
    shifted = Hooks(tap=lambda site, h: h + 1.0 if site == "encoder.middle" else h)
    assert not np.allclose(run(unet, *inputs, hooks=shifted), plain(unet, *inputs), atol=1e-3)


def test_pictures_of_a_batch_do_not_mix(unet, inputs):
    x, t, cond = inputs
    alone = plain(unet, x[1:], t[1:], Conditioning(cond.context[1:]))
    np.testing.assert_allclose(alone[0], plain(unet, *inputs)[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(7, 5), (8, 9), (1, 1)])
def test_any_latent_size_goes_through(unet, size):
    cond = Conditioning(jnp.zeros((1, 5, 24)))
    out = jax.eval_shape(plain, unet, jnp.zeros((1, *size, 4)), jnp.float32(5), cond)
    assert out.shape == (1, *size, 4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_dtype_of_the_weights_is_kept_to_the_end(unet, inputs, dtype):
    cast = {name: a.astype(dtype) for name, a in unet.items()}
    out = jax.eval_shape(lambda p: plain(p, *inputs), cast)
    assert out.dtype == dtype
    taken = []
    tap = lambda site, h: taken.append(h.dtype) or h
    jax.eval_shape(lambda p: run(p, *inputs, hooks=Hooks(tap=tap)), cast)
    assert set(taken) == {jnp.dtype(dtype)}


def test_timestep_embedding_is_cosines_then_sines():
    emb = np.asarray(timestep_embedding(jnp.array([0.0, 7.0]), 6))
    angles = 7 * 10_000.0 ** (-np.arange(3) / 3)
    np.testing.assert_allclose(emb, [[1, 1, 1, 0, 0, 0], [*np.cos(angles), *np.sin(angles)]], atol=1e-6)


def test_nearest_upsampling_repeats_pixels():
    x = np.arange(12.0).reshape(1, 2, 3, 2)
    assert np.array_equal(upsample_nearest(jnp.asarray(x)), x.repeat(2, axis=1).repeat(2, axis=2))


def test_stacked_conditions_keep_their_entrances():
    a, b = Conditioning(jnp.zeros((1, 2, 3))), Conditioning(jnp.ones((2, 2, 3)))
    both = stack(a, b)
    assert both.context.shape == (3, 2, 3)
    assert both.pooled is None
    assert both.concat is None


def test_reparameterize_has_the_mean_and_the_spread():
    noise = gaussian(0, 100_000)
    sample = reparameterize(jnp.float32(3.0), jnp.log(jnp.float32(4.0)), noise)
    assert abs(float(sample.mean()) - 3) < 0.03
    assert abs(float(sample.std()) - 2) < 0.02


def test_autoencoder_small():
    params = init(VAE, TINY_VAE, 0)
    mean, logvar = jax.jit(lambda p, x: bind(VAE, TINY_VAE, p).encode(x))(params, 1e3 * gaussian(0, 1, 8, 12, 3))
    assert mean.shape == logvar.shape == (1, 4, 6, 4)
    assert float(logvar.max()) <= 20
    assert jax.eval_shape(lambda p, z: bind(VAE, TINY_VAE, p).decode(z), params, mean).shape == (1, 8, 12, 3)
    assert TINY_VAE.factor == 2
    assert VAEConfig().factor == TinyVAEConfig().factor == 8


@pytest.fixture(scope="module")
def text():
    """A small text tower's parameters."""
    return init(TextTower, TINY_TEXT, 0)


def test_a_token_sees_only_what_came_before(text):
    ids = jnp.array([[1, 2, 3, 4, 49, 49, 49, 49, 49]])
    other = ids.at[0, 3].set(7)
    a, b = (tower(text, i).context for i in (ids, other))
    assert np.array_equal(a[0, :3], b[0, :3])
    assert not np.allclose(a[0, 3:], b[0, 3:])


def test_pooled_is_taken_at_the_first_end_token(text):
    ids = jnp.array([[1, 2, 49, 5, 6, 49, 0, 0, 0]])
    other = ids.at[0, 3:5].set(jnp.array([8, 9]))
    a, b = (tower(text, i).pooled for i in (ids, other))
    assert a.shape == (1, 16)
    assert np.array_equal(a, b)


def test_clip_skip_may_be_traced_and_normalises_what_it_takes(text):
    ids = jnp.arange(9)[None]
    states = jax.jit(lambda p: bind(TextTower, TINY_TEXT, p).hidden_states(ids))(text)
    assert states.shape == (4, 1, 9, 32)
    norm = bind(TextTower, TINY_TEXT, text).final_norm
    for k in range(3):
        np.testing.assert_allclose(encode(text, ids, k).context, norm(states[3 - k]), rtol=1e-4, atol=1e-5)
