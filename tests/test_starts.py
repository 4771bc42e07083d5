"""Pictures to start from: img2img, inpainting, outpainting; what stays, what moves, and what mistakes say."""

import dataclasses

import numpy as np
import pytest
from pictures import HOLE, PHOTO

import ldm
from ldm.pictures import outpaint, sampled, touched
from ldm.starts import Picture, inpainting_channels

SOME = ("ddim", "euler_a", "unipc")  # each is a compilation; what is tested is in the loop that all share


@pytest.fixture(scope="module")
def tiny(least):
    """Networks do not matter here."""
    return least


def draw(bundle, prompts="a cube", **options):
    """A few quick steps on the picture."""
    return ldm.generate(bundle, prompts, **({"steps": 4, "progress": False, "image": PHOTO} | options))


def latents(bundle, prompts="a cube", **options):
    """The same, before decoding."""
    return draw(bundle, prompts, output="latents", **options)


def far(a, b):
    """Root mean square difference of two arrays."""
    return float(np.sqrt(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2)))


@pytest.mark.parametrize("sampler", SOME)
def test_strength_0_is_the_picture(tiny, sampler):
    assert np.array_equal(latents(tiny, strength=0, sampler=sampler), ldm.encode(tiny, PHOTO))


def test_strength_1_is_the_picture_under_all_of_the_noise(tiny):
    """x = z + sigma noise = scale (noise + z / scale): text to picture, from another noise."""
    noise = np.random.default_rng(0).standard_normal((1, 6, 8, 4)).astype(np.float32)
    z, plan_sigma = ldm.encode(tiny, PHOTO), 14.614641
    for sampler, scale in (("euler", plan_sigma), ("ddim", np.hypot(1, plan_sigma))):
        given = (noise * plan_sigma + z) / scale
        plain = latents(tiny, sampler=sampler, spacing="trailing", latents=given, image=None, size=(64, 48))
        result = latents(tiny, sampler=sampler, spacing="trailing", latents=noise, strength=1)
        np.testing.assert_allclose(result, plain, rtol=1e-3, atol=1e-3)


def test_more_strength_goes_farther(tiny):
    z = ldm.encode(tiny, PHOTO)
    away = [far(latents(tiny, strength=strength, steps=10), z) for strength in (0.1, 0.4, 0.7, 1.0)]
    assert away == sorted(away) and away[0] > 0


def test_strength_counts_steps_rounded_down(tiny):
    same = [latents(tiny, strength=strength, steps=4) for strength in (0.5, 0.74)]
    assert np.array_equal(*same)
    assert not np.array_equal(same[0], latents(tiny, strength=0.75, steps=4))


@pytest.mark.parametrize("sampler", SOME)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_outside_of_the_mask_nothing_moves(tiny, sampler, strength):
    picture = draw(tiny, mask=HOLE, sampler=sampler, strength=strength)[0]
    assert np.array_equal(picture[~HOLE], PHOTO[~HOLE])
    assert far(picture[HOLE], PHOTO[HOLE]) > 5


@pytest.mark.parametrize("sampler", SOME)
def test_the_latent_outside_is_the_pictures(tiny, sampler):
    z, kept = ldm.encode(tiny, PHOTO), touched(HOLE[None], 8)[0, :, :, 0] == 0
    result = latents(tiny, mask=HOLE, sampler=sampler, steps=5)
    assert np.array_equal(result[0][kept], z[0][kept])


def test_what_the_hole_held_does_not_matter_at_full_strength(tiny):
    """The picture's latent does, near the hole's edge: so the hole is compared far from it, where all is 0 alike."""
    hole = np.zeros((48, 64), bool)
    hole[8:40, 8:56] = True
    other = PHOTO.copy()
    other[hole] = 255 - other[hole]
    start = lambda image: ldm.starts._from_picture(
        tiny, Picture(image[None], hole[None], 1.0), ldm.starts.start_of(tiny, 1, (64, 48), None, None, None), False
    )
    inside = touched(hole[None], 8)[0, :, :, 0] == 1
    assert not start(PHOTO).origin[0][inside].any() and not start(other).origin[0][inside].any()
    assert start(PHOTO).known[0][~inside].any()


def test_an_empty_mask_paints_nothing_and_a_full_one_everything(tiny):
    assert np.array_equal(draw(tiny, mask=np.zeros_like(HOLE))[0], PHOTO)
    full = draw(tiny, mask=np.ones_like(HOLE))
    assert np.array_equal(full, draw(tiny, image=None, size=(64, 48)))


