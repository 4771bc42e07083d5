"""Lesson 00, start: what its exercises must do."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from ldm.course import Exercise
from ldm.samplers.multistep import KEPT, History, no_history
from ldm.toybox.scene import Toy, scene, view

key, fold, data, normal = jax.random.key, jax.random.fold_in, jax.random.key_data, jax.random.normal

to_bytes = Exercise(
    "00.1",
    "ldm.toybox.world:to_uint8",
    minutes=5,
    lines=1,
    hints=(
        "The largest byte is 255, and it is white: 1.0. Casting to uint8 cuts the fraction off.",
        "np.floor(x + 0.5) is the whole number nearest to x; .astype(np.uint8) comes last.",
    ),
    wrong={
        "a fraction cut off; the nearest is wanted": lambda pictures: (255 * pictures).astype(np.uint8),
        "256 times the value; the largest byte is 255": lambda pictures: np.fmin(256 * pictures, 255).astype(np.uint8),
        "numbers that are still floating-point": lambda pictures: np.floor(255 * pictures + 0.5),
    },
)


@to_bytes.check
def test_values_go_to_the_nearest_level(f):
    """Every value in [0, 1] becomes the byte nearest to 255 times it."""
    values = np.append(np.random.default_rng(0).random(997, np.float32), np.float32([0, 1, 0.999]))
    np.testing.assert_allclose(np.asarray(f(values), float), values * 255, rtol=0, atol=0.5 + 1e-4)


@to_bytes.check
def test_bytes_are_uint8(f):
    """The result is an array of uint8."""
    np.testing.assert_equal(f(jnp.linspace(0, 1, 6).reshape(1, 2, 3)).dtype, np.uint8)


def _scrambled(h):
    B, H, W, C = h.shape
    return jnp.broadcast_to(h[:, :, :, None, None], (B, H, W, 2, 2, C)).reshape(B, 2 * H, 2 * W, C)


def _enlarged(f):
    """A drawn picture of 12 x 12 pixels, enlarged by f twice and then made visible."""
    rows, columns = np.mgrid[:12, :12] / 11.0
    disc = (rows - 0.5) ** 2 + (columns - 0.4) ** 2 < 0.1
    picture = np.stack([0.2 + 0.7 * disc, 0.3 + 0.5 * columns, 0.3 + 0.5 * rows], -1)
    large = np.asarray(f(f(jnp.asarray(picture[None]))))[0]
    return np.kron((255 * large).astype(np.uint8), np.ones((4, 4, 1), np.uint8))


upsample = Exercise(
    "00.2",
    "ldm.models.layers:upsample_nearest",
    minutes=10,
    lines=2,
    hints=(
        "Give rows and columns an axis of length 1 each with None, then let broadcasting fill it.",
        "The axis of copies comes directly after the axis that it copies: broadcast [B, H, 1, W, 1, C], then reshape.",
    ),
    wrong={
        "jnp.tile: the whole picture laid out four times": lambda h: jnp.tile(h, (1, 2, 2, 1)),
        "both axes of copies after the columns: the reshape mixes rows with columns": _scrambled,
        "NumPy's arrays, through which JAX cannot differentiate": lambda h: np.asarray(h).repeat(2, 1).repeat(2, 2),
    },
    show=_enlarged,
)


@upsample.check
def test_each_pixel_becomes_a_block(f):
    """Pixel (i, j) of the result is pixel (i // 2, j // 2) of what came in."""
    h = np.random.default_rng(1).standard_normal((2, 3, 5, 3)).astype(np.float32)
    i, j = np.arange(6) // 2, np.arange(10) // 2
    np.testing.assert_allclose(f(jnp.asarray(h)), h[:, i][:, :, j])


@upsample.check
def test_four_copies_give_four_times_the_gradient(f):
    """The gradient of the sum of all outputs by each input is 4: a pixel has four copies."""
    gradient = jax.grad(lambda h: jnp.sum(f(h)))(jnp.zeros((1, 2, 2, 3)))
    np.testing.assert_allclose(gradient, np.full((1, 2, 2, 3), 4.0))


def _each(indices, key_of):
    return jnp.stack([key_of(index) for index in jnp.asarray(indices)])


keys = Exercise(
    "00.3",
    "ldm.samplers.noise:image_keys",
    minutes=10,
    lines=1,
    hints=(
        "One key comes from the seed. jax.random.fold_in(key, number) makes another one of it.",
        "jax.vmap(function)(indices) applies a function of one index to all of them.",
        "jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(indices)",
    ),
    wrong={
        "jax.random.split: keys of the places in the batch, not of the images' indices": lambda seed, indices: (
            jax.random.split(key(seed), len(indices))
        ),
        "seed + index as one number: image 1 of seed 0 is then image 0 of seed 1": lambda seed, indices: _each(
            indices, lambda index: key(seed + index)
        ),
        "a seed that must be known when the program is compiled": lambda seed, indices: _each(
            indices, lambda index: fold(key(int(seed)), index)
        ),
    },
)


@keys.check
def test_keys_are_folded(f):
    """The key of image i is fold_in(key(seed), i)."""
    wanted = [data(fold(key(5), i)) for i in range(3)]
    np.testing.assert_allclose(data(f(5, jnp.arange(3))), wanted)


@keys.check
def test_a_key_does_not_depend_on_the_batch(f):
    """Image 7 has the same key alone, and as the last of a batch."""
    alone, last = (data(f(0, jnp.array(indices)))[-1] for indices in ([7], [4, 9, 7]))
    np.testing.assert_allclose(alone, last)


@keys.check
def test_a_seed_is_a_run_time_number(f):
    """Under jax.jit, with the seed as an argument, the keys are the same."""
    traced = jax.jit(lambda seed, indices: data(f(seed, indices)))(3, jnp.arange(2))
    np.testing.assert_allclose(traced, data(f(3, jnp.arange(2))))


def _drawn(inner):
    """Noise of each image, from the key that ``inner`` makes of its key, the step and the part."""
    return lambda keys, step, shape, part=0: jnp.stack([normal(inner(k, step, part), shape) for k in keys])


def _of_the_first(keys, step, shape, part=0):
    first = fold(fold(keys[0], step), part) if part else fold(keys[0], step)
    return normal(first, (len(keys), *shape))


noise = Exercise(
    "00.4",
    "ldm.samplers.noise:unit_noise",
    minutes=10,
    lines=3,
    hints=(
        "Fold the step into each key, then draw one picture from each of the new keys.",
        "part 0 is the step's own noise: fold part in only if it is not 0, after the step.",
        "jax.vmap(lambda key: jax.random.normal(fold_in(key, step), shape))(keys), and the same with part folded in",
    ),
    wrong={
        "one draw for the whole batch, from the first image's key": _of_the_first,
        "the step left out: the same noise at every step": _drawn(lambda k, step, part: fold(k, part) if part else k),
        "part folded in when it is 0 too": _drawn(lambda k, step, part: fold(fold(k, step), part)),
        "part left out: both halves of a step get the same noise": _drawn(lambda k, step, part: fold(k, step)),
        "step + part: part 1 of a step is then the step after it": _drawn(lambda k, step, part: fold(k, step + part)),
    },
)


def _images(*indices):
    return jnp.stack([fold(key(0), index) for index in indices])


@noise.check
def test_noise_is_drawn_with_the_step_folded_in(f):
    """The noise of a step is normal(fold_in(key, step), shape)."""
    wanted = normal(fold(_images(4)[0], 9), (3, 2, 1))
    np.testing.assert_allclose(f(_images(4), 9, (3, 2, 1))[0], wanted, rtol=1e-5)


@noise.check
def test_parts_of_a_step_have_noise_of_their_own(f):
    """The noise of part 2 of a step is normal(fold_in(fold_in(key, step), 2), shape)."""
    wanted = normal(fold(fold(_images(4)[0], 6), 2), (3, 2, 1))
    np.testing.assert_allclose(f(_images(4), 6, (3, 2, 1), 2)[0], wanted, rtol=1e-5)


@noise.check
def test_noise_does_not_depend_on_the_batch(f):
    """The noise of an image in a batch of three is its noise alone."""
    together, alone = f(_images(0, 1, 2), 5, (3, 2, 1)), [f(_images(i), 5, (3, 2, 1))[0] for i in range(3)]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-5)


