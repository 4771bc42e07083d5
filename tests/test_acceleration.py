"""Laws of what is left out: nothing changes where nothing is left out, and what is left out is not computed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ldm
from ldm.acceleration import cached_features, token_merging
from ldm.acceleration.shortcuts import Shortcuts
from ldm.attention import attention, fused_attention
from ldm.conditioning import Conditioning
from ldm.guidance import Guidance, needs_negative, positive_alone
from ldm.hooks import Hooks
from ldm.models.layers import bind, init
from ldm.models.unet import UNet, UNetConfig
from weights_convert.tiny import random_bundle

CONFIG = UNetConfig(channels=(32, 64), blocks=1, depth=(1, 0), heads=(4, 4), context_dim=16, groups=8)
BLOCKS = 4  # of the decoder


def gaussian(seed: int, *shape: int) -> jax.Array:
    """Unit Gaussian numbers."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


@pytest.fixture(scope="module")
def params():
    return init(UNet, CONFIG, 0)


def call_of(params, cond=None):
    """The U-Net as ``Shortcuts`` wants it: (x, hooks) -> answer, for the last rows of a condition."""
    cond = gaussian(9, 4, 5, 16) if cond is None else cond
    unet = bind(UNet, CONFIG, params)
    return lambda x, hooks: unet(x, jnp.float32(500), Conditioning(cond[-len(x) :]), hooks=hooks)


def flops(function, *args) -> float:
    """Of the compiled program."""
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


# ---- the negative half ----


def test_the_negative_half_counts_inside_of_the_interval_and_away_from_scale_1():
    numbers = Guidance(3.0, low=0.5, high=2.0)
    assert [bool(needs_negative(numbers, sigma)) for sigma in (0.4, 0.5, 0.6, 2.0, 2.1)] == [0, 0, 1, 1, 0]
    assert not needs_negative(Guidance(1.0), 1.0) and needs_negative(Guidance(0.0), 1.0)


def test_where_it_does_not_count_only_the_positive_half_is_computed():
    shapes = []

    def run(x, memory):
        shapes.append(x.shape)
        return 2 * x, memory + 1

    x, memory = gaussian(0, 4, 2, 2, 1), gaussian(1, 4, 3)
    both = jax.jit(lambda needed: positive_alone(run, x, memory, needed))
    np.testing.assert_array_equal(both(True)[0], 2 * x)
    output, kept = both(False)
    assert sorted(shapes) == [(2, 2, 2, 1), (4, 2, 2, 1)]
    for half in (slice(2), slice(2, 4)):
        np.testing.assert_array_equal(output[half], 2 * x[2:])
        np.testing.assert_array_equal(kept[half], memory[2:] + 1)


# ---- cached features ----


@pytest.mark.long
@pytest.mark.parametrize("blocks", range(1, BLOCKS))
def test_features_of_the_same_input_change_nothing(params, blocks):
    site, call, x = cached_features.entrance(CONFIG, blocks), call_of(params), gaussian(0, 4, 6, 5, 4)
    run = lambda hooks: call(x, hooks)
    cached = jax.jit(lambda memory, whole: cached_features.cached(run, site, Hooks(), memory, whole))
    empty = cached_features.no_features(CONFIG, blocks, 4, (6, 5), jnp.float32)
    wanted, features = cached(empty, True)
    assert features.shape == empty.shape and not empty.any()
    np.testing.assert_allclose(wanted, run(Hooks()), atol=1e-5)
    again, kept = cached(features, False)
    np.testing.assert_allclose(again, wanted, atol=1e-5)
    np.testing.assert_array_equal(kept, features)
    assert np.abs(cached(0 * features, False)[0] - wanted).max() > 1e-2


def test_what_lies_below_the_entrance_is_not_computed(params):
    x = gaussian(0, 2, 16, 16, 4)
    whole = flops(lambda params: call_of(params)(x, Hooks()), params)
    least = []
    for blocks in range(1, BLOCKS):
        site = cached_features.entrance(CONFIG, blocks)
        features = cached_features.no_features(CONFIG, blocks, 2, (16, 16), jnp.float32)
        hooks = cached_features.recalling(site, features, Hooks())
        least.append(flops(lambda params, hooks=hooks: call_of(params)(x, hooks), params) / whole)
    assert least == sorted(least) and least[0] < 0.45 and least[-1] < 1, least


