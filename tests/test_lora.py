"""LoRA and its kin: the algebra, folding, files of every layout, and what is said of files that do not fit."""

import json
import math
import warnings

import jax
import jax.numpy as jnp
import lora_files
import numpy as np
import pytest
from lora_files import ALPHA, RANK, kohya, locon, loha, lokr, lokr_window, numbers, ours, plain, relative
from safetensors.numpy import load_file, save_file

import ldm
import weights_convert
from ldm import program
from ldm.adapters import lora as loras
from ldm.bundle import Bundle, Configs
from ldm.models.layers import shapes
from ldm.models.text import TextConfig
from ldm.models.unet import UNet, UNetConfig
from weights_convert.adapters.export import export_lora
from weights_convert.adapters.inspection import MODELS
from weights_convert.adapters.names import kernels, table
from weights_convert.inspection import inspect
from weights_convert.tables import unet as unet_names

ATTN = "down_blocks.0.attentions.0.transformer_blocks.0"
QUERY, FF = f"{ATTN}.attn1.to_q", f"{ATTN}.ff.net.0.proj"
CONV, TIME = "down_blocks.0.resnets.0.conv1", "down_blocks.0.resnets.0.time_emb_proj"
OUT_NAMES = {
    QUERY: "encoder.down.0.attn.0.blocks.0.self_attn.q.kernel",
    FF: "encoder.down.0.attn.0.blocks.0.ff.proj_in.kernel",
    CONV: "encoder.down.0.res.0.conv1.kernel",
}
TEXT = "encoder.layers.1.self_attn.v_proj"
DRAW = {"steps": 2, "output": "latents", "progress": False}
W = 32  # width of the small U-Net


@pytest.fixture(scope="module")
def lora(least) -> dict:
    """A LoRA of both parts, with an ordinary and a convolutional layer."""
    forms = {
        "unet": {OUT_NAMES[QUERY]: (W, W), OUT_NAMES[CONV]: (3, 3, W, W)},
        "text": {"layers.1.attn.v.kernel": (64, 64)},
    }
    made = {part: loras.fresh(own, RANK, jax.random.key(1)) for part, own in forms.items()}
    random = lambda form: form._replace(up=jnp.asarray(numbers(7, *form.up.shape)))
    filled = {part: {name: random(form) for name, form in own.items()} for part, own in made.items()}
    return {part: loras.changes_of(own, ALPHA) for part, own in filled.items()}


def write(tmp_path, tensors, name="lora.safetensors", **metadata):
    """A file."""
    save_file({n: np.ascontiguousarray(a) for n, a in tensors.items()}, tmp_path / name, metadata or None)
    return tmp_path / name


def added(bundle, path, name, part="unet", scale=1.0) -> np.ndarray:
    """What a file's LoRA adds to one kernel."""
    found = weights_convert.load_lora(path, bundle)
    before = bundle.params[part]
    after = loras.merge(before, found[part], scale)
    return np.asarray(after[name], np.float64) - np.asarray(before[name], np.float64)


# ---- the algebra ----


def test_a_new_one_and_scale_zero_change_nothing_to_the_bit(least, lora):
    fresh = {"unet": loras.changes_of(loras.fresh({OUT_NAMES[QUERY]: (W, W)}, 4, jax.random.key(0)), 8.0)}
    base = ldm.generate(least, "a", **DRAW)
    for model in (
        ldm.with_lora(least, fresh),
        ldm.with_lora(least, lora, 0.0),
        ldm.with_lora(least, lora, 0, folded=True),
    ):
        assert np.array_equal(ldm.generate(model, "a", **DRAW), base)
    assert relative(ldm.generate(ldm.with_lora(least, lora), "a", **DRAW), base) > 0.01


def test_folded_equals_run_time_and_undone_is_the_base_itself(least, lora):
    model = ldm.with_lora(least, lora, 0.7)
    folded = ldm.with_lora(least, lora, 0.7, folded=True)
    assert relative(ldm.generate(model, "a", **DRAW), ldm.generate(folded, "a", **DRAW)) < 1e-5
    back = ldm.without_lora(model)
    for part, params in least.params.items():
        assert all(back.params[part][name] is array for name, array in params.items())


