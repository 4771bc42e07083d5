"""What a LoRA, an embedding or a ControlNet is, in a few lines for people.

Names and shapes are read, and of numbers only alphas.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ldm.bundle import Configs
from ldm.models.text import TextConfig
from ldm.models.unet import UNetConfig
from weights_convert.adapters import cloneofsimo
from weights_convert.adapters.embedding import note
from weights_convert.adapters.lora import Opened, numbers
from weights_convert.adapters.names import Kernel, other_kind, parse, table
from weights_convert.reading import Checkpoint, LazyTensor

TEXT2 = TextConfig(width=1024, mlp_width=4096, layers=23, heads=16, activation="gelu")
XL = {"channels": (320, 640, 1280), "depth": (0, 2, 10), "middle_depth": 10, "context_dim": 2048, "pooled_dim": 2816}
MODELS = {  # whose layers are looked for
    "Stable Diffusion 1.x": Configs(UNetConfig(), text=TextConfig()),
    "Stable Diffusion 2.x": Configs(UNetConfig(heads=(5, 10, 20, 20), context_dim=1024), text=TEXT2),
    "SDXL": Configs(UNetConfig(**XL, heads=(5, 10, 20)), text=TextConfig()),
}
KINDS = (  # of layers, by our names
    (r"self_attn|\.attn\.[qkv]|\.attn\.out", "self-attention"),
    (r"cross_attn", "cross-attention"),
    (r"\.ff\.|\.fc[12]\.", "feed-forward"),
    (r"attn\.\d+\.proj|middle\.attn\.proj", "transformers' projections"),
    (r"\.res\.|\.res[12]\.", "residual blocks"),
)
TRIGGERS = ("modelspec.trigger_phrase", "ss_tag_frequency", "instance_prompt")
TOLD = ("modelspec.title", "ss_output_name", "ss_base_model_version", "ss_sd_model_name", "ss_network_module")
TOLD += ("ss_network_dim", "ss_network_alpha", "ss_num_train_images", "ss_steps", "ss_learning_rate", "modelspec.date")
LONGEST = 100


@cache
def known(family: str) -> Mapping[str, Kernel]:
    """Every spelling of every layer of a family."""
    return table(MODELS[family])


def is_lora(tensors: Mapping[str, LazyTensor]) -> bool:
    """Whether there is a LoRA, or another adapter of its kind, in a file."""
    names = list(tensors)
    return cloneofsimo.is_one(tensors) or bool(parse(tensors).layers) or other_kind(names) is not None


def lora_report(source: Opened) -> str:
    """Layout, target family, layers, ranks, alphas, trigger words and metadata of a LoRA. Raises ValueError."""
    path, checkpoint, said = source
    kind = other_kind(list(checkpoint.tensors))
    lines = [f"{path}: a LoRA" if kind is None else f"{path}: {kind}, which this program does not apply"]
    if cloneofsimo.is_one(checkpoint.tensors):
        count = sum(name.endswith(":down") for name in checkpoint.tensors)
        lines.append(f"  {count} layers, numbered in place of named (cloneofsimo's layout)")
        ranks = Counter(t.shape[0] for name, t in checkpoint.tensors.items() if name.endswith(":down"))
        lines.append(f"  rank {said_of(ranks)}; no alpha: the factor is 1")
    else:
        lines += layers_of(checkpoint, said)
    total = sum(tensor.size for tensor in checkpoint.tensors.values())
    dtypes = ", ".join(sorted({str(tensor.dtype) for tensor in checkpoint.tensors.values()}))
    lines.append(f"  {total:,} numbers in {len(checkpoint.tensors)} tensors, stored as {dtypes}")
    return "\n".join([*lines, *told(checkpoint.metadata)])


def layers_of(checkpoint: Checkpoint, said: Mapping[str, Any]) -> list[str]:
    """The lines about families, layers, ranks and alphas."""
    tensors, parsed = checkpoint.tensors, parse(checkpoint.tensors)
    family, found = max(
        ((name, {layer: known(name)[layer] for layer in parsed.layers if layer in known(name)}) for name in MODELS),
        key=lambda pair: sum(fits(tensors, parsed.layers[layer], kernel) for layer, kernel in pair[1].items()),
    )
    lines = []
    for part in ("unet", "text"):
        own = [kernel.name for kernel in found.values() if kernel.part == part]
        kinds = Counter(next((kind for p, kind in KINDS if re.search(p, name)), "others") for name in own)
        if own:
            lines.append(f"  {part:<5} {len(own)} layers: {', '.join(f'{n} of {kind}' for kind, n in kinds.items())}")
    lines.insert(0, f"  for {family}" if found else "  for no family that is known here")
    ranks = Counter(tensors[own["down"]].shape[0] for own in parsed.layers.values() if "down" in own)
    forms = Counter(form(own) for own in parsed.layers.values())
    lines.append(f"  {', '.join(f'{kind} ({n})' for kind, n in forms.items())}; rank {said_of(ranks)}")
    alphas = Counter(
        float(tensors[own["alpha"]].read().reshape(())) for own in parsed.layers.values() if "alpha" in own
    )
    stated = {v for part in ("unet", "text") if (v := numbers(said, part).said.get("lora_alpha")) is not None}
    lines.append(
        f"  alpha {said_of(alphas)}" if alphas else f"  alpha {', '.join(map(str, stated)) or 'not said: the rank'}"
    )
    unused = [*parsed.odd, *(layer for layer in parsed.layers if layer not in found)]
    return [*lines, f"  {len(unused)} names that fit nothing, such as {unused[0]}"] if unused else lines


def fits(tensors: Mapping[str, LazyTensor], own: Mapping[str, str], kernel: Kernel) -> bool:
    """Whether a layer's inputs are as many as a kernel's."""
    shape = tensors[own["down"]].shape if "down" in own else ()
    return len(shape) < 2 or shape[1] == kernel.shape[-2]


def form(own: Mapping[str, str]) -> str:
    """What a layer's matrices are called."""
    name = next(
        (name for mark, name in (("hada", "LoHa"), ("lokr", "LoKr"), ("mid", "LoCon")) if any(mark in r for r in own)),
        "LoRA",
    )
    return f"DoRA over {name}" if "magnitude" in own else name