def test_entrances():
    assert [cached_features.entrance(CONFIG, n) for n in (1, 2, 3)] == [
        f"decoder.up.{place}" for place in ("1.in.1", "1.in.0", "0.in.1")
    ]
    for blocks in (0, 4):
        with pytest.raises(ValueError, match=f"1 to 3 of the decoder's 4, got {blocks}"):
            cached_features.entrance(CONFIG, blocks)


# ---- token merging ----


def naive(site, q, k, v):
    return attention(q, k, v)


def maps(rows=6, columns=8, seed=0):
    return [gaussian(seed + i, 2, rows * columns, 2, 4) for i in range(3)]


@pytest.mark.parametrize(("rows", "columns"), [(6, 8), (5, 7), (1, 4)])
def test_every_token_is_kept_merged_or_a_destination(rows, columns):
    k = gaussian(0, 2, rows * columns, 2, 4)
    destinations = token_merging.destinations_of(rows, columns, 3)
    assert len(destinations) == (rows // 2) * (columns // 2)
    cells = {(d // columns // 2, d % columns // 2) for d in destinations.tolist()}
    assert len(cells) == len(destinations)
    if not len(destinations):
        return
    m = token_merging.match(k, destinations, 9)
    for b in range(2):
        assert sorted([*m.merged[b].tolist(), *m.kept[b].tolist(), *destinations]) == list(range(rows * columns))


def test_the_most_alike_are_merged():
    """By loops, against the definition."""
    k, destinations = gaussian(0, 1, 24, 2, 4), token_merging.destinations_of(4, 6, 1)
    m = token_merging.match(k, destinations, 5)
    flat = np.asarray(k).reshape(24, 8) / np.linalg.norm(np.asarray(k).reshape(24, 8), axis=1, keepdims=True)
    best = {s: max((float(flat[s] @ flat[d]), i) for i, d in enumerate(destinations)) for s in range(24)}
    sources = sorted(set(range(24)) - set(destinations.tolist()), key=lambda s: -best[s][0])
    assert m.merged[0].tolist() == sources[:5]
    assert m.into[0].tolist() == [best[s][1] for s in sources[:5]]


def test_a_destination_is_the_mean_of_what_merged_into_it():
    x, m = gaussian(0, 1, 24, 3), token_merging.match(gaussian(1, 1, 24, 4), token_merging.destinations_of(4, 6, 1), 9)
    merged = token_merging.merge(x, m)
    assert merged.shape == (1, 15, 3)
    for place, destination in enumerate(m.destinations):
        group = [destination, *np.asarray(m.merged[0])[np.asarray(m.into[0]) == place]]
        np.testing.assert_allclose(merged[0, 24 - 9 - 6 + place], x[0, np.array(group)].mean(0), atol=1e-6)
    back = token_merging.unmerge(merged, m)
    np.testing.assert_array_equal(back[0, m.kept[0]], x[0, m.kept[0]])
    np.testing.assert_array_equal(back[0, m.merged[0]], merged[0, 9:][m.into[0]])


def test_merging_nothing_is_the_same_attention_and_other_sites_are_left_alone():
    q, k, v = maps()
    attend = token_merging.merging(naive, (6, 8), 0.5)
    for site, own in (("a.cross_attn", (q, k, v)), ("a.self_attn", maps(4, 4))):
        np.testing.assert_array_equal(attend(site, *own), attention(*own))
    np.testing.assert_array_equal(token_merging.merging(naive, (6, 8), 0.0)("a.self_attn", q, k, v), attention(q, k, v))
    assert np.abs(attend("a.self_attn", q, k, v) - attention(q, k, v)).max() > 1e-2


def test_merging_equal_tokens_changes_only_their_weight():
    """Four equal tokens in each cell, three quarters merged: every group is equal tokens, of equal size."""
    cells = [gaussian(seed, 2, 3, 4, 2, 4) for seed in range(3)]
    q, k, v = (jnp.repeat(jnp.repeat(x, 2, 1), 2, 2).reshape(2, 48, 2, 4) for x in cells)
    attend = token_merging.merging(naive, (6, 8), 0.75)
    np.testing.assert_allclose(attend("self_attn", q, k, v), attention(q, k, v), atol=1e-5)


def test_merging_the_input_of_the_layer_is_the_same_as_merging_q_k_v(params):
    """What lets a hook do what the paper does before the projections: they are linear and without bias."""
    h, m = gaussian(0, 1, 24, 8), token_merging.match(gaussian(1, 1, 24, 4), token_merging.destinations_of(4, 6, 1), 9)
    w = gaussian(2, 8, 8)
    np.testing.assert_allclose(token_merging.merge(h, m) @ w, token_merging.merge(h @ w, m), atol=1e-5)


def test_the_finest_grid_is_that_of_the_first_level_with_attention():
    assert token_merging.finest_grid(UNetConfig(), (64, 96)) == (64, 96)
    other = UNetConfig(channels=(32, 64, 64), depth=(0, 1, 1), heads=(4, 4, 4))
    assert token_merging.finest_grid(other, (15, 16)) == (8, 8)


# ---- all together ----


def test_the_defaults_leave_out_nothing(params):
    call, x = call_of(params), gaussian(0, 4, 6, 6, 4)
    none = Shortcuts()
    assert none.memory(CONFIG, 4, (6, 6), jnp.float32) is None and none.hooks(CONFIG, (6, 6)).attend is fused_attention
    output, memory = none.run(call, CONFIG, x, 0, None, True)
    np.testing.assert_array_equal(output, call(x, Hooks()))
    assert memory is None


@pytest.mark.parametrize("skip", [False, True])
def test_every_third_step_is_whole(params, skip):
    call, (x, y) = call_of(params), (gaussian(seed, 4, 6, 6, 4) for seed in (0, 1))
    both = Shortcuts(every=3, skip_negative=skip, merge=0.5)
    hooks = both.hooks(CONFIG, (6, 6))
    run = jax.jit(lambda x, step, memory: both.run(call, CONFIG, x, step, memory, True))
    first, memory = run(x, 0, both.memory(CONFIG, 4, (6, 6), jnp.float32))
    np.testing.assert_allclose(first, call(x, hooks), atol=1e-5)
    for step in (1, 2):
        near, after = run(y, step, memory)
        np.testing.assert_array_equal(after, memory)
        assert np.abs(near - call(y, hooks)).max() > 1e-2
    np.testing.assert_allclose(run(y, 3, memory)[0], call(y, hooks), atol=1e-5)


def latents(model, **options) -> np.ndarray:
    """Four steps of a whole run."""
    return ldm.generate(model, ["a", "b"], steps=4, output="latents", progress=False, **options)


@pytest.mark.long
def test_a_run_takes_shortcuts(least):
    wanted = latents(least)
    np.testing.assert_allclose(latents(least, shortcuts=Shortcuts(skip_negative=True)), wanted, atol=1e-4)
    kept = latents(least, shortcuts=Shortcuts(every=2, blocks=1))
    assert 1e-3 < np.linalg.norm(kept - wanted) / np.linalg.norm(wanted) < 1
    every = latents(least, sampler="heun", shortcuts=Shortcuts(True, 2, 1, 0.5), guidance=Guidance(5.0, low=1.0))
    assert np.isfinite(every).all()


def test_in_a_run_without_guidance_the_negative_prompt_is_not_asked(least):
    plain, skipped = (latents(least, guidance=1.0, shortcuts=Shortcuts(skip)) for skip in (False, True))
    np.testing.assert_allclose(skipped, plain, atol=1e-4)


def test_a_network_that_is_told_its_guidance_answers_for_the_prompts_alone(least):
    unet = dataclasses.replace(least.configs.unet, guidance_dim=8, groups=8)  # a norm of one channel hides the time
    told = random_bundle(configs=dataclasses.replace(least.configs, unet=unet), size=least.size)
    draw = lambda **options: latents(told, sampler="lcm", spacing="lcm", **options)
    wanted = draw(guidance=2.0)
    np.testing.assert_array_equal(draw(guidance=2.0, negative="something else"), wanted)
    assert np.abs(draw(guidance=8.0) - wanted).max() > 1e-3
    assert np.isfinite(draw(guidance=2.0, shortcuts=Shortcuts(True, 2, 1))).all()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [({"every": 0}, "every must be a whole number"), ({"merge": 0.8}, "merge must be between 0 and 0.75")],
)
def test_numbers_out_of_range(numbers, message):
    with pytest.raises(ValueError, match=message):
        Shortcuts(**numbers)