def _scenes():
    toys = [Toy("cube", "red"), Toy("sphere", "blue", x=0.2, yaw=1.0), Toy("cone", "gray", "small", x=-0.3)]
    return [scene([toy], view(40 * i, 30, 6 + i), light=(10 * i, 50)) for i, toy in enumerate(toys)]


def _mapped(join):
    return lambda scenes: jax.tree.map(lambda *arrays: join(arrays), *scenes)


def _one_camera(scenes):
    cameras = _mapped(np.stack)([scenes[0].camera] * len(scenes))
    return replace(_mapped(np.stack)(scenes), camera=cameras)


batch = Exercise(
    "00.5",
    "ldm.toybox.scene:stack",
    minutes=10,
    lines=1,
    hints=(
        "A Scene is a pytree: jax.tree.map(function, a, b, c) calls function with the same leaf of each.",
        "jax.tree.map(lambda *arrays: …, *scenes) takes any number of scenes; np.stack puts the new axis first.",
    ),
    wrong={
        "a new axis at the end, where the batch comes first": _mapped(lambda arrays: np.stack(arrays, -1)),
        "the scene's own arrays only: every scene got the first one's camera": _one_camera,
    },
)


@batch.check
def test_scene_i_of_the_batch_is_scene_i(f):
    """Index i of a field of the batch is that field of scene i."""
    scenes = _scenes()
    made = f(scenes)
    for name in ("kind", "colour", "size", "position", "yaw", "identity", "ground", "light"):
        np.testing.assert_allclose(getattr(made, name), [getattr(one, name) for one in scenes], err_msg=name)


