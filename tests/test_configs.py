"""Configurations and shapes that nobody should trust: one sentence that names the file and the field, or the tensor."""

import json
from dataclasses import dataclass

import pytest

from ldm.schedule import NoiseSchedule
from weights_convert import folder
from weights_convert.tables import autoencoder, taesd, text, unet, vision
from weights_convert.tables.fields import shown

UNET = {"block_out_channels": [32, 64], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]}
NO_NUMBERS = ("4", 2.5, 0, -1, float("nan"), float("inf"), 10**9, {}, [[]], True)
NO_LISTS = ("4", 2.5, -1, {}, [], [32, "64"], [32, None], [0, 64], [32.0, 64], [1] * 9, [10**9, 64], [[32], 64])
NO_FLAGS = ("false", 0, 1, [], {})
NO_REALS = ("0.1", float("nan"), float("inf"), -1, [0.1], {}, True)
NO_WORDS = (1, True, "nothing known", ["epsilon"], {}, "two\nlines")

READERS = {
    "unet": lambda data: unet.config_from_json(UNET | data, "the file"),
    "vae": lambda data: autoencoder.config_from_json(data, "the file"),
    "taesd": lambda data: taesd.config_from_json(data, "the file"),
    "text": lambda data: text.config_from_json(data, True, "the file"),
    "vision": lambda data: vision.config_from_json(data, True, "the file"),
    "scheduler": lambda data: folder.schedule_from_json(data, "the file"),
}
FIELDS = [
    ("unet", NO_NUMBERS, "in_channels out_channels layers_per_block cross_attention_dim norm_num_groups"),
    (
        "unet",
        NO_LISTS,
        "block_out_channels down_block_types attention_head_dim num_attention_heads transformer_layers_per_block",
    ),
    ("vae", NO_NUMBERS, "in_channels latent_channels layers_per_block norm_num_groups"),
    ("vae", NO_LISTS, "block_out_channels"),
    ("vae", (*NO_REALS, 0), "scaling_factor"),
    ("vae", NO_WORDS, "act_fn"),
    ("taesd", NO_NUMBERS, "in_channels latent_channels"),
    ("taesd", NO_LISTS, "encoder_block_out_channels decoder_block_out_channels num_encoder_blocks num_decoder_blocks"),
    (
        "text",
        NO_NUMBERS,
        "vocab_size max_position_embeddings hidden_size intermediate_size num_hidden_layers "
        "num_attention_heads projection_dim",
    ),
    ("text", NO_WORDS, "hidden_act layer_norm_eps"),
    ("text", ("2", -1, 2.5, [2]), "eos_token_id"),
    (
        "vision",
        NO_NUMBERS,
        "image_size patch_size hidden_size intermediate_size num_hidden_layers num_attention_heads projection_dim",
    ),
    ("vision", NO_WORDS, "hidden_act layer_norm_eps"),
    ("vision", (1, 4, "3", True), "num_channels"),
    ("scheduler", (*NO_REALS, 0), "beta_start beta_end"),
    ("scheduler", (*NO_NUMBERS, 1), "num_train_timesteps"),
    ("scheduler", NO_WORDS, "beta_schedule prediction_type timestep_spacing"),
    ("scheduler", NO_FLAGS, "set_alpha_to_one rescale_betas_zero_snr thresholding"),
]
CASES = [(reader, key, bad) for reader, values, keys in FIELDS for key in keys.split() for bad in values]


@dataclass(frozen=True)
class Shaped:
    """A tensor of which only the shape matters."""

    shape: tuple


def refusal(act, *phrases):
    """Asserts that ``act`` fails with a short sentence on one line that has all ``phrases``."""
    with pytest.raises(ValueError) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    for phrase in phrases:
        assert phrase in message, message


@pytest.mark.parametrize(("reader", "key", "bad"), CASES, ids=lambda v: shown(v)[:24])
def test_every_field_refuses_what_it_cannot_be(reader, key, bad):
    refusal(lambda: READERS[reader]({key: bad}), "the file", key)


@pytest.mark.parametrize("case", FIELDS, ids=lambda case: case[0])
def test_null_means_the_default(case):
    no_default = ("act_fn", "layer_norm_eps", "num_channels", "block_out_channels")
    fields = [key for key in case[2].split() if key not in no_default]
    null = READERS[case[0]](dict.fromkeys(fields) | {"down_block_types": UNET["down_block_types"]})
    assert null == READERS[case[0]]({})


