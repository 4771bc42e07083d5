"""An instrument that knows all seven kinds of toys, and says "none" of what is no toy: the handset is among them.

The recogniser was never shown a handset, and whatever looks like none of its six kinds would be taken for one. So this
is a small network of its own, trained on renders of single large toys and, as its eighth class, on toys that are
spoilt: melted by a smooth displacement of several pixels, blended, half erased, torn, blurred. Real toys are shown
softened and displaced by up to a pixel, as samples of a model are. Beside the renders it sees what the packaged model
draws: for the six kinds that it knows, as those; for "telephone handset", which it cannot draw, as no toy; and for
words of random vectors, which may be anything but a handset.

``python -m ldm.toybox.recipe.seven_kinds`` prints how often the packaged one is right on renders, and spoilt ones, that
it was not shown; with a FILE that is not there, it trains one into it, in a quarter of an hour on two CPU cores.

B pictures of 64x64 pixels in [0, 1].
"""

import argparse
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

import ldm
from ldm import bundle, weights_file
from ldm.adapters.textual_inversion import TABLE, with_word
from ldm.models.layers import Keys, Params, bind, conv, group_norm, init, linear
from ldm.toybox.parsing import parse
from ldm.toybox.recipe import degrade, study
from ldm.toybox.recipe.score import prompts_of, sampled
from ldm.toybox.sampling import random_scenes
from ldm.toybox.scene import COLOURS, HANDSET, KINDS, SIZES
from ldm.toybox.world import render, to_uint8

COUNT, SEED, TEST_SEED, AT_ONCE = 3500, 8001, 8002, 50
STEPS, BATCH, RATE = 1500, 64, 2e-3
DRAWN, NO_HANDSETS, AGAIN = 384, 192, 3  # pictures that the packaged model draws, and how often each is shown
MADE_UP, VECTORS, FAR = 60, 4, 1.0  # words, their vectors, how far those may be from a word's of the model
NONE, UNLIKE = len(KINDS), len(KINDS) + 1  # no toy; whatever it is, it is no handset
WIDTHS = (24, 48, 96)
PACKAGED = Path(__file__).parents[1] / "data/seven_kinds.safetensors"  # float16


class Eye(nnx.Module):
    """Pictures [B, 64, 64, 3] -> logits [B, 8] of the seven kinds and of none."""

    def __init__(self, widths: tuple[int, ...], keys: Keys):
        pairs = zip((3, *widths), widths, strict=False)
        self.down = nnx.List([conv(a, b, keys, stride=2) for a, b in pairs])
        self.norms = nnx.List([group_norm(w, 8, 1e-5, keys) for w in widths])
        self.more = nnx.List([conv(w, w, keys) for w in widths])
        self.out = linear(2 * widths[-1], NONE + 1, keys)

    def __call__(self, x: Array) -> Array:
        x = 2 * x - 1
        for down, norm, more in zip(self.down, self.norms, self.more, strict=True):
            x = nnx.silu(norm(down(x)))
            x = x + nnx.silu(more(x))
        return self.out(jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1))