def test_a_picture_and_a_mask_for_each_prompt(tiny):
    images, masks = np.stack([PHOTO, PHOTO[::-1]]), np.stack([HOLE, HOLE[:, ::-1]])
    both = draw(tiny, ["a", "b"], image=images, mask=masks, sampler="euler_a")
    for i in range(2):
        assert np.array_equal(both[i][~masks[i]], images[i][~masks[i]])
        one = draw(tiny, "ab"[i], image=images[i], mask=masks[i], sampler="euler_a", index=i)[0]
        assert np.abs(both[i].astype(int) - one).max() <= 1


def inpainting_model(tiny):
    """The tiny model with nine input channels, all of them heard."""
    config = dataclasses.replace(tiny.configs.unet, in_channels=9)
    kernel = np.random.default_rng(5).standard_normal((3, 3, 9, 32)).astype(np.float32) / 9
    params = {**tiny.params["unet"], "encoder.conv_in.kernel": kernel}
    configs = dataclasses.replace(tiny.configs, unet=config)
    return dataclasses.replace(tiny, configs=configs, params={**tiny.params, "unet": params})


def test_inpainting_models_are_given_their_channels(tiny):
    model = inpainting_model(tiny)
    picture = draw(model, mask=HOLE)[0]
    assert np.array_equal(picture[~HOLE], PHOTO[~HOLE])
    channels = inpainting_channels(model, Picture(PHOTO[None], HOLE[None], 1.0))
    by_hand = ldm.generate(model, "a cube", steps=4, size=(64, 48), concat=channels, progress=False)
    assert np.array_equal(picture[HOLE], by_hand[0][HOLE])
    with pytest.raises(ValueError, match="give an image and a mask"):
        ldm.generate(model, "a cube", size=(64, 48))


def test_masks_in_the_latents_grid():
    mask = np.zeros((1, 16, 24), bool)
    mask[0, 3, 9] = mask[0, 8, 16] = True
    assert touched(mask, 8)[0, :, :, 0].tolist() == [[0, 1, 0], [0, 0, 1]]  # any pixel of a block
    assert sampled(mask, 8)[0, :, :, 0].tolist() == [[0, 0, 0], [0, 0, 1]]  # the first


def test_outpainting(tiny):
    wide, mask = outpaint(PHOTO, (16, 0, 8, 24))
    assert wide.shape == (72, 88, 3) and mask.shape == (72, 88)
    assert np.array_equal(wide[:48, 16:80], PHOTO) and not mask[:48, 16:80].any() and mask.sum() == 72 * 88 - 48 * 64
    assert (wide[:48, :16] == PHOTO[:, :1]).all()
    picture = draw(tiny, image=wide, mask=mask)[0]
    assert np.array_equal(picture[:48, 16:80], PHOTO)
    for margins in ((0, 0, 0, 0), (-8, 0, 0, 0), (8, 8)):
        with pytest.raises(ValueError, match="margins must be four numbers"):
            outpaint(PHOTO, margins)


def test_encoding_pictures(tiny):
    z = ldm.encode(tiny, PHOTO)
    assert z.shape == (1, 6, 8, 4) and z.dtype == np.float32
    assert np.array_equal(ldm.encode(tiny, np.stack([PHOTO[::-1], PHOTO]))[1], z[0])
    with pytest.raises(ValueError, match="not a multiple of 8"):
        ldm.encode(tiny, PHOTO[:45])
    with pytest.raises(ValueError, match="of uint8"):
        ldm.encode(tiny, PHOTO / 255)


def test_an_autoencoder_that_overflows_float16_decodes_in_float32(tiny):
    """Its last norm's input beyond 65504: float16 is infinite there, float32 fine."""
    big = {**tiny.params["vae"]}
    big["decoder.conv_in.kernel"] = np.asarray(big["decoder.conv_in.kernel"]) * 3e4
    big["decoder.conv_in.bias"] = np.asarray(big["decoder.conv_in.bias"]) * 3e4
    cast = {name: np.asarray(array).astype(np.float16) for name, array in big.items()}
    assert all(np.isfinite(array).all() for array in cast.values())
    half = dataclasses.replace(tiny, params={**tiny.params, "vae": cast})
    with pytest.warns(UserWarning, match="autoencoder passes the range of float16"):
        picture = draw(half, image=None, size=(64, 48))
    wide = dataclasses.replace(tiny, params={**tiny.params, "vae": big})
    assert np.abs(picture.astype(int) - draw(wide, image=None, size=(64, 48))).max() <= 2