def test_rank_and_number_of_parameters():
    """Claims 10 and 11: rank at most r by SVD, r (d + o) numbers in place of d o."""
    forms = loras.fresh({"a.kernel": (40, 24)}, RANK, jax.random.key(0))
    forms = {name: form._replace(up=jnp.asarray(numbers(1, *form.up.shape))) for name, form in forms.items()}
    delta = np.asarray(forms["a.kernel"].whole())
    values = np.linalg.svd(delta, compute_uv=False)
    assert values[RANK - 1] > 1e-3 and values[RANK] < 1e-5
    assert loras.parameters({"unet": loras.changes_of(forms, 1.0)}) == RANK * (40 + 24)


def test_scales_compile_nothing_and_orders_do_not_matter(least, lora):
    other = {"unet": loras.changes_of({OUT_NAMES[QUERY]: loras.LowRank(numbers(3, W, 2), numbers(4, 2, W))}, 1.0)}
    one = ldm.with_lora(ldm.with_lora(least, lora, 0.5), other, 0.25)
    first = ldm.generate(one, "a", **DRAW)
    before = program.advance._cache_size(), program.begin._cache_size()
    ldm.generate(ldm.with_lora(ldm.with_lora(least, lora, 0.9), other, -1.0), "a", **DRAW)
    assert (program.advance._cache_size(), program.begin._cache_size()) == before
    two = ldm.with_lora(ldm.with_lora(least, other, 0.25), lora, 0.5)
    assert relative(ldm.generate(two, "a", **DRAW), first) < 1e-5


def test_parts_have_their_own_scales(least, lora):
    model = ldm.with_lora(least, lora, {"unet": 0.5, "text": 0.0}, folded=True)
    assert np.array_equal(
        model.params["text"]["layers.1.attn.v.kernel"], least.params["text"]["layers.1.attn.v.kernel"]
    )
    half = loras.merge(least.params["unet"], lora["unet"], 0.5)
    np.testing.assert_allclose(model.params["unet"][OUT_NAMES[QUERY]], half[OUT_NAMES[QUERY]], rtol=1e-6)


@pytest.mark.parametrize("axis", ["outputs", "inputs"])
def test_dora_by_hand(axis):
    """The magnitude is of each output (PEFT, today's LyCORIS) or of each input (older files)."""
    kernel, (down, up) = numbers(0, 3, 3, 8, 6), (numbers(1, 3, 3, 8, 2), numbers(2, 2, 6))
    m = np.abs(numbers(3, 6 if axis == "outputs" else 8)) + 0.5
    change = loras.Change(loras.LowRank(down, up), np.float32(0.5), m if axis == "outputs" else m[:, None])
    whole = kernel + 0.5 * np.einsum("hwdr,ro->hwdo", down, up)
    axes, shape = ((0, 1, 2), (1, 1, 1, 6)) if axis == "outputs" else ((0, 1, 3), (1, 1, 8, 1))
    wanted = m.reshape(shape) * whole / np.sqrt((whole**2).sum(axes, keepdims=True))
    assert relative(loras.merge({"k": kernel}, {"k": change})["k"], wanted) < 1e-6
    assert np.array_equal(loras.merge({"k": kernel}, {"k": change}, 0.0)["k"], kernel)


def test_gradients_pass_through_the_merge():
    kernel, form = numbers(0, 8, 6), loras.LowRank(numbers(1, 8, 2), numbers(2, 2, 6))
    loss = lambda form: (loras.merge({"k": kernel}, loras.changes_of({"k": form}, 4.0))["k"] ** 2).sum()
    found = jax.grad(loss)(form)
    whole = kernel + 2.0 * form.down @ form.up
    assert relative(found.up, 2.0 * form.down.T @ (2 * whole)) < 1e-5
    assert relative(found.down, 2.0 * (2 * whole) @ form.up.T) < 1e-5


# ---- public files: each against its own product ----

