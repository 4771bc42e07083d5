"""Text to picture: one compilation for every run-time knob, and what each knob means."""

import dataclasses

import jax
import numpy as np
import pytest
from pictures import HOLE, PHOTO

import ldm
from ldm.bundle import Bundle, Configs
from ldm.models.layers import init
from ldm.models.taesd import TinyVAE, TinyVAEConfig
from ldm.samplers import SAMPLERS

SIZE = (64, 48)


@pytest.fixture(scope="module")
def tiny(least):
    """Networks do not matter here."""
    return least


def draw(bundle: Bundle, prompts="a cube", **options):
    """Two quick steps at a small size."""
    return ldm.generate(bundle, prompts, **({"steps": 2, "size": SIZE, "progress": False} | options))


def latents(bundle: Bundle, prompts="a cube", **options):
    """The same, before decoding."""
    return draw(bundle, prompts, output="latents", **options)


def unit_noise(count=1, seed=0):
    """Starting noise of the right shape."""
    return np.random.default_rng(seed).standard_normal((count, 6, 8, 4)).astype(np.float32)


class CountCompilations:
    """Counts the programs that JAX compiles while it is armed."""

    def __init__(self):
        self.count, self.armed = 0, False
        jax.monitoring.register_event_duration_secs_listener(self)

    def __call__(self, event, duration, **_):
        self.count += self.armed and event == "/jax/core/compile/backend_compile_duration"


SWEEP = [
    {"prompts": "something else, much longer than it was before"},
    {"negative": "blurry"},
    {"seed": 4_000_000_000},
    {"guidance": 1.0},
    {"guidance": 0.0},
    {"steps": 1},
    {"steps": 7},
    {"eta": 0.7},
    {"clip_skip": 1},
    {"spacing": "karras"},
    {"spacing": "trailing"},
    {"spacing": "uniform"},
    {"latents": unit_noise()},
    {"guidance": ldm.Guidance(7.5, rescale=0.7)},
    {"guidance": ldm.Guidance(7.5, low=1.0)},
    {"index": 3},
    {"image": PHOTO},
    {"image": PHOTO, "strength": 0.5},
    {"image": PHOTO, "strength": 0.0},
    {"image": PHOTO, "mask": HOLE},
    {"image": PHOTO, "mask": ~HOLE, "strength": 0.6},
]


def test_one_compilation_for_every_run_time_knob(tiny):
    counter = CountCompilations()
    base, _ = draw(tiny), ldm.encode(tiny, PHOTO)  # a picture is encoded by a program of its own
    counter.armed = True
    pictures = [draw(tiny, **({"prompts": "a cube"} | knob)) for knob in SWEEP]
    assert counter.count == 0
    for knob, picture in zip(SWEEP, pictures, strict=True):
        assert not np.array_equal(picture, base), f"{knob} changes nothing"
    draw(tiny, size=(64, 64))
    assert counter.count >= 1, "the counter counts nothing"
    counter.armed = False


def test_shapes_and_dtypes(tiny):
    picture, z = draw(tiny, ["a", "b"]), latents(tiny, ["a", "b"])
    assert (picture.shape, picture.dtype) == ((2, 48, 64, 3), np.uint8)
    assert (z.shape, z.dtype) == ((2, 6, 8, 4), np.float32)
    assert picture.std() > 5


def test_decoding_the_latents_gives_the_picture(tiny):
    difference = ldm.decode(tiny, latents(tiny)).astype(int) - draw(tiny).astype(int)
    assert np.abs(difference).max() <= 1


