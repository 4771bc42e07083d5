"""LoRA files of every public layout against diffusers and PEFT, and where those are known to be wrong or to refuse,
against PyTorch with the product of the matrices added to its weights.

Where diffusers is not the oracle: un-prefixed processors and PEFT's ``base_model.model.`` load into a pipeline without
any effect; ``dora_scale``, LoHa and LoKr of LyCORIS are dropped or refused; cloneofsimo's numbers are unknown to it.

Limit 1e-5: float32 rounding of a small U-Net, whose weights W + up down are rounded once here and used apart there.
"""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ldm
import weights_convert
from ldm.adapters import lora as loras
from ldm.adapters.lora import without_lora
from ldm.bundle import module
from ldm.conditioning import Conditioning
from weights_convert.adapters.export import export_lora

from . import layouts, oracle

sys.path.insert(0, str(Path(__file__).parents[1]))
from lora_files import ALPHA, RANK, kohya, loha, lokr, numbers, plain

peft = pytest.importorskip("peft")
torch, nn = oracle.torch, oracle.nn
LIMIT = 1e-5
SCALE = 0.7
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
X, TIME = oracle.gaussian(1, 2, 8, 8, 4), 601.0
FAMILIES = ("sd1", "sd2")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ldm.Bundle]:
    """(a tiny pipeline of diffusers, ours from its folder)."""
    home = tmp_path_factory.mktemp(request.param)
    pipe = layouts.pipeline(request.param, home / "tokenizer")
    layouts.save_folder(pipe, home / "model")
    return pipe, weights_convert.load(home / "model")


def context(bundle: ldm.Bundle) -> np.ndarray:
    """Random context for two rows."""
    return oracle.gaussian(2, 2, 77, bundle.configs.unet.context_dim)


def ours(bundle: ldm.Bundle) -> np.ndarray:
    """Our U-Net's answer."""
    unet = module(bundle.configs, bundle.params, "unet")
    return np.asarray(unet(X, np.float32(TIME), Conditioning(context(bundle))))


def theirs(unet: nn.Module, bundle: ldm.Bundle) -> np.ndarray:
    """The oracle's answer."""
    said = torch.from_numpy(context(bundle))
    return oracle.nhwc(unet(oracle.nchw(X), TIME, encoder_hidden_states=said).sample)