@pytest.mark.parametrize(
    ("reader", "data", "phrase"),
    [
        ("unet", {"norm_num_groups": 24}, "norm_num_groups is 24"),
        ("unet", {"block_out_channels": [32]}, "down_block_types"),
        ("unet", {"down_block_types": None}, "down_block_types"),
        ("unet", {"layers_per_block": 100, "transformer_layers_per_block": 100}, "transformer_layers_per_block"),
        ("vae", {"norm_num_groups": 48}, "norm_num_groups is 48"),
        ("taesd", {"num_encoder_blocks": [1, 2]}, "mirrored"),
        ("text", {"hidden_size": 100, "num_attention_heads": 8}, "num_attention_heads is 8"),
        ("vision", {"hidden_size": 100, "num_attention_heads": 8}, "num_attention_heads is 8"),
        ("vision", {"image_size": 224, "patch_size": 15}, "patch_size is 15, but a divisor of image_size, 224"),
        ("scheduler", {"beta_start": 0.5, "beta_end": 0.1}, "0.5 and 0.1"),
        ("scheduler", {"thresholding": True}, "thresholding is true"),
        ("scheduler", {"trained_betas": [0.1]}, "trained_betas"),
    ],
)
def test_numbers_that_do_not_go_together(reader, data, phrase):
    refusal(lambda: READERS[reader](data), "the file", phrase)


def test_another_spacing_is_told():
    with pytest.warns(UserWarning, match=r"scheduler_config\.json: .* --spacing trailing"):
        assert folder.schedule_from_json({"timestep_spacing": "trailing"}, "f") == NoiseSchedule()


@pytest.mark.parametrize("numbers", [{"train_steps": "9"}, {"train_steps": 9.5}, {"train_steps": None}])
def test_a_schedule_counts_in_whole_numbers(numbers):
    refusal(lambda: NoiseSchedule(**numbers), "train_steps")


@pytest.mark.parametrize("numbers", [{"beta_start": float("nan")}, {"beta_end": "0.1"}, {"beta_end": None}])
def test_a_schedule_has_finite_betas(numbers):
    refusal(lambda: NoiseSchedule(**numbers), "betas")


# ---- whole folders ----


def folder_of(tmp_path, place, change):
    """A folder of configurations, one of them changed."""
    parts = {"unet/config.json": UNET, "vae/config.json": {}, "text_encoder/config.json": {}}
    parts |= {"scheduler/scheduler_config.json": {}, "model_index.json": {"_class_name": "StableDiffusionPipeline"}}
    (tmp_path / "tokenizer").mkdir()
    for name, data in parts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(data | (change if name == place else {})))
    return tmp_path


@pytest.mark.parametrize("bad", ["64", 0, -1, 1.5, [64], [64, "64"], {}, 10**9], ids=shown)
def test_sample_size(tmp_path, bad):
    found = folder_of(tmp_path, "unet/config.json", {"sample_size": bad})
    refusal(lambda: folder.configs_of(found), "unet/config.json", "sample_size")


@pytest.mark.parametrize("bad", ["CLIPTextModel", 3, [3], {}, [None]], ids=shown)
def test_architectures(tmp_path, bad):
    found = folder_of(tmp_path, "text_encoder/config.json", {"architectures": bad})
    refusal(lambda: folder.configs_of(found), "text_encoder/config.json", "architectures")


def test_a_null_sample_size_is_64(tmp_path, monkeypatch):
    monkeypatch.setattr(folder.Tokenizer, "from_folder", lambda path: None)
    found = folder_of(tmp_path, "unet/config.json", {"sample_size": None})
    assert folder.configs_of(found).size == (64, 64)  # one level: a pixel of the picture per latent pixel


def test_heads_divide_the_widths(tmp_path):
    found = folder_of(tmp_path, "unet/config.json", {"attention_head_dim": 5})
    refusal(lambda: folder.configs_of(found), "unet/config.json", "attention_head_dim", "is 5", "width 32")


@pytest.mark.parametrize(
    "kind", ["StableDiffusionUpscalePipeline", "StableDiffusionXLPipeline", None, 3, ["x"], "a\nb"]
)
def test_other_pipelines_are_called_by_their_name(tmp_path, kind):
    found = folder_of(tmp_path, "model_index.json", {"_class_name": kind})
    refusal(lambda: folder.configs_of(found), "model_index.json", "holds a " + shown(kind).strip("'"))


