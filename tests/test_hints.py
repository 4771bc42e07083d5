"""Hints: what Canny's edges must be whatever the picture, and how a user's own picture is brought to size."""

from itertools import pairwise

import numpy as np
import pytest
from pictures import fractal_noise, scene
from PIL import Image

from ldm import hints
from ldm.hints import canny, hint_picture

pytestmark = pytest.mark.optimised  # hysteresis is a loop, and one test counts compilations

PHOTO = (scene(96, seed=3) * 255).astype(np.uint8)


def lines(picture, *thresholds, **options) -> np.ndarray:
    """[H, W] bool, of a picture that is white or black in every colour."""
    found = canny(picture, *thresholds, **options)
    assert found.dtype == np.uint8 and found.shape == (*np.shape(picture)[:2], 3)
    assert set(np.unique(found)) <= {0, 255} and (found == found[..., :1]).all()
    return found[..., 0] == 255


@pytest.mark.parametrize("sigma", [0, 1.4])
def test_a_step_is_one_line_one_pixel_wide(sigma):
    for at in (1, 20, 39):
        step = np.zeros((32, 40), np.uint8)
        step[:, at:] = 200
        for picture, line in ((step, lines(step, sigma=sigma)), (step.T, lines(step.T, sigma=sigma).T)):
            assert picture.any() and line.sum() == 32
            assert line[:, at - 1].all() or line[:, at].all(), "beside the step"
    assert lines(step, 801, 900).sum() == 0 and lines(step, 0, 799).sum() == 32, "a step of 200 has magnitude 800"


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_constant_picture_has_none(value):
    picture = np.full((24, 40, 3), value, np.uint8)
    assert not lines(picture, 0, 0).any() and not lines(picture, 0, 0, sigma=2).any()


def test_higher_thresholds_give_a_subset():
    found = [lines(PHOTO, low, high) for low, high in ((20, 40), (20, 120), (60, 120), (60, 300), (300, 300))]
    assert all((few <= many).all() and few.sum() < many.sum() for many, few in pairwise(found))
    assert found[-1].any()


def test_hysteresis_keeps_the_weak_that_touches_the_strong():
    """Two upright steps: one grows from 40 (magnitude 160) to 80 (320) as it goes down, the other is 40 all along."""
    picture = np.full((40, 60), 100, np.uint8)
    picture[:, 20:] = 140 + np.clip(2 * np.arange(-10, 30), 0, 40)[:, None]
    picture[:, 40:] += 40
    found = lines(picture, 100, 240)
    assert found[:, 18:22].any(1).all(), "the strong part, and the weak part that goes on from it"
    assert not found[:, 36:44].any(), "nothing strong touches it"
    assert lines(picture, 100, 120)[:, 36:44].any(1).all(), "but it is there"


def test_hysteresis_follows_a_long_way_round():
    """A line to and fro over the whole picture stays by one strong pixel at its end; where it is cut, it ends."""
    weak = np.zeros((21, 17), bool)
    weak[::2] = weak[1::4, -1] = weak[3::4, 0] = True
    strong = np.zeros_like(weak)
    strong[0, 0] = True
    np.testing.assert_array_equal(hints.connected(weak, strong), weak)
    weak[10, 8] = False
    before = np.zeros_like(weak)
    before[:10] = before[10, 9:] = True  # row 10 runs from right to left
    np.testing.assert_array_equal(hints.connected(weak, strong), weak & before)
    assert not np.asarray(hints.connected(weak, np.zeros_like(weak))).any()


def test_a_quarter_turn_of_the_picture_turns_its_edges():
    """Up to ties, in which the left and the upper pixel win: smooth noise in float32 has next to none."""
    noise = 128 + 40 * np.stack([fractal_noise(np.random.default_rng(seed), 96, 1.5) for seed in range(3)], -1)
    for turns in (1, 2, 3):
        turned = np.asarray(hints.edges(np.rot90(noise, turns), 40.0, 90.0, 0.0))
        upright = np.rot90(np.asarray(hints.edges(noise, 40.0, 90.0, 0.0)), turns)
        assert upright.mean() > 0.02
        assert (turned != upright).mean() < 1e-3


