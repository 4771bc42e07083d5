"""Text to picture against ``StableDiffusionPipeline``: the same checkpoint, prompts and noise, to one level of 255.

The pipelines are tiny and random, with every part and every name of Stable Diffusion. Limit: one level of uint8, since
float32 rounding moves a few pixels across a rounding boundary; the share of such pixels is bounded too.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ldm
import weights_convert
from weights_convert.export import export_folder

from . import layouts, oracle, ours

FAMILIES = ("sd1", "sd2")
PROMPTS = ["a red cube on a blue sphere", "Portrait of an old robot, oil painting, 4k"]
NEGATIVES = ["blurry, low quality", "text"]
STEPS, GUIDANCE = 5, 7.5
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}
NOISE = oracle.gaussian(11, 2, 8, 12, 4)
DIFFERENT_PIXELS = 0.02


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this module's checkpoints lie."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def pipes(home: Path) -> dict[str, Any]:
    """diffusers' pipelines, each also saved as a public folder at ``home / family``."""
    made = {family: layouts.pipeline(family, home / "tokenizers" / family) for family in FAMILIES}
    for family, pipe in made.items():
        pipe.set_progress_bar_config(disable=True)
        object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)  # diffusers looks for it at clip skip
        layouts.save_folder(pipe, home / family)
    return made


@pytest.fixture(scope="module")
def bundles(pipes: dict[str, Any], home: Path) -> dict[str, ldm.Bundle]:
    """Ours, from those folders."""
    return {family: weights_convert.load(home / family) for family in FAMILIES}


def equal_pictures(what: str, drawn: np.ndarray, wanted: np.ndarray) -> None:
    """At most one level apart anywhere, and on few pixels; over pictures that are not blank."""
    assert drawn.shape == wanted.shape and drawn.dtype == wanted.dtype == np.uint8
    assert wanted.std() > 30 and np.abs(wanted[0].astype(int) - wanted[-1]).mean() > 10
    apart = np.abs(drawn.astype(int) - wanted)
    print(f"{what}: relative error {oracle.rel(drawn, wanted):.1e}, {apart.max()} level at {(apart > 0).mean():.2%}")
    assert apart.max() <= 1 and (apart > 0).mean() < DIFFERENT_PIXELS


def both(pipe: Any, bundle: ldm.Bundle, sampler: str = "ddim", spacing: str = "leading", **options: Any) -> tuple:
    """The same request to both: our picture, theirs. ``options`` in our words."""
    words = {"steps": STEPS, "guidance": GUIDANCE, "negative": NEGATIVES, "clip_skip": 0} | options
    prompts = words.pop("prompts", PROMPTS)
    drawn = ldm.generate(bundle, prompts, sampler=sampler, spacing=spacing, latents=NOISE, progress=False, **words)
    pipe.scheduler = layouts.scheduler(pipe, SCHEDULERS[sampler], spacing)
    negative = words["negative"]
    named = {
        "num_inference_steps": words["steps"],
        "guidance_scale": words["guidance"],
        "negative_prompt": [negative] * len(prompts) if isinstance(negative, str) else negative,
        "clip_skip": words["clip_skip"] or None,
    }
    return drawn, layouts.pictures(pipe, prompts, NOISE, **named)


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_samplers(family: str, sampler: str, pipes: dict, bundles: dict):
    equal_pictures(f"{family}, {sampler}", *both(pipes[family], bundles[family], sampler))


@pytest.mark.parametrize("family", FAMILIES)
def test_clip_skip(family: str, pipes: dict, bundles: dict):
    plain, _ = both(pipes[family], bundles[family])
    drawn, wanted = both(pipes[family], bundles[family], clip_skip=1)
    assert np.abs(drawn.astype(int) - plain).max() > 1
    equal_pictures(f"{family}, clip skip 1", drawn, wanted)


@pytest.mark.parametrize(
    "options",
    [{"negative": ""}, {"negative": "grey"}, {"guidance": 1.0}, {"guidance": 3.0, "steps": 12}],
    ids=["no negative", "one negative for all", "guidance 1", "guidance 3, 12 steps"],
)
def test_requests(options: dict, pipes: dict, bundles: dict):
    equal_pictures(f"sd1, {options}", *both(pipes["sd1"], bundles["sd1"], **options))


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_trailing_spacing(sampler: str, pipes: dict, bundles: dict):
    equal_pictures(f"sd1, {sampler}, trailing", *both(pipes["sd1"], bundles["sd1"], sampler, "trailing"))


def test_a_prompt_that_is_too_long_is_cut_in_the_same_place(pipes: dict, bundles: dict):
    prompts = ["seventy seven tokens are soon spent, " * 20, "short"]
    with pytest.warns(UserWarning, match="soon spent"):
        drawn, wanted = both(pipes["sd1"], bundles["sd1"], prompts=prompts)
    equal_pictures("sd1, long prompt", drawn, wanted)


