"""Pictures, masks and arrays that a run starts from: read, checked, padded, put together. On the host, no JAX.

Shapes: N pictures, H W size, h w latent size, f pixels per latent pixel along each side.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

PAINTED = 128  # a mask's pixel from here on is white: paint there


def read_picture(path: Path, size: tuple[int, int] | None = None, mode: str = "RGB") -> np.ndarray:
    """A picture file as [H, W, 3] uint8 (mode "L": [H, W]), resized to ``size`` (width, height) if one is given.

    Transparency is laid on white. Raises ValueError for what is no picture.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            if mode == "RGB" and (picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info):
                picture = on_white(picture)
            picture = picture.convert(mode)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError(f"{path}: no picture that can be read ({error})") from None
    if size is not None and size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS if mode == "RGB" else Image.Resampling.NEAREST)
    return np.asarray(picture)


def read_array(path: Path) -> np.ndarray:
    """An array of numbers from a ``.npy`` file; never pickled objects. Raises ValueError."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: no readable .npy file of numbers ({error})") from None


def on_white(picture: Image.Image) -> Image.Image:
    """A picture with transparency laid on white: mode "RGB"."""
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def as_pictures(value: Any, count: int) -> np.ndarray:
    """One picture for all or one for each of ``count`` -> [N, H, W, 3] uint8. Raises ValueError."""
    array = np.asarray(value)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3:
        raise ValueError(f"image must be [H, W, 3] or [N, H, W, 3] of uint8, got {array.dtype} {array.shape}")
    return _for_each("image", array, count, 3)


def as_masks(value: Any, count: int, size: tuple[int, int]) -> np.ndarray:
    """One mask for all or one for each of ``count`` -> bool [N, H, W], True to paint. ``size`` is (W, H).

    A mask is bool, or uint8 of which 128 and more are white. Raises ValueError.
    """
    array = np.asarray(value)
    if array.dtype not in (np.uint8, np.bool_) or array.ndim not in (2, 3):
        raise ValueError(f"mask must be [H, W] or [N, H, W] of bool or uint8, got {array.dtype} {array.shape}")
    masks = _for_each("mask", array, count, 2)
    if masks.shape[1:] != size[::-1]:
        raise ValueError(
            f"the mask is {masks.shape[2]}x{masks.shape[1]}, but the picture {size[0]}x{size[1]}: give one of its size"
        )
    return masks if masks.dtype == np.bool_ else masks >= PAINTED


def _for_each(name: str, array: np.ndarray, count: int, alone: int) -> np.ndarray:
    array = array[None] if array.ndim == alone else array
    if len(array) not in (1, count):
        raise ValueError(f"{len(array)} of {name} for {count} prompts: give one, or one for each")
    return np.repeat(array, count, axis=0) if len(array) == 1 else array


def touched(masks: np.ndarray, f: int) -> np.ndarray:
    """Masks [N, H, W] -> float32 [N, h, w, 1]: 1 where any pixel of a latent pixel's block is to be painted."""
    n, height, width = masks.shape
    blocks = masks.reshape(n, height // f, f, width // f, f)
    return blocks.any(axis=(2, 4))[..., None].astype(np.float32)


def sampled(masks: np.ndarray, f: int) -> np.ndarray:
    """Masks [N, H, W] -> float32 [N, h, w, 1]: each block's first pixel, what inpainting models were trained with."""
    return masks[:, ::f, ::f, None].astype(np.float32)


def outpaint(picture: np.ndarray, margins: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """A picture [H, W, 3] uint8 with margins (left, top, right, bottom), and the mask of what is to be painted there.

    The margins repeat the picture's edge: a start of the right colours. Raises ValueError for what are no margins.
    """
    if len(margins) != 4 or min(margins) < 0 or not any(margins):
        raise ValueError(f"margins must be four numbers, left, top, right, bottom, not all 0, got {tuple(margins)}")
    left, top, right, bottom = margins
    sides = ((top, bottom), (left, right))
    mask = np.pad(np.zeros(picture.shape[:2], bool), sides, constant_values=True)
    return np.pad(picture, (*sides, (0, 0)), mode="edge"), mask


def composite(new: np.ndarray, old: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """new where the mask is True, old to the last bit elsewhere. [N, H, W, 3] uint8, masks [N, H, W]."""
    return np.where(masks[..., None], new, old)
