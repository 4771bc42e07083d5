"""The two losses that teach binding: what they ask, and that a head can learn to answer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm.models.layers import bind, init
from ldm.toybox.captions import FRONT_MARGIN, LEFT_MARGIN
from ldm.toybox.scene import COLOURS, KINDS, SLOTS
from ldm.training.grounding import (
    PLACE,
    Layout,
    LayoutConfig,
    Reader,
    ReaderConfig,
    layout_loss,
    places,
    read_loss,
)

NONE = (-1, 0, 0, 0)
CUBE, BALL = (KINDS.index("cube"), 3, 0, 1), (KINDS.index("sphere"), 5, 1, 0)


def test_places_compare_a_toy_with_each_other_one():
    """Far to the left is +1 for the other's difference; nearer than all margins counts as its share of a margin."""
    seen = jnp.array([[[0.2, 5.0], [0.2 + 8 * LEFT_MARGIN, 5.0 + 0.1 * FRONT_MARGIN], [0.9, 9.0]]])
    where = places(seen, jnp.array([[True, True, False]]))
    assert where.shape == (1, SLOTS, PLACE) and where.dtype == jnp.float32
    np.testing.assert_allclose(where[0, 0], [-0.3, 5.0, 1, 0.9993, 0.05, 0, 0, 0], atol=1e-3)
    np.testing.assert_allclose(where[0, 1, 5:], [1, -0.9993, -0.05], atol=1e-3)  # the first toy, two turns away


def test_a_reader_learns_which_words_stand_where():
    """Two texts that differ in the order of the toys; the places are the same."""
    toys = jnp.array([[CUBE, BALL, NONE], [BALL, CUBE, NONE]])
    seen = jnp.tile(jnp.array([[0.2, 5.0], [0.8, 5.0], [0.0, 0.0]]), (2, 1, 1))
    context = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 16)), jnp.float32)
    config = ReaderConfig(16, 32, 2)
    ask = lambda p: read_loss(bind(Reader, config, p), context, toys, seen)
    adam = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        (_, metrics), grads = jax.value_and_grad(ask, has_aux=True)(params)
        updates, state = adam.update(grads, state, params)
        return optax.apply_updates(params, updates), state, metrics

    params = init(Reader, config, 0)
    first, state = float(ask(params)[0]), adam.init(params)
    for _ in range(60):
        params, state, metrics = step(params, state)
    assert metrics["read"] == 1 and ask(params)[0] < first / 10


def test_slots_without_a_toy_say_nothing():
    context = jnp.ones((1, 5, 16))
    reader = bind(Reader, ReaderConfig(16, 32, 2), init(Reader, ReaderConfig(16, 32, 2), 0))
    seen = jnp.array([[[0.2, 5.0], [0.8, 5.0], [0.5, 3.0]]])
    alone = [read_loss(reader, context, jnp.array([[CUBE, NONE, other]]), seen)[0] for other in (NONE, NONE[:1] * 4)]
    assert alone[0] == alone[1] > 0
    assert read_loss(reader, context, jnp.array([[NONE] * 3]), seen)[0] == 0


@pytest.mark.parametrize("cells", [1, 2])
def test_a_layout_is_right_where_kind_and_colour_are(cells):
    """A head made by hand: features say the classes, and the loss says by how much they are wrong."""
    segmentation = jnp.array(np.random.default_rng(1).integers(0, 3, (1, 4, 4)), jnp.uint8)
    toys = jnp.array([[CUBE, BALL, NONE]], jnp.int8)
    kinds = np.array([0, 1 + CUBE[0], 1 + BALL[0]])[segmentation]
    colours = np.array([0, 1 + CUBE[1], 1 + BALL[1]])[segmentation]
    hot = np.concatenate([np.eye(1 + len(KINDS))[kinds], np.eye(1 + len(COLOURS))[colours]], -1)  # [1, 4, 4, 17]
    side, classes = 4 // cells, hot.shape[-1]
    features = hot.reshape(1, side, cells, side, cells, classes).transpose(0, 1, 3, 2, 4, 5)
    features = jnp.asarray(20 * features.reshape(1, side**2, -1), jnp.float32)
    config = LayoutConfig(features.shape[-1], cells)
    head = bind(Layout, config, {"out.kernel": jnp.eye(config.channels), "out.bias": jnp.zeros(config.channels)})
    loss, metrics = layout_loss(head, features, toys, segmentation)
    assert metrics["found"] == 1 and loss < 1e-6
    loss, metrics = layout_loss(head, features, toys[:, jnp.array([1, 0, 2])], segmentation)
    share = float((segmentation > 0).mean())
    assert metrics["found"] == 0 and float(loss) == pytest.approx(40 * share, rel=1e-5)  # kind and colour, 20 each
