"""The same request gives the same picture: alone, in any batch, at any index; compiled as users' programs are."""

import numpy as np
import pytest
from pictures import HOLE, PHOTO

import ldm

pytestmark = pytest.mark.optimised

STOCHASTIC = ("euler_a", "dpmpp_sde", "lcm")  # the loop is one; every sampler in it: test_sampling, test_sharding
STARTS = {
    "noise": {"size": (64, 48)},
    "a picture": {"image": PHOTO, "strength": 0.7},
    "a picture with a hole": {"image": PHOTO, "mask": HOLE, "strength": 0.7},
}


def latents(bundle: ldm.Bundle, prompts: str | list[str], **options) -> np.ndarray:
    """Three quick steps."""
    return ldm.generate(bundle, prompts, steps=3, output="latents", progress=False, **options)


@pytest.mark.long
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_a_picture_is_the_same_alone_in_a_batch_and_at_its_index(least, sampler, start):
    options = {"sampler": sampler} | STARTS[start]
    together = latents(least, ["a", "b"], **options)
    alone = latents(least, "b", index=1, **options)
    np.testing.assert_allclose(together[1], alone[0], rtol=1e-3, atol=1e-4)
    assert not np.allclose(latents(least, "b", **options)[0], alone[0], atol=0.1)


def test_the_same_seed_gives_the_same_bits(least):
    first, again, other = (latents(least, "a", sampler="euler_a", size=(64, 48), seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.allclose(first, other, atol=0.1)
    with_hole = STARTS["a picture with a hole"]
    assert np.array_equal(*(latents(least, "a", sampler="euler_a", seed=3, **with_hole) for _ in range(2)))


def test_guidance_one_ignores_the_negative_prompt(least):
    ignored = [latents(least, "a", size=(64, 48), guidance=1.0, negative=text) for text in "xy"]
    assert np.array_equal(*ignored)


def test_guidance_zero_ignores_the_prompt(least):
    assert np.array_equal(*(latents(least, text, size=(64, 48), guidance=0.0) for text in "xy"))


def test_given_noise_stands_in_for_the_seed(least):
    noise = np.random.default_rng(0).standard_normal((1, 6, 8, 4)).astype(np.float32)
    given = latents(least, "a", latents=noise)
    assert np.array_equal(given, latents(least, "a", latents=noise, seed=99))
    assert np.array_equal(given, latents(least, "a", latents=noise, size=(64, 48)))
