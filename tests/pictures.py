"""A picture like a photograph, drawn from its description: sky, textured ground, a shaded ball and its shadow."""

import numpy as np

PHOTO = (np.random.default_rng(3).random((6, 8, 3)).repeat(8, 0).repeat(8, 1) * 255).astype(np.uint8)
"""Blocks of colour, [48, 64, 3]: the least that a run can start from."""
HOLE = np.zeros((48, 64), bool)
"""A mask for it that begins and ends inside of latent pixels."""
HOLE[13:30, 20:50] = True


def fractal_noise(generator: np.random.Generator, side: int, power: float) -> np.ndarray:
    """[side, side] noise of unit variance whose amplitude falls as frequency^-power, as in photographs."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    frequency[0, 0] = 1
    noise = np.fft.ifft2(np.fft.fft2(generator.standard_normal((side, side))) / frequency**power).real
    return (noise - noise.mean()) / noise.std()


def scene(side: int = 256, seed: int = 0) -> np.ndarray:
    """The picture, [side, side, 3] float32 in [0, 1]."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    sky = np.stack([0.55 + 0.25 * y, 0.65 + 0.2 * y, 0.9 - 0.1 * y], -1)
    horizon = 0.55 + 0.06 * fractal_noise(generator, side, 1.8)[0]
    grass = 1 + 0.25 * fractal_noise(generator, side, 1.6)[..., None]
    ground = np.array([0.35, 0.42, 0.2]) * grass * (0.6 + 0.5 * y[..., None])
    picture = np.where((y > horizon)[..., None], ground, sky)

    dx, dy = (x - 0.45) / 0.22, (y - 0.6) / 0.22
    height = np.sqrt(np.clip(1 - dx**2 - dy**2, 0, 1))
    light = np.clip(-0.5 * dx - 0.6 * dy + 0.62 * height, 0, 1)[..., None]
    ball = np.array([0.8, 0.25, 0.15]) * (0.15 + 0.85 * light) + light**30
    shadow = np.clip(1 - np.hypot((x - 0.55) / 0.3, (y - 0.8) / 0.07), 0, 1)[..., None]
    picture = np.where((dx**2 + dy**2 < 1)[..., None], ball, picture * (1 - 0.6 * shadow))
    return np.clip(picture, 0, 1).astype(np.float32)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]."""
    return float(-10 * np.log10(np.mean((np.asarray(a, np.float64) - b) ** 2)))
