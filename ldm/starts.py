"""What a run of ``generate`` starts from: noise, a picture with noise on it, or a picture with a hole.

Shapes: N pictures, H W size, h w latent size, Z latent channels, C' extra input channels of the U-Net.
"""

from typing import Any, NamedTuple

import numpy as np

from ldm import program
from ldm.bundle import Bundle
from ldm.inputs import factor_of, latent_size, real
from ldm.models.autoencoder import from_uint8
from ldm.pictures import as_masks, as_pictures, sampled, touched
from ldm.request import Start

STRENGTH, STRENGTH_WITH_MASK = 0.8, 1.0


class Picture(NamedTuple):
    """A picture to start from: images [N, H, W, 3] uint8, masks bool [N, H, W] or None, strength 0..1."""

    images: np.ndarray
    masks: np.ndarray | None
    strength: float

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.images.shape[2], self.images.shape[1]

    @property
    def from_noise(self) -> bool:
        """Whether the hole starts from noise alone: with a mask and all the steps."""
        return self.masks is not None and self.strength == 1


def picture_of(count: int, size: Any, image: Any, mask: Any, strength: float | None) -> Picture | None:
    """The picture of a call, or None. Raises ValueError for a mask or a strength alone, and for other sizes."""
    if image is None:
        odd = next((name for name, value in {"mask": mask, "strength": strength}.items() if value is not None), None)
        if odd:
            raise ValueError(f"{odd} is of an image: give image too")
        return None
    images = as_pictures(image, count)
    found = images.shape[2], images.shape[1]
    if size is not None and tuple(size) != found:
        raise ValueError(f"the image is {found[0]}x{found[1]}, but size {size[0]}x{size[1]} was asked for: resize it")
    masks = None if mask is None else as_masks(mask, count, found)
    default = STRENGTH if mask is None else STRENGTH_WITH_MASK
    return Picture(images, masks, default if strength is None else strength)


def latents_of(bundle: Bundle, pictures: np.ndarray) -> np.ndarray:
    """Pictures [N, H, W, 3] in [-1, 1] -> latents [N, h, w, Z] float32."""
    return np.asarray(program.encoded({"vae": bundle.params["vae"]}, pictures, configs=bundle.configs))


def start_of(bundle: Bundle, count: int, size: Any, picture: Picture | None, latents: Any, concat: Any) -> Start:
    """All of it, checked. Raises ValueError.

    A model with extra channels (inpainting) sees the hole and what is around it in ``concat``, and is left to paint all
    of the latent; any other is told what is known by ``ldm.guidance.keep_known``.
    """
    if picture is not None:
        size = picture.size
    elif size is None and latents is not None and np.ndim(latents) == 4:
        size = tuple(int(side) * factor_of(bundle) for side in (np.shape(latents)[2], np.shape(latents)[1]))
    h, w, Z = *latent_size(bundle, size), bundle.configs.unet.out_channels
    extra = bundle.configs.unet.in_channels - Z
    nothing, given = np.zeros((count, h, w, Z), np.float32), latents is not None
    latents = real("latents", latents, nothing.shape) if given else nothing
    paint = np.ones((count, h, w, 1), np.float32)
    start = Start(latents, np.bool_(given), nothing, nothing, paint, None)
    if picture is not None:
        start = _from_picture(bundle, picture, start, own_channels=extra > 0)
    if concat is None and extra == Z + 1 and picture is not None and picture.masks is not None:
        concat = inpainting_channels(bundle, picture)
    if extra and concat is None:
        raise ValueError(
            f"this model takes {extra} channels beside the latent (inpainting and its like): give an image and a mask, "
            "or the channels as concat"
        )
    return start._replace(concat=None if concat is None else real("concat", concat, (count, h, w, extra)))


def _from_picture(bundle: Bundle, picture: Picture, start: Start, own_channels: bool) -> Start:
    z = latents_of(bundle, from_uint8(picture.images))
    if picture.masks is None or own_channels:
        return start._replace(origin=start.origin if picture.from_noise else z)
    mask = touched(picture.masks, factor_of(bundle))
    return start._replace(origin=(1 - mask) * z if picture.from_noise else z, known=z, mask=mask)


def inpainting_channels(bundle: Bundle, picture: Picture) -> np.ndarray:
    """[N, h, w, 1 + Z], as inpainting models were trained: the mask, and the latent of the picture with a gray hole."""
    seen = from_uint8(picture.images) * ~picture.masks[..., None]
    return np.concatenate([sampled(picture.masks, factor_of(bundle)), latents_of(bundle, seen)], axis=-1)