@batch.check
def test_every_scene_keeps_its_camera(f):
    """Azimuth i of the batch is that of camera i."""
    scenes = _scenes()
    np.testing.assert_allclose(f(scenes).camera.azimuth, [one.camera.azimuth for one in scenes])


def _pushed(push):
    return lambda past, x, x0, sigma: History(push(x, past.x), push(x0, past.x0), push(sigma, past.sigma))


_front = lambda new, old: jnp.concatenate([new[None].astype(old.dtype), old[:-1]])
_back = lambda new, old: jnp.concatenate([old[1:], new[None].astype(old.dtype)])
_untyped = lambda new, old: jnp.concatenate([new[None], old[:-1]])
_growing = lambda new, old: jnp.concatenate([new[None].astype(old.dtype), old])
_still = lambda past, x, x0, sigma: _pushed(_front)(past, x, x0, sigma)._replace(sigma=past.sigma)

carried = Exercise(
    "00.6",
    "ldm.samplers.multistep:remember",
    minutes=10,
    lines=2,
    hints=(
        "Each of the three fields is pushed in the same way: new in front, the oldest dropped.",
        "jnp.concatenate([new[None], old[:-1]]), with new.astype(old.dtype): a loop's carry keeps its dtypes.",
    ),
    wrong={
        "the newest last, where it comes first": _pushed(_back),
        "x0 kept in the place of x": lambda past, x, x0, sigma: _pushed(_front)(past, x0, x, sigma),
        "levels that stay: a step without its sigma counts as none": _still,
        "the oldest kept: the history grows, and no loop can carry it": _pushed(_growing),
        "new entries in a dtype of their own, which changes the history's": _pushed(_untyped),
    },
)


def _walk(f, steps):
    """The history after some steps, by f: step i is at x = i, x0 = -i, sigma = 10 - i."""
    past = no_history(jnp.zeros((1, 1, 1, 1)))
    for i in range(1, steps + 1):
        past = f(past, jnp.full((1, 1, 1, 1), 1.0 * i), jnp.full((1, 1, 1, 1), -1.0 * i), jnp.float32(10 - i))
    return past


@carried.check
def test_the_newest_stands_first(f):
    """After steps 1, 2 and 3 the first two states are 3 and 2, the first two predictions -3 and -2."""
    past = _walk(f, 3)
    np.testing.assert_allclose([past.x[:2].ravel(), past.x0[:2].ravel()], [[3, 2], [-3, -2]])


@carried.check
def test_levels_move_with_the_states(f):
    """After two steps, at sigma 9 and then 8, the levels begin 8, 9, inf: there was no third step."""
    np.testing.assert_allclose(_walk(f, 2).sigma[:3], [8, 9, np.inf])


@carried.check
def test_a_loop_can_carry_it(f):
    """Shapes and dtypes are those of the history before, also of a bfloat16 one: so fori_loop takes it."""
    past, x, sigma = no_history(jnp.zeros((1, 1, 1, 2), jnp.bfloat16)), jnp.ones((1, 1, 1, 2)), jnp.float32(2)
    after = f(past, x, x, sigma)
    before, now = ([f"{array.dtype}{array.shape}" for array in history] for history in (past, after))
    assert now == before, f"{before} became {now}"
    after = jax.lax.fori_loop(0, KEPT, lambda i, past: f(past, x, x, sigma), past)
    np.testing.assert_allclose(np.asarray(after.x, np.float32), np.ones((KEPT, 1, 1, 1, 2)))