def renders(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(pictures [B, 64, 64, 3] float32 of one large toy each, its kind [B]), the kinds in turn."""
    scenes = random_scenes(range(count), seed, "train", 1)
    kinds = (np.arange(count) % len(KINDS)).astype(np.int32)
    kind, size = scenes.kind.copy(), scenes.size.copy()
    kind[:, 0], size[:, 0] = kinds, len(SIZES) - 1
    scenes = replace(scenes, kind=kind, size=size)
    some = lambda start: jax.tree.map(lambda array: array[start : start + AT_ONCE], scenes)
    parts = [to_uint8(render(some(start), 64)) for start in range(0, count, AT_ONCE)]
    return np.concatenate(parts).astype(np.float32) / 255, kinds


def displaced(key: Array, pictures: Array, reach: Array, smooth: float) -> Array:
    """Every pixel taken from elsewhere: a smooth random field whose root mean square is ``reach`` [B] pixels."""
    B, H, W, C = pictures.shape
    field = degrade.blur(jax.random.normal(key, (B, H, W, 2)), smooth)
    field *= reach[:, None, None, None] / jnp.sqrt((field**2).mean((1, 2, 3), keepdims=True))
    rows, columns = jnp.meshgrid(jnp.arange(H), jnp.arange(W), indexing="ij")

    def one(picture: Array, shift: Array) -> Array:
        at = [rows + shift[..., 0], columns + shift[..., 1]]
        sample = lambda channel: jax.scipy.ndimage.map_coordinates(channel, at, order=1, mode="nearest")
        return jnp.stack([sample(picture[..., c]) for c in range(C)], axis=-1)

    return jax.vmap(one)(pictures, field)


def spoilt(key: Array, pictures: Array) -> Array:
    """Pictures [B, 64, 64, 3] in which no toy can be told any more: two thirds melted, the others in other ways."""
    keys, third = jax.random.split(key, 8), len(pictures) // 3
    reach = jax.random.uniform(keys[0], (2 * third,), minval=3.0, maxval=7.0)
    fine, coarse = (
        displaced(keys[1], pictures[a : a + third], reach[a : a + third], s) for a, s in ((0, 2.5), (third, 5.0))
    )
    rest = pictures[2 * third :]
    ways = (degrade.blended, degrade.UNSEEN["torn"], degrade.shuffled(8), degrade.blurred, degrade.noised)
    made = jnp.stack([way(k, rest) for way, k in zip(ways, keys[2:], strict=False)])
    chosen = made[jax.random.randint(keys[7], (len(rest),), 0, len(ways)), jnp.arange(len(rest))]
    return jnp.concatenate([fine, coarse, chosen])


@jax.jit
def shown(key: Array, pictures: Array) -> tuple[Array, Array]:
    """(the pictures a little displaced, as many of them spoilt)."""
    a, b, c = jax.random.split(key, 3)
    near = displaced(a, pictures, jax.random.uniform(b, (len(pictures),), maxval=0.8), 4.0)
    return near, spoilt(c, jnp.roll(pictures, 5, 0))


def drawings() -> tuple[np.ndarray, np.ndarray]:
    """(pictures, kinds) that the packaged model draws: what it was asked for; and what it makes of the word "handset",
    as ``NONE``."""
    known = prompts_of(DRAWN, 1, False, SEED)
    kinds = [KINDS.index(parse(text).descriptions[0].kind) for text in known]
    unknown = [f"a {COLOURS[i % len(COLOURS)]} telephone handset" for i in range(NO_HANDSETS)]
    model = bundle.load("toybox")
    pictures = sampled(model, [*known, *unknown], model.guidance, 30_000)
    return pictures, np.array([*kinds, *[NONE] * NO_HANDSETS], np.int32)


def made_up(words: int, seed: int) -> np.ndarray:
    """[8 words, 64, 64, 3] that the packaged model draws for "a COLOUR <word>", in all colours, where a word's vectors
    are random: its weights are as they were, and no word makes them draw a handset."""
    model, rng = bundle.load("toybox"), np.random.default_rng(seed)
    table = np.asarray(model.params["text"][TABLE])
    asked, found = [f"a {colour} <word>" for colour in COLOURS], []
    for number in range(words):
        away = rng.standard_normal((VECTORS, table.shape[1])) * rng.uniform(0, FAR) / table.shape[1] ** 0.5
        vectors = (table[rng.integers(0, len(table), VECTORS)] + away).astype(np.float32)
        taught = with_word(model, "<word>", vectors)
        found.append(ldm.generate(taught, asked, **study.SAMPLING, seed=seed, index=8 * number))
    return np.concatenate(found).astype(np.float32) / 255


def examples(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(pictures, kinds): ``count`` renders, as many a little displaced, as many spoilt; :func:`drawings`; and
    :func:`made_up`."""
    pictures, kinds = renders(count, SEED)
    parts = [shown(jax.random.key(i), pictures[i : i + AT_ONCE]) for i in range(0, count, AT_ONCE)]
    near, bad = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in (0, 1))
    made, drawn = drawings()
    none, words = np.full(count, NONE, np.int32), made_up(MADE_UP, SEED)
    unlike = np.full(len(words), UNLIKE, np.int32)
    return np.concatenate([pictures, near, bad, *[made, words] * AGAIN]), np.concatenate(
        [kinds, kinds, none, *[drawn, unlike] * AGAIN]
    )