D = {QUERY: (W, W), FF: (8 * W, W), CONV: (W, W)}
FILES = {
    "LoRA": (QUERY, plain(*D[QUERY], 1), ALPHA / RANK),
    "another shape": (FF, plain(*D[FF], 2, rank=5), ALPHA / 5),
    "convolution": (CONV, plain(*D[CONV], 3, window=(3, 3)), ALPHA / RANK),
    "a layer given as a 1x1 convolution": (QUERY, plain(*D[QUERY], 4, window=(1, 1)), ALPHA / RANK),
    "LoCon": (CONV, locon(*D[CONV], 5), ALPHA / RANK),
    "LoHa": (FF, loha(*D[FF], 6), ALPHA / RANK),
    "LoHa, convolution": (CONV, loha(*D[CONV], 7, (3, 3)), ALPHA / RANK),
    "LoHa, core": (CONV, loha(*D[CONV], 8, (3, 3), tucker=True), ALPHA / RANK),
    "LoKr": (FF, lokr(*D[FF], 9), ALPHA / RANK),
    "LoKr, both of low rank": (FF, lokr(*D[FF], 10, "both"), ALPHA / RANK),
    "LoKr, both whole": (FF, lokr(*D[FF], 11, "whole"), 1.0),
    "LoKr, convolution": (CONV, lokr_window(*D[CONV], 12, False), ALPHA / RANK),
    "LoKr, core": (CONV, lokr_window(*D[CONV], 13, True), ALPHA / RANK),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_adds_the_product_of_its_matrices(least, tmp_path, kind):
    layer, (matrices, delta), factor = FILES[kind]
    delta = delta[:, :, 0, 0] if delta.ndim == 4 and delta.shape[2:] == (1, 1) else delta
    path = write(tmp_path, kohya({layer: matrices}))
    assert relative(added(least, path, OUT_NAMES[layer], scale=0.5), 0.5 * factor * ours(delta)) < 3e-6


@pytest.mark.parametrize("alpha", [None, 0.0])
def test_no_alpha_and_alpha_zero_are_the_rank(least, tmp_path, alpha):
    matrices, delta = plain(W, W, 1)
    path = write(tmp_path, kohya({QUERY: matrices}, alpha))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert relative(added(least, path, OUT_NAMES[QUERY]), ours(delta)) < 3e-6
    assert [("alpha is 0" in str(w.message)) for w in caught] == ([] if alpha is None else [True])


SPELLINGS = {
    "kohya": (lambda layer, role: f"lora_unet_{layer.replace('.', '_')}.lora_{role}.weight", QUERY),
    "diffusers": (lambda layer, role: f"unet.{layer}.lora.{role}.weight", QUERY),
    "diffusers, old": (lambda layer, role: f"unet.{ATTN}.attn1.processor.to_q_lora.{role}.weight", QUERY),
    "processors without prefix": (lambda layer, role: f"{ATTN}.attn1.processor.to_q_lora.{role}.weight", QUERY),
    "PEFT": (lambda layer, role: f"base_model.model.{layer}.lora_{'AB'[role == 'up']}.weight", FF),
    "PEFT with its name": (lambda layer, role: f"unet.{layer}.lora_{'AB'[role == 'up']}.default_0.weight", FF),
    "single-file names": (
        lambda layer, role: f"lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_{role}.weight",
        QUERY,
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_found(least, tmp_path, spelling):
    name, layer = SPELLINGS[spelling]
    matrices, delta = plain(*D[layer], 1)
    path = write(tmp_path, {name(layer, role): array for role, array in matrices.items()})
    assert relative(added(least, path, OUT_NAMES[layer]), ours(delta)) < 3e-6


TEXT_SPELLINGS = (
    f"lora_te_text_model_{TEXT.replace('.', '_')}.lora_{{}}.weight",
    f"lora_te1_text_model_{TEXT.replace('.', '_')}.lora_{{}}.weight",
    f"text_encoder.text_model.{TEXT}.lora_linear_layer.{{}}.weight",
    "text_encoder.text_model.encoder.layers.1.self_attn.to_v_lora.{}.weight",
)


@pytest.mark.parametrize("spelling", TEXT_SPELLINGS)
def test_text_towers_are_found(least, tmp_path, spelling):
    matrices, delta = plain(64, 64, 1)
    path = write(tmp_path, {spelling.format(role): array for role, array in matrices.items()})
    assert relative(added(least, path, "layers.1.attn.v.kernel", "text"), ours(delta)) < 3e-6


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"r": RANK, "lora_alpha": 6}, 6 / RANK),
        ({"r": RANK, "lora_alpha": 6, "use_rslora": True}, 6 / math.sqrt(RANK)),
        ({"r": 8, "rank_pattern": {"attn1.to_q": RANK}, "lora_alpha": 6, "alpha_pattern": {"to_q": 5}}, 5 / RANK),
    ],
)
def test_what_pefts_configuration_says(least, tmp_path, settings, factor):
    """In a folder of PEFT, or in the metadata that diffusers writes."""
    matrices, delta = plain(W, W, 1)
    tensors = {f"base_model.model.{QUERY}.lora_{'AB'[r == 'up']}.weight": a for r, a in matrices.items()}
    write(tmp_path, tensors, "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert relative(added(least, tmp_path, OUT_NAMES[QUERY]), factor * ours(delta)) < 3e-6
    (tmp_path / "adapter_config.json").unlink()
    told = json.dumps({f"unet.{key}": value for key, value in settings.items()})
    path = write(tmp_path, tensors, "other.safetensors", lora_adapter_metadata=told)
    assert relative(added(least, path, OUT_NAMES[QUERY]), factor * ours(delta)) < 3e-6


@pytest.mark.parametrize("late", [0, 1], ids=["ff between", "ff last"])
def test_numbers_in_place_of_names(least, tmp_path, late):
    """cloneofsimo's layout: both orders in which the blocks were once defined."""
    block = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"]
    cross = [name.replace("attn1", "attn2") for name in block]
    order = [*block, *cross, "ff.net.0.proj"] if late else [*block, "ff.net.0.proj", *cross]
    places = [f"{at}.transformer_blocks.0.{name}" for at in spots() for name in order]
    sizes = {name: spec.shape for name, spec in shapes(UNet, least.configs.unet).items()}
    layout, tensors, wanted = unet_names.folder(least.configs.unet), {}, {}
    public = {layout.public(name).removesuffix(".weight"): name for name in sizes}
    for number, place in enumerate(places):
        i, o = sizes[public[place]]
        matrices, delta = plain(o, i, number)
        tensors |= {f"unet:{number}:{role}": array for role, array in matrices.items()}
        wanted[public[place]] = ours(delta)
    path = write(tmp_path, tensors, unet=json.dumps(["GEGLU", "CrossAttention", "Attention"]))
    found = weights_convert.load_lora(path, least)["unet"]
    assert found.keys() == wanted.keys()
    for name, change in found.items():
        assert relative(change.form.whole(), wanted[name]) < 1e-6 and change.factor == 1


def spots() -> list[str]:
    """The attentions of the small U-Net, in the order of definition: down, up."""
    return ["down_blocks.0.attentions.0", "up_blocks.0.attentions.0", "up_blocks.0.attentions.1"]


# ---- files of ours, and for others ----


def test_own_files_come_back_to_the_bit(least, lora, tmp_path):
    loras.save_lora(lora, tmp_path / "a.safetensors")
    back = weights_convert.load_lora(tmp_path / "a.safetensors", least)
    jax.tree.map(np.testing.assert_array_equal, back, {part: dict(own) for part, own in lora.items()})


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
def test_exports_come_back_to_the_bit(least, lora, tmp_path, layout):
    lora = {"unet": lora["unet"]} if layout == "peft" else lora
    export_lora(lora, least.configs, tmp_path / "out", layout)
    back = weights_convert.load_lora(tmp_path / "out", least)
    jax.tree.map(np.testing.assert_array_equal, back, {part: dict(own) for part, own in lora.items()})


def test_the_first_generation_has_convolutions_around_its_transformers(tmp_path):
    """1x1 convolutions in 1.x, linear layers in 2.x: other tools want the matrices in the layer's own shape."""
    change = loras.changes_of(
        {"encoder.down.0.attn.0.proj_in.kernel": loras.LowRank(numbers(0, 320, 2), numbers(1, 2, 320))}, 1.0
    )
    for family, shape in (("Stable Diffusion 1.x", (2, 320, 1, 1)), ("Stable Diffusion 2.x", (2, 320))):
        path = tmp_path / f"{len(shape)}.safetensors"
        export_lora({"unet": change}, MODELS[family], path, "kohya")
        assert load_file(path)["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"].shape == shape


def test_what_no_layout_holds_is_said(least, lora, tmp_path):
    with pytest.raises(ValueError, match="PEFT's folder holds one model's LoRA"):
        export_lora(lora, least.configs, tmp_path / "out", "peft")
    odd = {
        "unet": {
            OUT_NAMES[QUERY]: loras.Change(
                loras.Hadamard(*[loras.LowRank(numbers(0, W, 2), numbers(1, 2, W))] * 2), 1.0
            )
        }
    }
    with pytest.raises(ValueError, match="Hadamard has no down and up"):
        export_lora(odd, least.configs, tmp_path / "out", "kohya")
    with pytest.raises(ValueError, match="layout 'onnx' is none of"):
        export_lora(lora, least.configs, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


# ---- names at full size ----


@pytest.mark.parametrize("family", MODELS)
def test_underscored_names_are_unique_at_full_size(family):
    """So no two layers can be taken for one another; SDXL has 794 in its U-Net."""
    known = table(MODELS[family])
    own = [kernel for kernel in kernels(MODELS[family]) if kernel.part == "unet"]
    for config_layout in (unet_names.folder, unet_names.single_file):
        layout = config_layout(MODELS[family].unet)
        names = {f"lora_unet_{layout.public(k.name).removesuffix('.weight').replace('.', '_')}" for k in own}
        assert len(names) == len(own) and {known[name].name for name in names} == {k.name for k in own}
    if family == "SDXL":
        assert len(own) == 794


def test_kohyas_usual_layers_at_full_size():
    """192 of the U-Net's 16 transformers and 72 of the text tower's 12 layers."""
    configs = Configs(UNetConfig(), text=TextConfig())
    names = list(kernels(configs))
    inside = [
        k
        for k in names
        if k.part == "unet" and (".blocks." in k.name or k.name.endswith(("proj_in.kernel", "proj_out.kernel")))
    ]
    assert len(inside) == 16 * 12 and len([k for k in names if k.part == "text"]) == 12 * 6


# ---- what does not fit ----


def bad(kind: str) -> tuple[dict, str]:
    """A file, and what is said of it."""
    good = kohya({QUERY: plain(W, W, 1)[0]})
    renamed = lambda old, new: {name.replace(old, new): array for name, array in good.items()}
    other = lambda layer, *shape: kohya({layer: plain(*shape, 1)[0]})
    up = "lora_unet_" + QUERY.replace(".", "_") + ".lora_up.weight"
    return {
        "another width": (other(QUERY, 48, 48), "changes a kernel of 48x48 .* the model's is 32x32"),
        "another family": (other(f"{ATTN}.attn2.to_k", W, 2048), "it looks like one for SDXL"),
        "ranks": ({**good, up: numbers(1, W, 5)}, "ranks of its matrices differ: down has 3, up has 5"),
        "no up": ({n: a for n, a in good.items() if n != up}, "up is missing beside down"),
        "nothing fits": (
            renamed("lora_unet_", "lora_unet_unet_"),
            "nothing in it fits this model: 3 tensors, such as lora_unet_unet_",
        ),
        "not finite": ({**good, up: np.full((W, RANK), np.nan, np.float32)}, "up holds NaN or infinite numbers"),
        "alpha": ({**good, up.replace("lora_up.weight", "alpha"): numbers(0, 2)}, "alpha must be one finite number"),
        "GLoRA": ({"lora_unet_x.a1.weight": numbers(0, 2, 2)}, "holds GLoRA, which is not read"),
        "full": ({"lora_unet_x.diff": numbers(0, 2, 2)}, "holds full differences"),
        "OFT": ({"lora_unet_x.oft_blocks": numbers(0, 2, 2)}, "holds OFT"),
        "a model": ({"conv_in.weight": numbers(0, 2, 2)}, "no LoRA is in it: its tensors are such as conv_in.weight"),
        "twice": (
            {**good, **{f"unet.{QUERY}.lora.{r}.weight": a for r, a in plain(W, W, 1)[0].items()}},
            "two layers of it are the model's",
        ),
        "numbers": (
            {"unet:0:up": numbers(0, 9, 2), "unet:0:down": numbers(0, 2, 9)},
            "do not fit this model's 27 one after another",
        ),
    }[kind]


KINDS = (
    "another width",
    "another family",
    "ranks",
    "no up",
    "nothing fits",
    "not finite",
    "alpha",
    "GLoRA",
    "full",
    "OFT",
)
KINDS += ("a model", "twice", "numbers")


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_one_sentence(least, tmp_path, kind):
    tensors, words = bad(kind)
    path = write(tmp_path, tensors)
    with pytest.raises(ValueError, match=words) as caught:
        weights_convert.load_lora(path, least)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_what_fits_nothing_is_named(least, tmp_path):
    tensors = kohya({QUERY: plain(W, W, 1)[0], "elsewhere.to_q": plain(W, W, 2)[0]})
    with pytest.warns(UserWarning, match=r"3 tensors of the LoRA fit nothing: lora_unet_elsewhere_to_q\.alpha, "):
        assert len(weights_convert.load_lora(write(tmp_path, tensors), least)["unet"]) == 1


def test_a_scale_must_be_a_number(least, lora):
    for scale in (float("nan"), "much", None):
        with pytest.raises(ValueError, match="the scale of a LoRA must be a finite number"):
            ldm.with_lora(least, lora, scale)
    with pytest.raises(ValueError, match=r"this model has no nothing\.kernel"):
        loras.merge(least.params["unet"], {"nothing.kernel": None})
    with pytest.raises(ValueError, match="unet is needed too"):
        ldm.with_lora(Bundle(least.configs, {"text": least.params["text"]}), lora)


# ---- inspection ----


def test_inspection_says_what_a_file_is(tmp_path):
    names = [f"{ATTN}.{attn}.{to}" for attn in ("attn1", "attn2") for to in ("to_q", "to_k", "to_v", "to_out.0")]
    sizes = [(320, 768 if "attn2.to_k" in n or "attn2.to_v" in n else 320) for n in names]
    layers = {name: plain(o, i, n)[0] for n, (name, (o, i)) in enumerate(zip(names, sizes, strict=True))}
    tags = json.dumps({"10_cats": {"cat": 9, "sitting": 4}})
    path = write(
        tmp_path, kohya(layers), ss_tag_frequency=tags, ss_output_name="cats", ss_network_module="networks.lora"
    )
    said = inspect(path)
    for words in ("a LoRA", "for Stable Diffusion 1.x", "8 layers: 4 of self-attention, 4 of cross-attention"):
        assert words in said, said
    for words in ("LoRA (8); rank 3", "alpha 2", "trigger words: cat (9), sitting (4)", "ss_output_name: cats"):
        assert words in said, said


def test_small_numbers_are_not_lost(tmp_path):
    """The file is written in float32 and comes back so."""
    path = tmp_path / "a.safetensors"
    change = {"unet": loras.changes_of({"a.kernel": loras.LowRank(numbers(0, 4, 2) * 1e-8, numbers(1, 2, 4))}, 1.0)}
    loras.save_lora(change, path)
    assert {a.dtype for a in load_file(path).values()} == {np.dtype(np.float32)}
    assert lora_files.relative(load_file(path)["ldm.unet.a.lora_down.weight"].T, numbers(0, 4, 2) * 1e-8) == 0
