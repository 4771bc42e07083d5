"""The names that public LoRA files give to the layers of a model, and to the matrices of each.

Underscored names (``lora_unet_down_blocks_0_attentions_0_…``) cannot be taken apart again, so nothing is: the table is
built forward, from the model's own parameters to every spelling of them, and looked up.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ldm.bundle import MODELS, Configs
from ldm.models.layers import shapes
from weights_convert.engine import Layout, Tensors
from weights_convert.tables import text, unet

PEFT = "base_model.model."
PREFIXES = {  # of dotted names, and of underscored ones
    "unet": (
        ("", "unet.", PEFT, f"unet.{PEFT}", "diffusion_model.", "model.diffusion_model."),
        ("lora_unet_", "lycoris_"),
    ),
    "text": (
        ("", "text_encoder.", PEFT, f"text_encoder.{PEFT}", "cond_stage_model.transformer."),
        ("lora_te_", "lora_te1_"),
    ),
}


class Kernel(NamedTuple):
    """A kernel of ours: its part, its name and its shape."""

    part: str
    name: str
    shape: tuple[int, ...]


def spellings(part: str, config: object) -> list[tuple[str, Layout]]:
    """The public spellings of a part, each with what stands before all of its names."""
    if part == "unet":
        return [("", unet.folder(config)), ("", unet.single_file(config))]
    return [(wrapper, text.folder(config)) for wrapper in ("text_model.", "")]


def kernels(configs: Configs) -> Iterator[Kernel]:
    """The kernels of a model's U-Net and text tower."""
    for part in PREFIXES:
        config = getattr(configs, part)
        for name, spec in {} if config is None else shapes(MODELS[type(config)], config).items():
            if name.endswith(".kernel"):
                yield Kernel(part, name, spec.shape)


def table(configs: Configs) -> dict[str, Kernel]:
    """Every spelling of every layer -> its kernel."""
    found: dict[str, Kernel] = {}
    all_of = defaultdict(list)
    for kernel in kernels(configs):
        all_of[kernel.part].append(kernel)
    for part, own in all_of.items():
        found |= {f"ldm.{part}.{kernel.name.removesuffix('.kernel')}": kernel for kernel in own}
        dotted, underscored = PREFIXES[part]
        for wrapper, layout in spellings(part, getattr(configs, part)):
            for kernel in own:
                layer = wrapper + layout.public(kernel.name).removesuffix(".weight")
                found |= {prefix + layer: kernel for prefix in dotted}
                found |= {prefix + layer.replace(".", "_"): kernel for prefix in underscored}
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The matrices of a layer


TO = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
ROLE = {"A": "down", "B": "up"}
LYCORIS = r"hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2"

# (pattern of a tensor's whole name, its layer, its role)
SPELLINGS = (
    (r"(.+)\.processor\.to_(q|k|v|out)_lora\.(down|up)\.weight", lambda m: (f"{m[1]}.{TO[m[2]]}", m[3])),
    (r"(.+\.self_attn)\.to_(q|k|v|out)_lora\.(down|up)\.weight", lambda m: (f"{m[1]}.{m[2]}_proj", m[3])),
    (r"(.+)\.(?:lora|lora_linear_layer)\.(down|up)\.weight", lambda m: (m[1], m[2])),
    (r"(.+)\.lora_([AB])(?:\.[a-z]\w*)?\.weight", lambda m: (m[1], ROLE[m[2]])),
    (r"(.+)\.lora_magnitude_vector(?:\.[a-z]\w*)?", lambda m: (m[1], "magnitude")),
    (r"(.+)\.lora_(down|up|mid)\.weight", lambda m: (m[1], m[2])),
    (r"(.+)\.dora_scale", lambda m: (m[1], "magnitude")),
    (rf"(.+)\.(alpha|{LYCORIS})", lambda m: (m[1], m[2])),
)

# What other kinds of adapter call their tensors: known, and not read.
OTHER_KINDS = (
    (r".+\.(diff|diff_b)", "full differences (LyCORIS 'full')"),
    (r".+\.(w_norm|b_norm)", "changes of norms (LyCORIS 'norms')"),
    (r".+\.(a1|a2|b1|b2|bm1|bm2)\.weight", "GLoRA"),
    (r".+\.oft_(blocks|diag)|.+\.oft_r(\.\w+)?(\.weight)?", "OFT"),
    (r".+\.boft_\w+(\.\w+)?", "BOFT"),
    (r".+\.(scalar|rescale)", "LyCORIS with a learned scale of the whole"),
    (r".+\.on_input", "IA3"),
    (r".+\.(lora_up|lora_down|lora_A|lora_B)(\.\w+)?\.bias", "LoRA with biases"),
    (r".+\.lora_embedding_[AB](\.\w+)?", "a LoRA of an embedding"),
)


class Parsed(NamedTuple):
    """``layers``: {layer: {role: name of the tensor}}; ``odd``: the names of all other tensors."""

    layers: dict[str, dict[str, str]]
    odd: list[str]


def parse(tensors: Tensors) -> Parsed:
    """Sorts a file's tensors by layer. Raises ValueError where two have the same role in the same layer."""
    layers: dict[str, dict[str, str]] = defaultdict(dict)
    odd = []
    for name in tensors:
        matches = ((re.fullmatch(pattern, name), told) for pattern, told in SPELLINGS)
        layer, role = next((told(match) for match, told in matches if match), (None, None))
        if layer is None:
            odd.append(name)
        elif role in layers[layer]:
            raise ValueError(f"tensors {layers[layer][role]!r} and {name!r} say the same of one layer")
        else:
            layers[layer][role] = name
    return Parsed(dict(layers), odd)


def other_kind(names: list[str]) -> str | None:
    """What kind of adapter one of these names belongs to, if it is one that is known and not read."""
    return next((kind for pattern, kind in OTHER_KINDS for name in names if re.fullmatch(pattern, name)), None)


def family(inputs: Mapping[str, int]) -> str | None:
    """What model a LoRA was made for, by how many inputs its layers have: the width of the context that they read."""
    wide = {width for layer, width in inputs.items() if re.search(r"attn2[._]to_[kv]$", layer)}
    known = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}
    return known.get(wide.pop()) if len(wide) == 1 else None