def sizes(net: nn.Module, ends: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """{layer: shape of its weight} of linear layers and convolutions whose name ends so."""
    kinds = (nn.Linear, nn.Conv2d)
    return {n: tuple(m.weight.shape) for n, m in net.named_modules() if isinstance(m, kinds) and n.endswith(ends)}


def products(net: nn.Module, ends: tuple[str, ...], make: Any = plain) -> tuple[dict, dict]:
    """({layer: matrices}, {layer: their product}), every layer with numbers of its own, small beside its weights."""
    found, deltas = {}, {}
    for seed, (layer, (o, i, *window)) in enumerate(sizes(net, ends).items()):
        more = {"window": tuple(window)} if window and make is plain else {}
        matrices, delta = make(o, i, 100 * seed, **more)
        small = 0.3 / np.sqrt(RANK * i)
        first = next(iter(matrices))
        found[layer] = {**matrices, first: matrices[first] * np.float32(small)}
        deltas[layer] = delta * np.float32(small)
    return found, deltas


def added(net: nn.Module, deltas: dict[str, np.ndarray], factor: float) -> nn.Module:
    """A copy of the network with factor times the products added to its weights."""
    changed = copy.deepcopy(net)
    own = dict(changed.named_modules())
    for layer, delta in deltas.items():
        weight = own[layer].weight
        weight += factor * torch.from_numpy(delta.reshape(weight.shape).astype(np.float32))
    return changed


def write(folder: Path, tensors: dict[str, Any], **metadata: str) -> Path:
    """A file."""
    path = folder / "pytorch_lora_weights.safetensors"
    kept = {name: torch.from_numpy(np.array(array, order="C")) for name, array in tensors.items()}
    layouts.save_file(kept, path, metadata=metadata or {"format": "pt"})
    return path


def check(what: str, bundle: ldm.Bundle, path: Path, wanted: np.ndarray, base: np.ndarray) -> None:
    """Ours with the file, folded and at run time, against what is wanted, which must differ from the base."""
    lora = weights_convert.load_lora(path, bundle)
    assert oracle.rel(wanted, base) > 0.01, "a LoRA without effect would prove nothing"
    for folded in (True, False):
        drawn = ours(ldm.with_lora(bundle, lora, SCALE, folded=folded))
        oracle.agree(f"{what}, {'folded' if folded else 'at run time'}", drawn, wanted, LIMIT)


def diffusers_names(layers: dict, kind: str) -> dict[str, np.ndarray]:
    """A file of the diffusers library, new or old."""
    named = {}
    for layer, own in layers.items():
        place, to = layer.rsplit(".", 1) if not layer.endswith(".0") else layer.removesuffix(".0").rsplit(".", 1)
        for role, array in own.items():
            if kind == "old":
                named[f"unet.{place}.processor.{to}_lora.{role}.weight"] = array
            elif kind == "lora":
                named[f"unet.{layer}.lora.{role}.weight"] = array
            else:
                named[f"unet.{layer}.lora_{'AB'[role == 'up']}.weight"] = array
    return named


ENDS = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
READ_BY_DIFFUSERS = {
    "kohya": (ENDS, lambda layers: kohya(layers), ALPHA / RANK),
    "kohya with convolutions": (
        (*ATTENTION, "conv1", "conv2", "conv_shortcut", "time_emb_proj"),
        lambda layers: kohya(layers),
        ALPHA / RANK,
    ),
    "PEFT's names": (ENDS, lambda layers: diffusers_names(layers, "peft"), 1.0),
    "lora.down": (ATTENTION, lambda layers: diffusers_names(layers, "lora"), 1.0),
    "processors": (ATTENTION, lambda layers: diffusers_names(layers, "old"), 1.0),
}


@pytest.mark.parametrize("layout", READ_BY_DIFFUSERS)
def test_against_diffusers(model: Any, tmp_path: Path, layout: str):
    """As the pipeline loads it; and against the product too, which tells which of both were wrong."""
    pipe, bundle = model
    ends, name, factor = READ_BY_DIFFUSERS[layout]
    layers, deltas = products(pipe.unet, ends)
    path, base = write(tmp_path, name(layers)), theirs(pipe.unet, bundle)
    explicit = theirs(added(pipe.unet, deltas, SCALE * factor), bundle)
    check(f"{layout}, product", bundle, path, explicit, base)
    try:
        pipe.load_lora_weights(tmp_path, weight_name=path.name, adapter_name="one")
        pipe.set_adapters(["one"], [SCALE])
        check(f"{layout}, diffusers", bundle, path, theirs(pipe.unet, bundle), base)
    finally:
        pipe.unload_lora_weights()


@pytest.mark.parametrize("kind", ["processors without prefix", "PEFT", "cloneofsimo"])
def test_what_diffusers_loads_without_effect(model: Any, tmp_path: Path, kind: str):
    pipe, bundle = model
    layers, deltas = products(pipe.unet, ATTENTION)
    if kind == "PEFT":
        named = {f"base_model.model.{n.removeprefix('unet.')}": a for n, a in diffusers_names(layers, "peft").items()}
    elif kind == "cloneofsimo":
        order = [n for side in ("down_blocks", "up_blocks", "mid_block") for n in layers if n.startswith(side)]
        named = {f"unet:{i}:{role}": a for i, layer in enumerate(order) for role, a in layers[layer].items()}
    else:
        named = {n.removeprefix("unet."): a for n, a in diffusers_names(layers, "old").items()}
    told = {"unet": json.dumps(["CrossAttention", "Attention"])} if kind == "cloneofsimo" else {}
    path = write(tmp_path, named, **told)
    wanted = theirs(added(pipe.unet, deltas, SCALE), bundle)
    check(kind, bundle, path, wanted, theirs(pipe.unet, bundle))


MAKERS = {"LoHa": loha, "LoKr": lokr, "LoKr, both of low rank": lambda o, i, seed: lokr(o, i, seed, "both")}


@pytest.mark.parametrize("kind", MAKERS)
def test_lycoris_against_the_product(model: Any, tmp_path: Path, kind: str):
    pipe, bundle = model
    layers, deltas = products(pipe.unet, (*ATTENTION, "ff.net.0.proj"), MAKERS[kind])
    path = write(tmp_path, kohya(layers))
    wanted = theirs(added(pipe.unet, deltas, SCALE * ALPHA / RANK), bundle)
    check(kind, bundle, path, wanted, theirs(pipe.unet, bundle))


@pytest.mark.parametrize("kind", ["loha", "lokr", "dora", "lora", "rslora"])
def test_against_peft(model: Any, tmp_path: Path, kind: str):
    """A network wrapped and saved by PEFT itself, its numbers made random. DoRA at scale 1, where all agree."""
    pipe, bundle = model
    targets = [layer for layer in sizes(pipe.unet, (*ATTENTION, "conv1")) if "conv" not in layer or kind != "dora"]
    configs = {
        "loha": lambda: peft.LoHaConfig(r=4, alpha=6, target_modules=targets),
        "lokr": lambda: peft.LoKrConfig(r=4, alpha=6, target_modules=targets, decompose_factor=4),
        "dora": lambda: peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, use_dora=True),
        "lora": lambda: peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, rank_pattern={"attn2.to_k": 2}),
        "rslora": lambda: peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, use_rslora=True),
    }
    wrapped = peft.get_peft_model(copy.deepcopy(pipe.unet), configs[kind]())
    generator = torch.Generator().manual_seed(3)
    for name, parameter in wrapped.named_parameters():
        if any(mark in name for mark in ("lora_A", "lora_B", "hada_", "lokr_")):
            spread = (1.0 if "hada_" in name else 0.3) / np.sqrt(max(parameter.shape[1:].numel(), 1))
            parameter.data = spread * torch.randn(parameter.shape, generator=generator)
        elif "magnitude" in name:
            parameter.data *= 1 + 0.3 * torch.rand(parameter.shape, generator=generator)
    wrapped.save_pretrained(tmp_path / "adapter")
    wanted = theirs(wrapped.eval(), bundle)
    drawn = ours(ldm.with_lora(bundle, weights_convert.load_lora(tmp_path / "adapter", bundle), folded=True))
    assert oracle.rel(wanted, theirs(pipe.unet, bundle)) > 0.01
    oracle.agree(f"PEFT's {kind}", drawn, wanted, LIMIT)