def said_of(counts: Counter) -> str:
    """ "4" or "4 (128 times), 8 (64 times)"."""
    if len(counts) == 1:
        return f"{next(iter(counts)):g}"
    return ", ".join(f"{value:g} ({n} times)" for value, n in counts.most_common(6)) or "not of that kind"


def told(metadata: Mapping[str, str]) -> list[str]:
    """Trigger words, and what else the file says of itself."""
    lines = [f"  trigger words: {words}" for words in [triggers(metadata)] if words]
    return lines + [f"  {key}: {metadata[key][:LONGEST]}" for key in TOLD if metadata.get(key)]


def triggers(metadata: Mapping[str, str]) -> str:
    """The words that call the LoRA up, as far as its file says: a phrase, or the commonest tags it was trained with."""
    for key in TRIGGERS:
        text = metadata.get(key, "")
        if key != "ss_tag_frequency":
            if text:
                return text[:LONGEST]
            continue
        try:
            counts = sum((Counter(tags) for tags in json.loads(text or "{}").values()), Counter())
        except (ValueError, AttributeError, TypeError):
            continue
        if counts:
            return ", ".join(f"{tag} ({n})" for tag, n in counts.most_common(5))
    return ""


def is_embedding(tensors: Mapping[str, LazyTensor]) -> bool:
    """Whether a file holds vectors of words, and nothing else."""
    marks = ("string_to_param.", "emb_params", "clip_l", "clip_g")
    named = any(name.removeprefix("0.").startswith((*marks, "<")) for name in tensors)
    return 0 < len(tensors) <= 4 and (
        named or (len(tensors) == 1 and next(iter(tensors.values())).shape[-1:] in ((768,), (1024,), (1280,)))
    )


def embedding_report(path: Path, checkpoint: Checkpoint) -> str:
    """Word, number of vectors and width of a textual inversion."""
    lines = [f"{path}: a textual inversion embedding"]
    for name, tensor in checkpoint.tensors.items():
        if len(tensor.shape) in (1, 2):
            count = tensor.shape[0] if len(tensor.shape) == 2 else 1
            lines.append(f"  {name}: {count} vector{'s' * (count > 1)} of {tensor.shape[-1]}, stored as {tensor.dtype}")
    name = checkpoint.extras.get("name")
    return "\n".join(
        [*lines, *[f"  trigger word: {name}"] * bool(name), *[f"  {note(checkpoint)}"] * bool(note(checkpoint))]
    )
