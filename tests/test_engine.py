"""The rename engine: every public name list at full size is a bijection, and what does not fit is named."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ldm.adapters.controlnet import ControlNet, ControlNetConfig
from ldm.models.autoencoder import VAE, VAEConfig
from ldm.models.layers import shapes
from ldm.models.taesd import TinyVAE, TinyVAEConfig
from ldm.models.text import TextConfig, TextTower
from ldm.models.unet import UNet, UNetConfig
from weights_convert import single_file
from weights_convert.engine import Layout, Part, bare, compare, convert, stored_shape, to_ours, to_public
from weights_convert.families import identify, unet_family
from weights_convert.parts import taesd_part, text_part, unet_part, vae_part
from weights_convert.reading import Checkpoint
from weights_convert.tables import autoencoder, controlnet, taesd, text, unet

KEYS = Path(__file__).parents[2] / "shared" / "data" / "keys"
TINY = VAEConfig(channels=(8, 16), groups=4)


@dataclass(frozen=True)
class Held:
    """A tensor in memory, or only its shape, with the interface of one in a file."""

    shape: tuple
    array: np.ndarray | None = None

    def read(self):
        """The numbers."""
        return self.array


def listed(file, family, prefix=""):
    """A public list of names and shapes as abstract tensors."""
    if not (KEYS / file).exists():
        pytest.skip("the public name lists (../shared/data/keys) are not here")
    entries = json.loads((KEYS / file).read_text())[family]
    return {name.removeprefix(prefix): Held(tuple(shape)) for name, shape in entries.items()}


def filled(model, config, layout, seed=0):
    """A public checkpoint of random numbers in ``layout``, made by the inverse of what is tested."""
    generator, tensors = np.random.default_rng(seed), {}
    for name, spec in shapes(model, config).items():
        array = to_public(layout.public(name), generator.standard_normal(spec.shape).astype(np.float32))
        tensors[bare(layout.public(name))] = Held(array.shape, array)
    return tensors


@pytest.mark.parametrize("family", ["sd1_unet", "sd1_inpaint", "sd2_unet", "sd2_inpaint", "sdxl_unet", "sdxl_refiner"])
def test_single_file_unets_are_bijections(family):
    part = unet_part(family, listed("ldmkeys.json", family, "model.diffusion_model."))
    assert str(compare(part)) == ""
    assert part.layout().title == "single-file U-Net"
    assert len(part.tensors) == len(shapes(UNet, part.config))


@pytest.mark.parametrize("family", ["sd1_unet", "sd1_inpaint", "sd2_unet", "sdxl_unet", "sdxl_refiner"])
def test_folder_unets_are_bijections(family):
    config = unet_part(family, listed("ldmkeys.json", family, "model.diffusion_model.")).config
    part = unet_part(family, listed("diffkeys.json", family), config)
    assert str(compare(part)) == ""
    assert part.layout().title == "folder U-Net"


@pytest.mark.parametrize(("family", "context"), [("s15", 768), ("s21", 1024)])
def test_controlnets_are_bijections(family, context):
    tensors = listed("cnetkeys.json", family, "control_model.")
    config = ControlNetConfig(UNetConfig(context_dim=context))
    part = Part(family, ControlNet, config, tensors, [controlnet.folder(config), controlnet.single_file(config)])
    assert str(compare(part)) == ""
    assert part.layout().title == "single-file ControlNet"
    assert len(shapes(ControlNet, config)) == len(tensors) == 340


def test_autoencoders_are_bijections():
    single = vae_part("vae", listed("ldmkeys.json", "vae", "first_stage_model."))
    assert str(compare(single)) == ""
    assert single.config == VAEConfig()
    folder = vae_part("vae", listed("diffkeys.json", "vae"))
    assert str(compare(folder)) == ""
    assert [single.layout().title, folder.layout().title] == ["single-file autoencoder", "folder autoencoder"]


@pytest.mark.parametrize("layout", autoencoder.layouts(TINY), ids=lambda layout: layout.title)
def test_all_spellings_of_an_autoencoder_are_one_model(layout):
    source = filled(VAE, TINY, autoencoder.single_file(TINY))
    expected = convert(Part("a", VAE, TINY, source, autoencoder.layouts(TINY)), "float32")
    renamed = {
        bare(layout.public(name)): Held(array.shape, array)
        for name in expected
        for array in [to_public(layout.public(name), np.asarray(expected[name]))]
    }
    part = Part("b", VAE, TINY, renamed, autoencoder.layouts(TINY))
    assert part.layout().title == layout.title
    got = convert(part, "float32")
    assert all(np.array_equal(got[name], expected[name]) for name in expected)


def test_taesd_spellings_are_bijections():
    config = TinyVAEConfig(width=8)
    for layout in taesd.layouts(config):
        part = taesd_part("taesd", filled(TinyVAE, config, layout), config)
        assert str(compare(part)) == ""
        assert part.layout().title == layout.title


def test_fused_and_input_first_text_weights_come_apart_rightly():
    config = TextConfig(vocabulary=11, length=5, width=64, mlp_width=20, layers=2, heads=1, projection=64, end_id=10)
    layout, generator = text.openclip(config), np.random.default_rng(0)
    public = {}
    for name, spec in shapes(TextTower, config).items():
        key = layout.public(name)
        shape = (3 * spec.shape[-1], *spec.shape[:-1]) if "#" in key else to_public(key, np.empty(spec.shape)).shape
        array = generator.standard_normal(shape).astype(np.float32)
        public[bare(key)] = Held(array.shape, array)
    part = text_part("clip", public, activation="gelu")
    assert part.config == TextConfig(**{**config.__dict__, "activation": "gelu"})
    params = convert(part, "float32")
    fused = public["transformer.resblocks.1.attn.in_proj_weight"].array
    assert np.array_equal(params["layers.1.attn.k.kernel"], fused[64:128].T)
    assert np.array_equal(
        params["layers.1.attn.v.bias"], public["transformer.resblocks.1.attn.in_proj_bias"].array[128:]
    )
    assert np.array_equal(params["projection.kernel"], public["text_projection"].array)


@pytest.mark.parametrize("shape", [(4, 6), (3, 3, 5, 7), (9,)])
def test_to_ours_undoes_to_public(shape):
    array = np.arange(np.prod(shape)).reshape(shape)
    assert np.array_equal(to_ours("x.weight", to_public("x.weight", array), shape), array)


def test_a_convolution_of_one_pixel_is_a_linear_layer():
    stored = np.arange(6.0).reshape(2, 3, 1, 1)
    assert np.array_equal(to_ours("proj_in.weight", stored, (3, 2)), stored[:, :, 0, 0].T)


def test_only_tables_of_vectors_are_kept_as_stored():
    table, patches = np.arange(6.0).reshape(2, 3), np.arange(24.0).reshape(2, 3, 2, 2)
    for name in ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight", "positional_embedding"):
        assert np.array_equal(to_ours(name, table, (2, 3)), table)
    name = "embeddings.patch_embedding.weight"  # a convolution that is called so
    assert np.array_equal(to_ours(name, patches, (2, 2, 3, 2)), patches.transpose(2, 3, 1, 0))
    assert np.array_equal(to_public(name, to_ours(name, patches, (2, 2, 3, 2))), patches)
    assert stored_shape(name, (2, 2, 3, 2), {}) == (2, 3, 2, 2)


def broken_vae(change):
    """The message about a small autoencoder after ``change`` to its public tensors."""
    tensors = filled(VAE, TINY, autoencoder.single_file(TINY))
    change(tensors)
    with pytest.raises(ValueError) as caught:
        convert(Part("x.ckpt: the autoencoder", VAE, TINY, tensors, autoencoder.layouts(TINY)), "float32")
    return str(caught.value)


def test_both_sides_of_a_misfit_are_named():
    def change(tensors):
        tensors["encoder.conv_inn.weight"] = tensors.pop("encoder.conv_in.weight")
        tensors["decoder.conv_out.bias"] = Held((5,), np.zeros(5))

    message = broken_vae(change)
    assert message.startswith("x.ckpt: the autoencoder does not fit the single-file autoencoder layout")
    assert "1 missing: encoder.conv_in.weight" in message
    assert "1 unknown: encoder.conv_inn.weight" in message
    assert "decoder.conv_out.bias is (5,) but should be (3,)" in message


def test_a_transposed_convolution_is_refused():
    def change(tensors):
        array = tensors["encoder.conv_in.weight"].array.transpose(2, 3, 1, 0)
        tensors["encoder.conv_in.weight"] = Held(array.shape, array)

    assert "encoder.conv_in.weight is (3, 3, 3, 8) but should be (8, 3, 3, 3)" in broken_vae(change)


def test_what_is_not_finite_is_named():
    tensors = filled(VAE, TINY, autoencoder.single_file(TINY))
    tensors["quant_conv.bias"].array[2] = np.nan
    with pytest.warns(UserWarning, match=r"NaN or infinite weights in quant_conv\.bias"):
        convert(Part("x", VAE, TINY, tensors, autoencoder.layouts(TINY)), "float32")


def test_a_large_number_that_float16_cannot_hold_is_named():
    tensors = filled(VAE, TINY, autoencoder.single_file(TINY))
    tensors["quant_conv.bias"].array[2] = 1e6
    with np.errstate(over="ignore"), pytest.warns(UserWarning, match=r"quant_conv\.bias"):
        convert(Part("x", VAE, TINY, tensors, autoencoder.layouts(TINY)), "float16")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("conditioner.embedders.0.x", "an SDXL checkpoint"),
        ("control_model.zero_convs.0.0.weight", "a ControlNet"),
        ("lora_unet_down_blocks_0.lora_down.weight", "a LoRA"),
        ("image_proj.proj.weight", "an IP-Adapter"),
        ("model.diffusion_model.double_blocks.0.x", "a diffusion transformer"),
        ("fc.weight", "nothing this program knows"),
    ],
)
def test_other_kinds_of_checkpoint_are_told_apart(key, name):
    family = identify({key: Held((1,))})
    assert (family.name, family.kind) == (name, "other")


def test_families_by_context_and_channels():
    assert unet_family(768, 4) == "Stable Diffusion 1.x"
    assert unet_family(1024, 9) == "Stable Diffusion 2.x inpainting"
    assert identify(listed("ldmkeys.json", "sdxl_unet")).name == "an SDXL checkpoint"
    assert identify(listed("ldmkeys.json", "sd1_unet")).kind == "pipeline"
    assert identify(listed("cnetkeys.json", "s15")).name == "a ControlNet"


UNET_JSON = {"block_out_channels": [32, 64], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]}


def test_a_unet_configuration_for_another_network_is_refused():
    assert unet.config_from_json(UNET_JSON, "c").heads == (8, 8)
    with pytest.raises(ValueError, match="c: class_embed_type is 'timestep'"):
        unet.config_from_json(UNET_JSON | {"class_embed_type": "timestep"}, "c")
    with pytest.raises(ValueError, match="down_block_types"):
        unet.config_from_json(UNET_JSON | {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "c")


def test_head_counts_are_called_attention_head_dim_in_public_files():
    sd2 = unet.config_from_json(UNET_JSON | {"attention_head_dim": [5, 10]}, "c")
    assert sd2.heads == (5, 10)
    assert sd2 == UNetConfig(channels=(32, 64), depth=(1, 0), heads=(5, 10), context_dim=1280)


@pytest.mark.parametrize(
    ("context", "ndim", "heads"),
    [(768, 4, (8, 8)), (768, 2, (8, 8)), (1024, 4, (1, 2)), (1024, 2, (1, 2)), (24, 4, (8, 8)), (24, 2, (1, 2))],
)
def test_heads_of_a_single_file_follow_its_generation(context, ndim, heads):
    config = UNetConfig(channels=(64, 128), blocks=1, depth=(1, 0), heads=heads, context_dim=context)
    layout = unet.single_file(config)
    tensors = {}
    for name, spec in shapes(UNet, config).items():
        key = layout.public(name)
        shape = to_public(key, np.empty(spec.shape)).shape
        tensors[key] = Held((*shape, 1, 1) if ndim == 4 and "proj_in.weight" in key else shape)
    assert unet_part("x", tensors).config == config


@pytest.mark.parametrize(
    ("extras", "bias", "prediction"),
    [
        ({"global_step": 875_000}, [0.5, -0.5], "epsilon"),
        ({"global_step": 140_000}, [0.5, -0.5], "v_prediction"),
        ({}, [0.1, -0.1], "v_prediction"),
        ({}, [0.05, -0.05], "epsilon"),
        ({}, [0.0, 0.0], "v_prediction"),
    ],
)
def test_prediction_of_2x_by_step_and_by_spread(extras, bias, prediction):
    context = Held((64, 1024))
    tensors = {unet.CONTEXT_PROBE: context, "middle_block.1.proj_in.weight": Held((64, 64))}
    tensors[single_file.V_PROBE] = Held((2,), np.array(bias))
    checkpoint = Checkpoint(tensors, extras=extras)
    assert single_file.prediction_of(checkpoint, tensors, UNetConfig(context_dim=1024))[0] == prediction
    inpainting = UNetConfig(context_dim=1024, in_channels=9)
    assert single_file.prediction_of(checkpoint, tensors, inpainting)[0] == "epsilon"


def test_rules_apply_to_our_names():
    assert Layout("t", ((r"^a\.", "b."),)).public("a.kernel") == "b.weight"