def test_text_towers(model: Any, tmp_path: Path):
    """kohya's names of the text tower, against the product."""
    pipe, bundle = model
    layers, deltas = products(pipe.text_encoder, ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"))
    short = lambda names: {name.removeprefix("text_model."): value for name, value in names.items()}
    path = write(tmp_path, kohya(short(layers), prefix="lora_te_text_model_"))
    ids = np.asarray(bundle.tokenizer(["a red cube", "two dogs"]))
    wanted = added(pipe.text_encoder, deltas, SCALE * ALPHA / RANK)(torch.from_numpy(ids).long()).last_hidden_state
    changed = ldm.with_lora(bundle, weights_convert.load_lora(path, bundle), SCALE)
    drawn = module(changed.configs, changed.params, "text")(ids).context
    oracle.agree("text tower", np.asarray(drawn), wanted.numpy(), LIMIT)


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
def test_what_is_exported_runs_in_diffusers(model: Any, tmp_path: Path, layout: str):
    """Round trip: trained here, drawn there."""
    pipe, bundle = model
    kernels = {n: a.shape for n, a in bundle.params["unet"].items() if "_attn" in n and n.endswith(".kernel")}
    import jax

    forms = loras.fresh(kernels, RANK, jax.random.key(0))
    forms = {n: f._replace(up=0.1 * numbers(i, *f.up.shape)) for i, (n, f) in enumerate(forms.items())}
    lora = {"unet": loras.changes_of(forms, ALPHA)}
    base = theirs(pipe.unet, bundle)
    if layout == "peft":
        export_lora(lora, bundle.configs, tmp_path / "adapter", layout)
        wrapped = peft.PeftModel.from_pretrained(copy.deepcopy(pipe.unet), tmp_path / "adapter")
        wanted = theirs(wrapped.eval(), bundle)
    else:
        export_lora(lora, bundle.configs, tmp_path / "a.safetensors", layout)
        try:
            pipe.load_lora_weights(tmp_path, weight_name="a.safetensors", adapter_name="two")
            wanted = theirs(pipe.unet, bundle)
        finally:
            pipe.unload_lora_weights()
    assert oracle.rel(wanted, base) > 0.01
    changed = ldm.with_lora(bundle, lora)
    oracle.agree(f"exported, {layout}", ours(changed), wanted, LIMIT)
    oracle.agree("taken away again", ours(without_lora(changed)), base, LIMIT)