def test_a_negative_prompt_equal_to_the_prompt_is_no_guidance(tiny):
    a, b = (latents(tiny, "x", negative="x", guidance=g) for g in (1.0, 9.0))
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_negative_prompts_one_for_all_or_one_each(tiny):
    both = latents(tiny, ["a", "b"], negative="n")
    assert np.array_equal(both, latents(tiny, ["a", "b"], negative=["n", "n"]))
    with pytest.raises(ValueError, match="3 negative prompts for 2 prompts"):
        latents(tiny, ["a", "b"], negative=["n"] * 3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_runs(least, sampler):
    z = latents(least, sampler=sampler, steps=3)
    assert np.isfinite(z).all()
    assert z.std() > 0.05


def test_a_long_prompt_is_cut_with_a_warning(tiny):
    with pytest.warns(UserWarning, match="left out"):
        draw(tiny, "word " * 100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "eulr"}, "did you mean 'euler'"),
        ({"spacing": "karas"}, "did you mean 'karras'"),
        ({"size": (60, 64)}, "size 60x64 is not a multiple of 8 both ways; try 64x64"),
        ({"size": (0, 64)}, "size 0x64"),
        ({"steps": 0}, "steps must be between 1 and 1000, got 0"),
        ({"steps": 1001}, "steps must be between 1 and 1000, got 1001"),
        ({"clip_skip": 2}, "clip_skip must be between 0 and 1, got 2"),
        ({"seed": -1}, "seed must be between 0 and 4294967295, got -1"),
        ({"eta": 2.0}, "eta must be between 0 and 1"),
        ({"sampler": "euler", "eta": 0.5}, "'euler' has no eta"),
        ({"steps": 2.0}, "steps must be a whole number, got 2.0"),
        ({"guidance": float("nan")}, "guidance must be a finite number, got nan"),
        ({"guidance": "much"}, "guidance must be a finite number"),
        ({"guidance": ldm.Guidance(3.0, rescale=1.5)}, "rescale must be between 0 and 1, got 1.5"),
        ({"guidance": ldm.Guidance(3.0, low=2.0, high=1.0)}, "0 <= low <= high, got 2.0 and 1.0"),
        ({"noise": "browning"}, "did you mean 'brownian'"),
        ({"sampler": "DPM++ 2N Karras"}, r"unknown sampler 'DPM\+\+ 2N Karras'"),
        ({"mask": HOLE}, "mask is of an image: give image too"),
        ({"strength": 0.5}, "strength is of an image: give image too"),
        ({"image": PHOTO, "strength": 1.1}, r"strength must be between 0 \(the picture itself\) and 1"),
        ({"image": PHOTO, "strength": "x"}, "strength must be a finite number"),
        ({"image": PHOTO, "size": (64, 64)}, "the image is 64x48, but size 64x64 was asked for"),
        ({"image": PHOTO / 255.0}, "image must be .* of uint8, got float64"),
        ({"image": PHOTO[:, :60], "size": None}, "size 60x48 is not a multiple of 8"),
        ({"image": PHOTO, "mask": HOLE[:40]}, "the mask is 64x40, but the picture 64x48"),
        ({"image": PHOTO, "mask": HOLE * 0.5}, "mask must be .* of bool or uint8"),
        ({"image": np.stack([PHOTO] * 3)}, "3 of image for 1 prompts"),
        ({"prompts": "a (b", "syntax": True}, r"'\(' at character 3"),
        ({"context": np.zeros((2, 77, 8))}, "context has shape"),
        ({"context": np.zeros((3, 77, 64))}, r"\[2 N, S, E\] or \[steps, 2 N, S, E\] is needed, with N = 1"),
        ({"index": -1}, "index must be between 0 and"),
        ({"negative": None}, "negative must be a text or a list of texts"),
        ({"prompts": ["a", 1]}, "prompts must be a text or a list of texts"),
        ({"size": 64}, r"size must be \(width, height\) in pixels, got 64"),
        ({"size": (2**20, 2**20)}, "is more than 67108864 pixels"),
        ({"latents": np.full((1, 6, 8, 4), np.nan)}, "latents must be finite real numbers"),
        ({"latents": np.zeros((1, 6, 8, 4), complex)}, "latents must be finite real numbers"),
        ({"output": "jpeg"}, "unknown output 'jpeg'"),
        ({"prompts": []}, "no prompt"),
        ({"latents": np.zeros((1, 6, 8, 3))}, r"latents has shape \(1, 6, 8, 3\), but \(1, 6, 8, 4\)"),
        ({"concat": np.zeros((1, 6, 8, 5))}, "concat has shape"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(tiny, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        draw(tiny, **({"prompts": "a"} | options))
    assert "\n" not in str(caught.value)


def test_a_model_with_more_channels_wants_them(tiny):
    config = dataclasses.replace(tiny.configs.unet, in_channels=9)
    wide = {**tiny.params["unet"], "encoder.conv_in.kernel": np.ones((3, 3, 9, 32), np.float32) / 81}
    inpainting = dataclasses.replace(
        tiny, configs=dataclasses.replace(tiny.configs, unet=config), params={**tiny.params, "unet": wide}
    )
    with pytest.raises(ValueError, match="takes 5 channels beside the latent"):
        latents(inpainting)
    first = latents(inpainting, concat=np.zeros((1, 6, 8, 5)))
    assert not np.array_equal(first, latents(inpainting, concat=np.ones((1, 6, 8, 5))))


def test_a_part_alone_draws_nothing(tiny):
    vae_only = Bundle(Configs(vae=tiny.configs.vae), {"vae": tiny.params["vae"]})
    with pytest.raises(ValueError, match="holds vae, but unet, text is needed too"):
        draw(vae_only)


def test_parts_that_do_not_meet_are_found_out(tiny):
    for part, change, message in [
        ("unet", {"context_dim": 32}, "text tower is 64 wide, the U-Net's context 32"),
        ("vae", {"latent_channels": 16}, "latents have 16 channels, the U-Net's 4"),
    ]:
        config = dataclasses.replace(getattr(tiny.configs, part), **change)
        with pytest.raises(ValueError, match=message):
            draw(dataclasses.replace(tiny, configs=dataclasses.replace(tiny.configs, **{part: config})))
    with pytest.raises(ValueError, match=r"\[N, h, w, 4\] is needed"):
        ldm.decode(tiny, np.zeros((6, 8, 4)))


@pytest.mark.parametrize("output", ["uint8", "latents"])
def test_weights_that_are_not_finite_draw_with_a_warning(tiny, output):
    broken = {**tiny.params["unet"], "conv_out.bias": np.full(4, np.nan, np.float32)}
    with pytest.warns(UserWarning, match="1 of 1 pictures are not finite"):
        draw(dataclasses.replace(tiny, params={**tiny.params, "unet": broken}), output=output)


def test_a_tokenizer_of_another_model_is_found_out(tiny):
    small = dataclasses.replace(tiny.configs.text, vocabulary=1000)
    with pytest.raises(ValueError, match="token 49407, but the text tower knows 1000"):
        draw(dataclasses.replace(tiny, configs=dataclasses.replace(tiny.configs, text=small)))


def test_taesd_stands_in_for_the_autoencoder(tiny):
    config = TinyVAEConfig(width=8)
    configs = dataclasses.replace(tiny.configs, vae=config)
    preview = dataclasses.replace(tiny, configs=configs, params={**tiny.params, "vae": init(TinyVAE, config, 0)})
    assert draw(preview).shape == (1, 48, 64, 3)
    assert np.array_equal(latents(preview), latents(tiny))


def test_half_precision_weights_draw_nearly_the_same(tiny):
    half = dataclasses.replace(
        tiny, params={part: {k: a.astype("bfloat16") for k, a in p.items()} for part, p in tiny.params.items()}
    )
    a, b = latents(half, guidance=1.0), latents(tiny, guidance=1.0)
    assert np.linalg.norm(a - b) / np.linalg.norm(b) < 0.1


# ---- prompts ----


def test_syntax_is_off_unless_asked_for(least):
    """Then a plain prompt is the same with it and without, and brackets are letters."""
    assert np.array_equal(latents(least, "a red cube", syntax=True), latents(least, "a red cube"))
    assert not np.array_equal(latents(least, "a (red:1.5) cube", syntax=True), latents(least, "a red cube"))
    with pytest.raises(ValueError, match="has no"):
        latents(least, "a (red cube", syntax=True)
    latents(least, "a (red cube")


def test_a_weight_of_one_changes_nothing(least):
    assert np.array_equal(latents(least, "a (red:1.0) cube", syntax=True), latents(least, "a red cube"))


def test_a_prompt_scheduled_before_the_end_is_the_one_until_there(least):
    scheduled = latents(least, "[a cat:a red dog:0.5]", syntax=True, steps=4, spacing="karras")
    cat, dog = (latents(least, text, steps=4, spacing="karras") for text in ("a cat", "a red dog"))
    assert not np.allclose(scheduled, cat, atol=1e-3) and not np.allclose(scheduled, dog, atol=1e-3)
    always = latents(least, "[a cat:a red dog:4]", syntax=True, steps=4, spacing="karras")
    np.testing.assert_allclose(always, cat, rtol=1e-4, atol=1e-5)
    at_once = latents(least, "[a cat:a red dog:0]", syntax=True, steps=4, spacing="karras")
    np.testing.assert_allclose(at_once, dog, rtol=1e-4, atol=1e-5)


def test_long_prompts_are_read_to_the_end(least):
    long = "word " * 100
    one, other = (latents(least, long + end, syntax=True) for end in ("red", "blue"))
    assert not np.array_equal(one, other)
    assert np.isfinite(latents(least, ["short", long], negative=["n", "x BREAK y"], syntax=True)).all()


def test_a_context_in_place_of_the_texts(least):
    context = ldm.encode_prompts(least, ["a cat", "a dog"], "blurry", clip_skip=1)
    assert context.shape == (4, 77, 64) and context.dtype == np.float32
    wanted = latents(least, ["a cat", "a dog"], negative="blurry", clip_skip=1)
    np.testing.assert_allclose(latents(least, ["", ""], context=context), wanted, rtol=1e-4, atol=1e-5)
    each = np.stack([context, context[::-1]])  # one for each of two steps
    assert not np.allclose(latents(least, ["", ""], context=each), wanted, atol=1e-3)


def test_guidance_in_an_interval_of_noise(least):
    off = latents(least, guidance=ldm.Guidance(9.0, low=100.0, high=200.0))
    assert np.array_equal(off, latents(least, guidance=1.0))
    everywhere = latents(least, guidance=ldm.Guidance(9.0, low=0.0, high=100.0))
    assert np.array_equal(everywhere, latents(least, guidance=9.0))


def test_noise_of_one_path(least):
    per_step, path = (latents(least, sampler="euler_a", noise=noise) for noise in ("steps", "brownian"))
    assert np.isfinite(path).all() and not np.allclose(per_step, path, atol=1e-2)
    assert np.array_equal(path, latents(least, sampler="euler_a", noise="brownian"))


def test_names_of_other_tools(least):
    karras = latents(least, sampler="dpmpp_2m", spacing="karras")
    assert np.array_equal(latents(least, sampler="DPM++ 2M Karras"), karras)


def test_a_bundles_own_guidance(least):
    own = dataclasses.replace(least, guidance=2.0)
    assert np.array_equal(latents(own), latents(least, guidance=2.0))
    assert np.array_equal(latents(least), latents(least, guidance=7.5))