def test_other_numbers_everywhere(tmp_path: Path):
    """Two levels, one block, few groups, narrow heads: what the libraries' own tests call a dummy pipeline."""
    size = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4}
    attends = {"down_block_types": (oracle.DOWN, oracle.CROSS_DOWN), "up_block_types": (oracle.CROSS_UP, oracle.UP)}
    halves = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    pipe = layouts.pipeline(
        "sd1",
        tmp_path / "tokenizer",
        unet=size | attends | {"cross_attention_dim": 32, "attention_head_dim": (2, 4)},
        vae=size | halves | {"scaling_factor": 0.5},
        text={"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2},
    )
    pipe.set_progress_bar_config(disable=True)
    bundle = weights_convert.load(layouts.save_folder(pipe, tmp_path / "folder"))
    assert bundle.configs.vae.factor == 2
    equal_pictures("other numbers", *both(pipe, bundle))


def test_the_bundle_is_what_the_folder_says(bundles: dict):
    for family, bundle in bundles.items():
        assert bundle.configs.schedule.prediction == layouts.PREDICTION[family]
        assert bundle.size == (64, 64)
    assert bundles["sd1"].configs.text.activation == "quick_gelu"
    assert bundles["sd2"].configs.text.activation == "gelu"
    assert bundles["sd2"].tokenizer.pad == 0


FILES = {"model.safetensors": False, "zip.ckpt": False, "legacy.ckpt": True}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("family", FAMILIES)
def test_single_files_are_the_same_model(family: str, file: str, pipes: dict, bundles: dict, tmp_path: Path):
    path = layouts.save_single_file(layouts.single_file(pipes[family]), tmp_path / file, legacy=FILES[file])
    loaded = weights_convert.load(path, prediction=layouts.PREDICTION[family])
    assert loaded.configs == bundles[family].configs
    assert all(ours.same(loaded.params[part], bundles[family].params[part]) for part in ("unet", "vae", "text"))
    texts = [*PROMPTS, *NEGATIVES, ""]
    assert np.array_equal(loaded.tokenizer(texts), bundles[family].tokenizer(texts))


@pytest.mark.parametrize("file", FILES)
def test_averaged_weights_on_request(file: str, pipes: dict, bundles: dict, tmp_path: Path):
    averaged = oracle.randomize(oracle.unet("sd1"), 77)
    both_sets = layouts.single_file(pipes["sd1"], averaged)
    path = layouts.save_single_file(both_sets, tmp_path / file, legacy=FILES[file])
    plain, ema = weights_convert.load(path), weights_convert.load(path, ema=True)
    assert ours.same(plain.params["unet"], bundles["sd1"].params["unet"])
    named = {name: value.numpy() for name, value in layouts.unet_file(averaged).items()}
    read_by_diffusers = layouts.converters.convert_ldm_unet_checkpoint(both_sets, averaged.config, extract_ema=True)
    assert all(oracle.torch.equal(read_by_diffusers[name], value) for name, value in averaged.state_dict().items())
    kernel = np.asarray(ema.params["unet"]["encoder.conv_in.kernel"]).transpose(3, 2, 0, 1)
    assert np.array_equal(kernel, named[layouts.UNET + "input_blocks.0.0.weight"])
    assert not ours.same(ema.params["unet"], plain.params["unet"])
    assert ours.same(ema.params["vae"], plain.params["vae"])


FOLDERS = {
    "shards": lambda pipe, at: layouts.save_folder(pipe, at, max_shard_size="5MB"),
    "a variant alone": lambda pipe, at: layouts.save_folder(pipe, at, variant="fp16"),
    "shards of a variant": lambda pipe, at: layouts.save_folder(pipe, at, variant="fp16", max_shard_size="5MB"),
    "pickles": lambda pipe, at: layouts.as_pickles(layouts.save_folder(pipe, at)),
    "legacy pickles": lambda pipe, at: layouts.as_pickles(layouts.save_folder(pipe, at), legacy=True),
    "today's text encoder": lambda pipe, at: pipe.save_pretrained(at),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_kind_of_folder_is_the_same_model(kind: str, pipes: dict, bundles: dict, tmp_path: Path):
    FOLDERS[kind](pipes["sd2"], tmp_path / "folder")
    files = sorted(path.name for path in (tmp_path / "folder" / "unet").iterdir() if path.suffix != ".json")
    assert ("shards" in kind) == (len(files) > 1) and ("pickles" in kind) == all(n.endswith(".bin") for n in files)
    loaded = weights_convert.load(tmp_path / "folder")
    assert loaded.configs == bundles["sd2"].configs
    assert all(ours.same(loaded.params[part], bundles["sd2"].params[part]) for part in ("unet", "vae", "text"))
    assert np.array_equal(loaded.tokenizer(PROMPTS), bundles["sd2"].tokenizer(PROMPTS))


def test_what_we_export_diffusers_draws_as_we_do(bundles: dict, tmp_path: Path):
    export_folder(bundles["sd2"], tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = oracle.diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    equal_pictures("sd2, exported", *both(pipe, bundles["sd2"]))


def test_inpainting(tmp_path: Path):
    """A 9-channel model: folder and single file, and diffusers' inpainting picture through ``concat``."""
    plain = layouts.pipeline("sd1", tmp_path / "tokenizer", unet={"in_channels": 9})
    path = layouts.save_single_file(layouts.single_file(plain), tmp_path / "inpainting.safetensors")
    bundle = weights_convert.load(path)
    layouts.save_folder(plain, tmp_path / "folder")
    assert ours.same(bundle.params["unet"], weights_convert.load(tmp_path / "folder").params["unet"])
    pipe = oracle.diffusers.StableDiffusionInpaintPipeline(**plain.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    mask, masked = np.zeros((2, 8, 12, 1), np.float32), oracle.gaussian(12, 2, 8, 12, 4)
    mask[:, 2:6, 3:7] = 1.0
    given = {
        "image": oracle.nchw(np.zeros((2, 64, 96, 3), np.float32)),
        "mask_image": oracle.nchw(mask.repeat(8, 1).repeat(8, 2)),
        "masked_image_latents": oracle.nchw(masked),
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "strength": 1.0,
    }
    concat = np.concatenate([mask, masked], axis=-1)
    drawn = ldm.generate(bundle, PROMPTS, steps=STEPS, guidance=GUIDANCE, latents=NOISE, concat=concat, progress=False)
    equal_pictures("inpainting", drawn, layouts.pictures(pipe, PROMPTS, NOISE, **given))
