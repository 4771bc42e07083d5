"""Our Canny against OpenCV's: the same pixels, all of them.

No limit is needed. Gradients of bytes are whole numbers below 2^24, which float32 holds exactly, and every rule for
ties, borders and directions is the same.
"""

from pathlib import Path

import numpy as np
import pytest
from pictures import fractal_noise, scene

from ldm.hints import canny, smoothed
from ldm.pictures import read_picture

from .oracle import agree, cv2

DOCS = Path(__file__).parents[2] / "docs"
THRESHOLDS = [(100, 200), (20, 60), (0, 0), (70.5, 70.5), (1000, 1020)]


def noise(power: float, seed: int, colours: int, side: int = 200) -> np.ndarray:
    """Smooth or grainy noise over all bytes, [160, side, colours]."""
    generator = np.random.default_rng(seed)
    fields = np.stack([fractal_noise(generator, side, power) for _ in range(colours)], -1)
    return np.clip(128 + 60 * fields[:160], 0, 255).astype(np.uint8)


PICTURES = {
    "photograph": lambda: (scene(256, 1) * 255).astype(np.uint8),
    "smooth noise": lambda: noise(2, 0, 3),
    "noise as of photographs, grey": lambda: noise(1.2, 1, 1)[..., 0],
    "grain": lambda: noise(0, 2, 3),
    "plateaus, all ties": lambda: noise(1.5, 3, 3) // 64 * 64,
    "toybox": lambda: read_picture(DOCS / "toybox/scenes.png"),
    "one row": lambda: noise(0, 4, 3)[:1],
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_pixel_is_the_oracles(name):
    picture = np.ascontiguousarray(PICTURES[name]())
    shares = []
    for low, high in THRESHOLDS:
        ours, theirs = canny(picture, low, high)[..., 0], cv2.Canny(picture, low, high)
        np.testing.assert_array_equal(ours, theirs, err_msg=f"thresholds {low}, {high}")
        shares.append(f"{(ours > 0).mean():.1%}")
    print(f"Canny, {name}: relative error 0 (edges {', '.join(shares)})")


def test_grey_first_is_another_picture():
    """The public nets' own program takes edges of colours: a step between equally bright ones is an edge."""
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, :16], picture[:, 16:] = (200, 0, 0), (0, 102, 0)
    assert canny(picture).any()
    np.testing.assert_array_equal(canny(picture)[..., 0], cv2.Canny(picture, 100, 200))
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    assert not canny(grey).any() and not cv2.Canny(grey, 100, 200).any()


def test_the_gaussian_is_the_oracles():
    """In float32; edges of what is smoothed differ where OpenCV's users round it to bytes in between."""
    picture = PICTURES["photograph"]()
    theirs = cv2.GaussianBlur(picture.astype(np.float32), (11, 11), 1.4, borderType=cv2.BORDER_REPLICATE)
    agree("Gaussian before Canny", smoothed(picture.astype(np.float32), 1.4), theirs, 1e-6)
    rounded = np.clip(np.rint(theirs), 0, 255).astype(np.uint8)
    ours, theirs = canny(picture, 40, 80, sigma=1.4)[..., 0] > 0, cv2.Canny(rounded, 40, 80) > 0
    assert (ours == theirs).mean() > 0.995 and theirs.mean() > 0.01
