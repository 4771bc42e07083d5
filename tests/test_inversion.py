"""From pictures back to noise: the way there and back, and the contexts that make it exact at strong guidance."""

import numpy as np
import pytest

import ldm
from ldm.editing.null_text import null_text
from ldm.inversion import invert, rising_plan
from ldm.schedule import NoiseSchedule, sigmas

pytestmark = [pytest.mark.optimised, pytest.mark.long]

QUIET = {"progress": False}
STEPS = 10  # of learned contexts


@pytest.fixture(scope="module")
def toys():
    return ldm.load("toybox")


@pytest.fixture(scope="module")
def photo(toys):
    """A picture that the model can draw: of its own."""
    return ldm.generate(toys, "a red cube", seed=5, steps=30, spacing="trailing", **QUIET)


def apart(a, b):
    """Root mean square difference of two pictures, in levels of 255."""
    return float(np.sqrt(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2)))


def test_levels_from_below():
    schedule = NoiseSchedule()
    for spacing in ("leading", "trailing", "karras", "uniform"):
        plan = rising_plan(schedule, spacing, 10)
        visited = plan.levels[: plan.steps + 1]
        assert visited[0] == sigmas(schedule)[0] and (np.diff(visited) > 0).all()
        assert plan.steps in (9, 10) and plan.scale == 0


def test_the_error_there_and_back_falls_as_one_over_the_steps(toys, photo):
    there_and_back = ldm.encode(toys, photo)
    errors = []
    for steps in (10, 20, 40, 80):
        noise = invert(toys, photo, "a red cube", steps=steps, **QUIET)
        back = ldm.generate(
            toys, "a red cube", steps=steps, guidance=1, latents=noise, size=None, output="latents", **QUIET
        )
        errors.append(apart(back, there_and_back))
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    print("errors", errors, "slopes", slopes)
    assert 0.8 < slopes[1:].mean() < 1.6  # 10 steps are too few to tell


def test_the_noise_is_of_the_size_of_unit_noise(toys, photo):
    """Less of it: a picture with an empty background is found to come from quieter noise than most."""
    noise = invert(toys, photo, "a red cube", steps=40, **QUIET)
    assert noise.shape == (1, 16, 16, 4) and 0.4 < noise.std() < 1.2


def test_learned_contexts_bring_a_guided_picture_back(toys, photo):
    learned = null_text(toys, photo, "a red cube", steps=STEPS, guidance=5.0, iterations=10)
    assert learned.context.shape == (STEPS, 2, 40, 128)
    numbers = {"steps": STEPS, "guidance": 5.0, "latents": learned.latents} | QUIET
    plain, exact = (
        ldm.generate(toys, "a red cube", **numbers),
        ldm.generate(toys, "a red cube", context=learned.context, **numbers),
    )
    through = ldm.decode(toys, ldm.encode(toys, photo))
    print("guided", apart(plain, through), "with learned contexts", apart(exact, through))
    assert apart(exact, through) < apart(plain, through) / 2


def test_no_iterations_learn_nothing(toys, photo):
    learned = null_text(toys, photo, "a red cube", steps=STEPS, iterations=0)
    wanted = ldm.encode_prompts(toys, "a red cube")
    np.testing.assert_allclose(learned.context, np.broadcast_to(wanted, (STEPS, *wanted.shape)), atol=1e-6)
    noise = invert(toys, photo, "a red cube", steps=STEPS, **QUIET)
    np.testing.assert_allclose(learned.latents, noise, rtol=1e-3, atol=1e-3)


def test_mistakes(toys, photo):
    with pytest.raises(ValueError, match="steps must be between 1 and 1000, got 0"):
        invert(toys, photo, "a", steps=0)
    with pytest.raises(ValueError, match="of uint8"):
        invert(toys, photo / 255, "a")
    with pytest.raises(ValueError, match="unknown spacing"):
        invert(toys, photo, "a", spacing="uniformly")
