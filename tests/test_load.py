"""Loading: every public layout gives the same bundle."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import ldm
import weights_convert
from tests.public_files import refused, same, single_file, spelt
from weights_convert.engine import to_public
from weights_convert.families import UNET
from weights_convert.inspection import inspect
from weights_convert.tables import autoencoder, text

SHARED = Path(__file__).parents[2] / "shared" / "data"


def test_a_public_folder_comes_back_as_it_was_written(tiny, tiny_folder):
    bundle = weights_convert.load(tiny_folder)
    assert bundle.configs == tiny.configs
    assert bundle.size == tiny.size
    assert same(bundle, tiny)


def test_a_single_file_is_the_same_model(tiny, tiny_folder, tmp_path):
    path = single_file(tiny, tmp_path / "model.safetensors")
    bundle = weights_convert.load(path, config=tiny_folder)
    assert bundle.configs == tiny.configs
    assert same(bundle, tiny)
    guessed = weights_convert.load(path)  # from its shapes: all but the head counts and the size
    assert same(guessed, tiny)
    assert guessed.configs.unet.heads == (8, 8)
    assert guessed.size == (512, 512)


def test_a_single_file_in_a_hub_folder_takes_its_configurations(tiny, tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "hub"))
    bundle = weights_convert.load(single_file(tiny, folder / "model.safetensors"))
    assert bundle.configs == tiny.configs
    assert bundle.size == tiny.size
    data = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps(data | {"cross_attention_dim": 1024}))  # another model's
    assert weights_convert.load(folder / "model.safetensors").configs.unet.context_dim == 64


def test_the_extension_does_not_matter(tiny, tmp_path):
    path = single_file(tiny, tmp_path / "model.ckpt")
    assert same(weights_convert.load(path), tiny)


def test_averaged_weights_on_request(tiny, tmp_path):
    def add_ema(tensors):
        for key in [k for k in tensors if k.startswith(UNET)]:
            tensors["model_ema." + key.removeprefix("model.").replace(".", "")] = tensors[key] + 1

    path = single_file(tiny, tmp_path / "ema.safetensors", add_ema)
    assert same(weights_convert.load(path), tiny)
    averaged = weights_convert.load(path, ema=True)
    np.testing.assert_allclose(
        averaged.params["unet"]["conv_out.bias"], np.asarray(tiny.params["unet"]["conv_out.bias"]) + 1, rtol=1e-6
    )
    assert same(averaged, tiny, ("vae", "text"))
    plain = single_file(tiny, tmp_path / "plain.safetensors")
    refused(plain, "has no averaged (EMA) weights", ema=True)

    def add_one(tensors):
        add_ema(tensors)
        del tensors["model_ema.diffusion_modeloutputblocks00in_layers0weight".replace("outputblocks", "output_blocks")]

    refused(single_file(tiny, tmp_path / "part.safetensors", add_one), "only a part of the averaged", ema=True)


@pytest.mark.parametrize(
    ("metadata", "change", "prediction"),
    [
        (None, None, "epsilon"),
        ({"modelspec.prediction_type": "v"}, None, "v_prediction"),
        ({"modelspec.prediction_type": "epsilon"}, None, "epsilon"),
        (None, {"v_pred": np.zeros(0, np.float32)}, "v_prediction"),
    ],
)
def test_prediction_type_of_a_single_file(tiny, tmp_path, metadata, change, prediction):
    path = single_file(tiny, tmp_path / "m.safetensors", lambda t: t.update(change or {}), metadata)
    bundle = weights_convert.load(path)
    assert bundle.configs.schedule.prediction == prediction
    assert bundle.size == ((768, 768) if prediction == "v_prediction" else (512, 512))
    assert weights_convert.load(path, prediction="sample").configs.schedule.prediction == "sample"


def test_our_own_folder_round_trip(tiny, tmp_path):
    weights_convert.save(tiny, tmp_path / "own")
    for load in (ldm.load, weights_convert.load):
        bundle = load(tmp_path / "own")
        assert bundle.configs == tiny.configs
        assert bundle.size == tiny.size
        assert same(bundle, tiny)
    prompt = ["a cube, über-nice"]
    assert np.array_equal(bundle.tokenizer(prompt, 77), tiny.tokenizer(prompt, 77))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["own"]
    with pytest.raises(ValueError, match="already exists"):
        ldm.save(tiny, tmp_path / "own")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtypes_are_cast_once_and_kept(tiny_folder, tmp_path, dtype):
    bundle = weights_convert.load(tiny_folder, dtype)
    assert {str(a.dtype) for part in bundle.params.values() for a in part.values()} == {dtype}
    ldm.save(bundle, tmp_path / "half")
    assert same(ldm.load(tmp_path / "half"), bundle)
    assert {str(a.dtype) for a in ldm.load(tmp_path / "half", "float32").params["vae"].values()} == {"float32"}


def test_one_part_alone_and_in_place_of_another(tiny, tiny_folder):
    vae = weights_convert.load(tiny_folder / "vae")
    assert set(vae.params) == {"vae"}
    assert vae.configs.vae == tiny.configs.vae
    assert set(weights_convert.load(tiny_folder / "text_encoder").params) == {"text"}
    assert set(weights_convert.load(tiny_folder / "unet").params) == {"unet"}
    beside = weights_convert.load(tiny_folder / "unet/diffusion_pytorch_model.safetensors")  # and its config.json
    assert beside.configs.unet == tiny.configs.unet and same(beside, tiny, ("unet",))
    assert same(weights_convert.load(tiny_folder, vae=tiny_folder / "vae"), tiny)
    refused(tiny_folder, "holds no autoencoder", vae=tiny_folder / "unet")


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
def test_an_autoencoder_file_alone(tiny, tmp_path, prefix):
    layout = autoencoder.single_file(tiny.configs.vae)
    named = {
        layout.public(n): np.ascontiguousarray(to_public(layout.public(n), np.asarray(a)))
        for n, a in tiny.params["vae"].items()
    }
    save_file({prefix + key: array for key, array in named.items()}, tmp_path / "vae.pt")
    bundle = weights_convert.load(tmp_path / "vae.pt")
    assert same(bundle, tiny, ("vae",))


def test_a_text_tower_file_alone(tiny, tmp_path):
    save_file(spelt(text.openclip(tiny.configs.text), tiny.params["text"]), tmp_path / "clip.safetensors")
    bundle = weights_convert.load(tmp_path / "clip.safetensors")
    assert same(bundle, tiny, ("text",))
    assert bundle.configs.text.activation == "gelu"


def test_options_that_mean_nothing_for_a_source_are_refused(tiny, tiny_folder, tmp_path):
    ldm.save(tiny, tmp_path / "own")
    path = single_file(tiny, tmp_path / "m.safetensors")
    refused(tiny_folder, "is a folder, for which ema means nothing", ema=True)
    refused(tiny_folder, "config means nothing", config="none")
    refused(path, "is a single file, for which variant means nothing", variant="fp16")
    refused(tmp_path / "own", "is a folder of our own, for which ema and variant means nothing", ema=True, variant="x")
    refused(tmp_path / "own", "unknown prediction type 'bad'", prediction="bad")
    bundle = weights_convert.load(tmp_path / "own", prediction="v_prediction")
    assert bundle.configs.schedule.prediction == "v_prediction"


def test_a_file_without_an_autoencoder_takes_another(tiny, tiny_folder, tmp_path):
    def without_vae(tensors):
        for key in [key for key in tensors if key.startswith("first_stage_model.")]:
            del tensors[key]

    path = single_file(tiny, tmp_path / "m.safetensors", without_vae)
    assert set(weights_convert.load(path).params) == {"unet", "text"}
    assert same(weights_convert.load(path, vae=tiny_folder / "vae"), tiny)


@pytest.mark.parametrize("layers", [23, 24])
def test_text_towers_of_2x_with_and_without_the_last_layer(tiny, tmp_path, layers):
    def to_2x(tensors):
        for key in [key for key in tensors if key.startswith("cond_stage_model.")]:
            del tensors[key]
        start, numbers = "cond_stage_model.model.", np.random.default_rng(0)
        fill = lambda *shape: numbers.standard_normal(shape).astype(np.float32)
        tensors |= {f"{start}token_embedding.weight": fill(99, 64), f"{start}positional_embedding": fill(77, 64)}
        tensors |= {f"{start}ln_final.weight": fill(64), f"{start}ln_final.bias": fill(64)}
        tensors[f"{start}transformer.text_model.embeddings.position_ids"] = np.arange(77)[None].astype(np.float16)
        for i in range(layers):
            at = f"{start}transformer.resblocks.{i}."
            tensors |= {f"{at}attn.in_proj_weight": fill(192, 64), f"{at}attn.in_proj_bias": fill(192)}
            sizes = {"attn.out_proj": (64, 64), "mlp.c_fc": (256, 64), "mlp.c_proj": (64, 256)}
            tensors |= {f"{at}{name}.weight": fill(*shape) for name, shape in sizes.items()}
            tensors |= {f"{at}{name}.bias": fill(shape[0]) for name, shape in sizes.items()}
            tensors |= {f"{at}ln_{j}.{kind}": fill(64) for j in (1, 2) for kind in ("weight", "bias")}
        if layers == 24:
            tensors[f"{start}text_projection"] = fill(64, 64)

    config = weights_convert.load(single_file(tiny, tmp_path / "m.safetensors", to_2x)).configs.text
    assert (config.layers, config.projection, config.activation) == (23, 0, "gelu")


def test_wrapped_names_are_unwrapped(tiny, tmp_path):
    def wrap(tensors):
        for key in list(tensors):
            tensors[f"module.{key}"] = tensors.pop(key)

    assert same(weights_convert.load(single_file(tiny, tmp_path / "m.safetensors", wrap)), tiny)


def test_inspection_of_every_kind_of_source(tiny, tiny_folder, tmp_path):
    report = inspect(tiny_folder)
    assert "folder U-Net names; every tensor used, every parameter filled" in report
    assert "predicts epsilon" in report
    assert "256x256 pixels" in report
    path = single_file(tiny, tmp_path / "m.safetensors", lambda t: t.pop(f"{UNET}out.2.bias"))
    report = inspect(path)
    assert "1 missing: out.2.bias" in report
    assert "single-file U-Net names" in report
    ldm.save(tiny, tmp_path / "own")
    assert "this project's own layout" in inspect(tmp_path / "own")


def test_real_taesd_loads():
    if not SHARED.exists():
        pytest.skip("the real TAESD (../shared/data) is not here")
    bundle = weights_convert.load(SHARED / "taesd")
    assert set(bundle.params) == {"vae"}
    assert all(np.isfinite(a).all() for a in bundle.params["vae"].values())
    refused(SHARED / "taesd/taesd_decoder.safetensors", "one half of TAESD alone")
