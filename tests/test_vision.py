"""The vision tower and CLIP's pair: published sizes, and laws that hold whatever the weights are."""

from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.models import clip
from ldm.models.layers import bind, init, shapes
from ldm.models.vision import MEAN, SPREAD, VisionConfig, VisionTower, preprocess

TINY = VisionConfig(image=16, patch=4, width=32, mlp_width=48, layers=3, heads=2, activation="gelu", projection=20)
VIT_H = VisionConfig(width=1280, mlp_width=5120, layers=32, activation="gelu", projection=1024)
TOYBOX = VisionConfig(image=64, patch=8, width=128, mlp_width=512, layers=4, heads=4, projection=128)
PICTURES = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    """A small tower's parameters."""
    return jax.jit(lambda key: init(VisionTower, TINY, key))(jax.random.key(0))


encode = jax.jit(lambda params, pictures, skip=0: bind(VisionTower, TINY, params)(pictures, skip))


@pytest.mark.parametrize(
    ("config", "arrays", "parameters"), [(VisionConfig(), 392, 303_966_208), (VIT_H, 520, 632_076_800)]
)
def test_sizes_are_the_published_ones(config, arrays, parameters):
    specs = shapes(VisionTower, config)
    assert len(specs) == arrays
    assert sum(prod(spec.shape) for spec in specs.values()) == parameters


@pytest.mark.parametrize("config", [VisionConfig(), VIT_H, TOYBOX])
def test_shapes_at_real_sizes(config):
    pictures = jax.ShapeDtypeStruct((2, config.image, config.image, 3), jnp.float32)
    out = jax.eval_shape(lambda p, x: bind(VisionTower, config, p)(x), shapes(VisionTower, config), pictures)
    assert out.tokens.shape == (2, 1 + (config.image // config.patch) ** 2, config.width)
    assert out.pooled.shape == (2, config.projection)


def test_preprocessing_shifts_and_scales_each_colour():
    pictures = np.array([MEAN, np.add(MEAN, SPREAD), (0, 0, 0)]) * 2 - 1
    np.testing.assert_allclose(
        preprocess(jnp.asarray(pictures)), [[0, 0, 0], [1, 1, 1], -np.divide(MEAN, SPREAD)], atol=1e-6
    )


def test_any_number_of_layers_may_be_left_out(params):
    states = jax.jit(lambda p, x: bind(VisionTower, TINY, p).hidden_states(x))(params, PICTURES)
    assert states.shape == (4, 3, 17, 32)
    for skip in range(4):
        np.testing.assert_allclose(encode(params, PICTURES, skip).tokens, states[3 - skip], atol=1e-6)
    each = encode(params, PICTURES, jnp.array([2, 0, 1]))
    np.testing.assert_allclose(each.tokens, states[jnp.array([1, 3, 2]), jnp.arange(3)], atol=1e-6)
    np.testing.assert_allclose(each.pooled, encode(params, PICTURES).pooled, atol=1e-6)


def test_pictures_of_a_batch_do_not_mix(params):
    alone = encode(params, PICTURES[1:2])
    np.testing.assert_allclose(alone.pooled[0], encode(params, PICTURES).pooled[1], atol=1e-5)


def test_without_positions_the_order_of_the_patches_is_nothing(params):
    """Attention is of sets: patches that change places change places in the tokens, and the whole is the same."""
    params = params | {"position_embedding": jnp.zeros((17, 32))}
    patches = PICTURES.reshape(3, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 16, 4, 4, 3)
    order = np.random.default_rng(1).permutation(16)
    moved = patches[:, order].reshape(3, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 16, 16, 3)
    here, there = encode(params, PICTURES), encode(params, moved)
    np.testing.assert_allclose(there.tokens[:, 1:], here.tokens[:, 1:][:, order], atol=1e-5)
    np.testing.assert_allclose(there.pooled, here.pooled, atol=1e-5)
    assert not np.allclose(here.tokens[:, 1], here.tokens[:, 2], atol=1e-2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_dtype_of_the_weights_is_kept_to_the_end(params, dtype):
    cast = {name: array.astype(dtype) for name, array in params.items()}
    out = jax.eval_shape(encode, cast, PICTURES)
    assert out.tokens.dtype == out.pooled.dtype == dtype


def test_without_a_projection_the_pooled_state_is_as_wide_as_the_tower():
    config = VisionConfig(image=16, patch=8, width=32, mlp_width=64, layers=1, heads=2, projection=0)
    specs = shapes(VisionTower, config)
    assert "projection.kernel" not in specs
    assert jax.eval_shape(lambda p: bind(VisionTower, config, p)(PICTURES), specs).pooled.shape == (3, 32)


def test_pictures_of_another_size_are_refused(params):
    with pytest.raises(ValueError, match=r"sees pictures \('B', 16, 16, 3\), got \(1, 32, 16, 3\); resize"):
        encode(params, jnp.zeros((1, 32, 16, 3)))
    with pytest.raises(ValueError, match="patches of 7 pixels do not fill a picture of 64"):
        VisionConfig(image=64, patch=7)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.floats(-3, 3))
def test_similarity_is_the_scaled_cosine(seed, log_scale):
    rng = np.random.default_rng(seed)
    text, image = rng.normal(size=(4, 6)), rng.normal(size=(5, 6))
    lengths = np.linalg.norm(image, axis=1)[:, None] * np.linalg.norm(text, axis=1)
    got = clip.similarity(jnp.asarray(text), jnp.asarray(7 * image), log_scale)
    np.testing.assert_allclose(got, np.exp(log_scale) * (image @ text.T) / lengths, rtol=2e-5, atol=2e-5)


def test_the_scale_is_held_and_half_precision_is_left():
    vectors = jnp.eye(3, dtype=jnp.bfloat16)
    assert clip.similarity(vectors, vectors).dtype == jnp.float32
    np.testing.assert_allclose(clip.similarity(vectors, vectors, 50.0), 100 * np.eye(3), rtol=1e-5)
    np.testing.assert_allclose(jnp.exp(clip.FIRST_LOG_SCALE), 1 / 0.07, rtol=1e-6)


def test_unit_vectors_have_finite_gradients_at_zero():
    np.testing.assert_allclose(jnp.linalg.norm(clip.unit(jnp.array([[3.0, 4.0], [0.0, 1e-3]])), axis=-1), 1, rtol=1e-6)
    assert not clip.unit(jnp.zeros(4)).any()
    assert np.isfinite(jax.grad(lambda x: clip.unit(x).sum())(jnp.zeros(4))).all()