@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"a":' * 200_000, b"\xff\xfe", b"1" * 9999, b""], ids=len)
def test_json_that_is_none(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    refusal(lambda: folder.read_json(tmp_path / "x.json"), "x.json: broken JSON")


@pytest.mark.parametrize(
    "bad",
    [
        {"text_config": 3},
        {"text_config": {"vocab_size": "x"}},
        {"projection_dim": 0},
        {"vision_config": [1]},
        {"vision_config_dict": {"image_size": -1}},
    ],
)
def test_a_whole_clip(tmp_path, bad):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["CLIPModel"]} | bad))
    refusal(lambda: folder.find_in_folder(tmp_path), "config.json: ")


# ---- names and shapes ----

VAE_SHAPES = {
    "encoder.conv_in.weight": (8, 3, 3, 3),
    "post_quant_conv.weight": (4, 4, 1, 1),
    "encoder.down.0.block.0.conv2.weight": (8, 8, 3, 3),
}
TEXT_SHAPES = {
    "embeddings.token_embedding.weight": (11, 64),
    "embeddings.position_embedding.weight": (5, 64),
    "encoder.layers.0.mlp.fc1.weight": (20, 64),
}
VISION_SHAPES = {
    "embeddings.patch_embedding.weight": (64, 3, 8, 8),
    "embeddings.position_embedding.weight": (5, 64),
    "encoder.layers.0.mlp.fc1.weight": (20, 64),
}
UNET_SHAPES = {
    "input_blocks.0.0.weight": (32, 4, 3, 3),
    "input_blocks.1.0.out_layers.3.weight": (32, 32, 3, 3),
    "input_blocks.2.0.op.weight": (32, 32, 3, 3),
    "input_blocks.3.0.out_layers.3.weight": (64, 64, 3, 3),
    "middle_block.1.proj_in.weight": (64, 64),
    "middle_block.1.transformer_blocks.0.attn2.to_k.weight": (64, 768),
    "out.2.weight": (4, 32, 3, 3),
}
INFER = {
    "vae": (autoencoder.config_from_shapes, VAE_SHAPES),
    "text": (lambda tensors: text.config_from_shapes(tensors, True, "gelu"), TEXT_SHAPES),
    "vision": (lambda tensors: vision.config_from_shapes(tensors, "gelu"), VISION_SHAPES),
    "unet": (unet.config_from_shapes, UNET_SHAPES),
}
READ = [(kind, key) for kind, (_, s) in INFER.items() for key in s if not key.endswith(("op.weight", "proj_in.weight"))]


def infer(kind, change):
    """The configuration read off the shapes, some of them changed."""
    read, whole = INFER[kind]
    return read({key: Shaped(shape) for key, shape in (whole | change).items()})


@pytest.mark.parametrize("kind", INFER)
def test_the_shapes_alone_are_fine(kind):
    assert infer(kind, {})


@pytest.mark.parametrize("shape", [(), (8,), (1, 2, 3, 4, 5), (0, 0), (0, 4, 3, 3), (4, 0, 3, 3)], ids=str)
@pytest.mark.parametrize(("kind", "key"), READ)
def test_shapes_that_cannot_be(kind, key, shape):
    refusal(lambda: infer(kind, {key: shape}), key, str(shape))


@pytest.mark.parametrize("digits", ["3000000", "4", "9" * 5000], ids=len)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("vae", "encoder.down.0.block.{}.conv2.weight"),
        ("vae", "encoder.down_blocks.{}.resnets.0.conv2.weight"),
        ("text", "encoder.layers.{}.x"),
        ("text", "transformer.resblocks.{}.x"),
        ("vision", "encoder.layers.{}.x"),
        ("unet", "input_blocks.{}.0.op.weight"),
    ],
)
def test_numbers_in_names_are_no_bombs(kind, name, digits):
    if kind == "unet" and digits == "4":
        digits = "8"  # beyond its tensors, as 4 is for the others
    key = name.format(digits)
    refusal(lambda: infer(kind, {key: (8, 8, 3, 3)}), key[:20])


@pytest.mark.parametrize("number", [0, 1])
def test_a_unet_that_halves_the_picture_at_once(number):
    key = f"input_blocks.{number}.0.op.weight"
    refusal(lambda: infer("unet", {key: (32, 32, 3, 3)}), key)


def test_many_tensors_of_many_levels_are_refused_too():
    names = {f"encoder.down.{i}.block.{j}.conv2.weight": (8, 8, 3, 3) for i in range(99) for j in range(2)}
    refusal(lambda: infer("vae", names), "99 levels")