def surprise(logits: Array, kinds: Array) -> Array:
    """[B]: the negative log-probability of a kind, or, where that is ``UNLIKE``, of all that is no handset."""
    every = jax.nn.logsumexp(logits, axis=-1)
    others = jax.nn.logsumexp(logits.at[:, HANDSET].set(-jnp.inf), axis=-1)
    own = jnp.take_along_axis(logits, jnp.minimum(kinds, NONE)[:, None], axis=-1)[:, 0]
    return every - jnp.where(kinds == UNLIKE, others, own)


@functools.partial(jax.jit, static_argnums=0)
def step(
    steps: int, params: Params, state: Any, key: Array, pictures: Array, kinds: Array
) -> tuple[Params, Any, Array]:
    """One step of training, on pictures softened and in half of the cases mirrored."""
    a, b = jax.random.split(key)
    x = jnp.where(jax.random.bernoulli(a, 0.5, (len(pictures), 1, 1, 1)), pictures[:, :, ::-1], pictures)
    x = degrade.mild(b, x)
    loss = lambda p: surprise(bind(Eye, WIDTHS, p)(x), kinds).mean()
    value, gradient = jax.value_and_grad(loss)(params)
    change, state = optimiser(steps).update(gradient, state, params)
    return optax.apply_updates(params, change), state, value


def optimiser(steps: int) -> optax.GradientTransformation:
    """AdamW under a cosine."""
    return optax.adamw(optax.warmup_cosine_decay_schedule(0.0, RATE, steps // 20, steps), weight_decay=1e-3)


def trained(count: int = COUNT, steps: int = STEPS) -> Params:
    """The instrument's parameters, from scratch."""
    pictures, kinds = examples(count)
    params = init(Eye, WIDTHS, 0)
    state, rng = optimiser(steps).init(params), np.random.default_rng(0)
    for number in range(steps):
        some = rng.integers(0, len(pictures), BATCH)
        params, state, _ = step(steps, params, state, jax.random.key(number), pictures[some], kinds[some])
    return params


@jax.jit
def _look(params: Params, pictures: Array) -> Array:
    return bind(Eye, WIDTHS, params)(pictures).argmax(-1)


def instrument(path: Path = PACKAGED) -> Params:
    """The parameters in a file, as float32; trained first, if it is not there."""
    if not path.exists():
        weights_file.write({name: np.asarray(a, np.float16) for name, a in trained().items()}, path)
    return {name: array.astype(np.float32) for name, array in weights_file.read(path).items()}


def kinds(params: Params, pictures: np.ndarray) -> np.ndarray:
    """[B]: the kind, an index into ``KINDS``, of the toy in each picture; ``NONE`` where it is no toy's shape."""
    parts = np.array_split(pictures, max(1, len(pictures) // 100))
    return np.concatenate([np.asarray(_look(params, part)) for part in parts])


def main() -> None:
    """Trains it, if FILE is not there, and prints accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE.safetensors", nargs="?", default=PACKAGED)
    params = instrument(parser.parse_args().file)
    pictures, truth = renders(1400, TEST_SEED)
    for name, seen in (
        ("renders", kinds(params, pictures)),
        ("softened", kinds(params, np.asarray(degrade.mild(jax.random.key(1), pictures)))),
    ):
        print(f"{name}: right {100 * np.mean(seen == truth):.1f} %, called no toy {100 * np.mean(seen == NONE):.1f} %")
        for i, kind in enumerate(KINDS):
            own, said = truth == i, seen == i
            print(
                f"  {kind:9} found {100 * np.mean(said[own]):5.1f} %, wrongly said {100 * np.mean(said[~own]):4.1f} %"
            )
    for reach in (1.0, 2.0, 4.0, 6.0):
        seen = kinds(params, np.asarray(displaced(jax.random.key(2), pictures, jnp.full(len(pictures), reach), 3.5)))
        print(
            f"melted by {reach:g} pixels: called no toy {100 * np.mean(seen == NONE):.1f} %, "
            f"a handset {100 * np.mean(seen == HANDSET):.1f} %"
        )
    seen = kinds(params, made_up(10, TEST_SEED))
    print(f"drawn for made-up words: called no toy {100 * np.mean(seen == NONE):.1f} %, ", end="")
    print(f"a handset {100 * np.mean(seen == HANDSET):.1f} %")


if __name__ == "__main__":
    main()