def test_grey_is_three_equal_colours_and_the_colour_that_changes_most_counts():
    grey = PHOTO[..., 1]
    np.testing.assert_array_equal(canny(grey), canny(np.repeat(grey[..., None], 3, -1)))
    np.testing.assert_array_equal(canny(grey), canny(grey[..., None]))
    for channel in range(3):
        alone = np.full((*grey.shape, 3), 77, np.uint8)
        alone[..., channel] = grey
        np.testing.assert_array_equal(canny(alone), canny(grey))


def test_smoothing_removes_grain_and_keeps_the_step():
    grainy = np.random.default_rng(0).integers(0, 80, (48, 48)).astype(np.uint8)
    grainy[:, 24:] += 150
    found, plain = lines(grainy, sigma=2), lines(grainy)
    assert plain[:, :20].mean() > 0.1 and not found[:, :20].any() and not found[:, 28:].any()
    assert found[:, 20:28].any(1).all()
    flat = np.asarray(hints.smoothed(np.full((9, 12, 3), 50, np.float32), 2.0))
    np.testing.assert_allclose(flat, 50, rtol=1e-6)


def test_thresholds_compile_nothing():
    lines(PHOTO, 10, 20)
    before = hints.edges._cache_size()
    for low, high in ((30, 60), (30.5, 60), (0, 0), (np.int64(5), np.float64(9))):
        lines(PHOTO, low, high)
    assert hints.edges._cache_size() == before


def test_one_pixel_and_one_line_are_pictures_too():
    assert not lines(np.zeros((1, 1), np.uint8)).any()
    assert lines(np.repeat(np.uint8([[0, 255]]), 4, 1)).sum() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 200, "high": 100}, "0 <= low <= high, got low 200 and high 100"),
        ({"low": -1}, "got low -1"),
        ({"high": float("nan")}, "high nan"),
        ({"sigma": -1}, "sigma is 0 .* got -1"),
        ({"picture": PHOTO / 255}, r"picture must be uint8 .* got float64 \(96, 96, 3\)"),
    ],
)
def test_canny_refuses_in_one_sentence(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        canny(**{"picture": PHOTO} | options)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# A user's own picture.


def test_a_hint_of_the_right_size_stays_as_it_is():
    np.testing.assert_array_equal(hint_picture(PHOTO, (96, 96)), PHOTO)
    for grey in (PHOTO[..., 0], PHOTO[..., :1]):
        made = hint_picture(grey, (96, 96))
        assert made.shape == (96, 96, 3) and (made == PHOTO[..., :1]).all()


def test_transparency_is_laid_on_white():
    picture = np.dstack([PHOTO, np.zeros((96, 96), np.uint8)])
    picture[:48, :, 3] = 255
    made = hint_picture(picture, (96, 96))
    np.testing.assert_array_equal(made[:48], PHOTO[:48])
    assert (made[48:] == 255).all()


def test_a_hint_of_another_size_is_resized_and_says_so():
    with pytest.warns(UserWarning, match="^the hint is 96x96 and the picture 48x48: it is resized; draw it at 48x48"):
        made = hint_picture(PHOTO, (48, 48))
    assert made.shape == (48, 48, 3) and made.dtype == np.uint8
    np.testing.assert_array_equal(made, Image.fromarray(PHOTO).resize((48, 48), Image.Resampling.LANCZOS))
    with pytest.warns(UserWarning, match="the hint is 96x96 and the picture 64x48: it is stretched"):
        assert hint_picture(PHOTO[..., 0], (64, 48)).shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((8, 8, 2), np.uint8), r"1 \(grey\), 3 \(RGB\) or 4 \(RGBA\) channels, got uint8 \(8, 8, 2\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"got uint8 \(1, 8, 8, 3\)"),
        (np.zeros(8, np.uint8), r"got uint8 \(8,\)"),
        (np.zeros((8, 8, 3), np.float32), "must be uint8"),
        (np.zeros((8, 0, 3), np.uint8), "the hint has no pixels"),
    ],
)
def test_what_is_no_hint_is_refused_in_one_sentence(picture, message):
    with pytest.raises(ValueError, match=message) as caught:
        hint_picture(picture, (8, 8))
    assert "\n" not in str(caught.value)
