"""The layout of cloneofsimo's trainer: ``unet:12:down``, numbers in place of names.

A layer's number is its place in a walk over the PyTorch modules of that time: of some classes, which the metadata name,
every linear layer (and, where residual blocks are among them, every convolution) in the order of definition.

    U-Net         levels down, levels up, then the middle; in each the attentions, then the residual blocks;
                  in a transformer block attn1, the feed-forward layer and attn2, or attn1, attn2 and the feed-forward
                  layer in later versions: the shapes say which
    text tower    layer by layer k, v, q, out
"""

import json
import re
from collections.abc import Iterator
from itertools import product

from ldm.bundle import MODELS, Configs
from ldm.models.layers import shapes
from weights_convert.engine import Tensors
from weights_convert.reading import Checkpoint
from weights_convert.tables import text, unet

NUMBERED = r"(unet|text_encoder):(\d+):(up|down)"
ATTENTION, GATE, RESIDUAL = {"CrossAttention", "Attention"}, {"GEGLU"}, {"ResnetBlock2D"}
CLIP_ATTENTION = {"CLIPAttention"}
USUAL = {"unet": ATTENTION | GATE, "text_encoder": CLIP_ATTENTION}


def is_one(tensors: Tensors) -> bool:
    """Whether a file's names are numbers."""
    return any(re.fullmatch(NUMBERED, name) for name in tensors)


def named(checkpoint: Checkpoint, configs: Configs) -> Tensors:
    """The same tensors under dotted names: "unet.<layer>.lora.down.weight". Raises ValueError."""
    numbers = {name: m for name in checkpoint.tensors if (m := re.fullmatch(NUMBERED, name))}
    renamed = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in numbers}
    for part in {m[1] for m in numbers.values()}:
        own = {(int(m[2]), m[3]): checkpoint.tensors[name] for name, m in numbers.items() if m[1] == part}
        for (number, side), layer in places(part, own, classes(checkpoint, part), configs).items():
            renamed[f"{part}.{layer}.lora.{side}.weight"] = own[number, side]
    return renamed


def classes(checkpoint: Checkpoint, part: str) -> set[str]:
    """The classes whose layers were counted. Raises ValueError for one that is unknown."""
    try:
        said = set(json.loads(checkpoint.metadata.get(part, "null")) or USUAL[part])
    except (TypeError, ValueError) as error:
        raise ValueError(f"its metadata about {part} are no list of classes ({error})") from None
    known = CLIP_ATTENTION if part == "text_encoder" else ATTENTION | GATE | RESIDUAL
    if said - known:
        raise ValueError(f"its layers are counted over {', '.join(sorted(said - known))}, which is not known here")
    return said


def places(part: str, own: dict, counted: set[str], configs: Configs) -> dict[tuple[int, str], str]:
    """(number, side) -> the layer's public name, by the first order of definition that fits all shapes."""
    config = configs.unet if part == "unet" else configs.text
    if config is None:
        raise ValueError(f"it changes a {part}, which this model has not")
    layout = (unet if part == "unet" else text).folder(config)
    sizes = {layout.public(n).removesuffix(".weight"): s.shape for n, s in shapes(MODELS[type(config)], config).items()}
    walks = [text_layers(sizes)] if part == "text_encoder" else (unet_layers(sizes, counted, late) for late in (0, 1))
    orders = [list(walk) for walk in walks]
    for order in orders:
        fits = all(number < len(order) for number, _ in own)
        if fits and all(sized(own[key].shape, sizes[order[key[0]]], key[1]) for key in own):
            return {key: order[key[0]] for key in own}
    raise ValueError(
        f"its {len(own) // 2} layers of the {part} do not fit this model's {len(orders[0])} one after another: "
        "was it made for another family?"
    )


def sized(matrix: tuple[int, ...], kernel: tuple[int, ...], side: str) -> bool:
    """Whether a matrix [r, i, …] or [o, r, …] has the inputs or outputs of a kernel […, i, o]."""
    return len(matrix) > 1 and (matrix[1] == kernel[-2] if side == "down" else matrix[0] == kernel[-1])


def text_layers(sizes: dict) -> Iterator[str]:
    """The text tower's, in the order in which its attention defines them."""
    count = len({m[1] for name in sizes if (m := re.match(r"encoder\.layers\.(\d+)\.", name))})
    for i, letter in product(range(count), ("k", "v", "q", "out")):
        yield f"encoder.layers.{i}.self_attn.{letter}_proj"


def unet_layers(sizes: dict, counted: set[str], late: int) -> Iterator[str]:
    """The U-Net's. late: feed-forward layers were defined after both attentions."""
    numbered = lambda pattern: sorted({int(m[1]) for name in sizes if (m := re.match(pattern, name))})
    blocks = [f"{side}_blocks.{i}." for side in ("down", "up") for i in numbered(rf"{side}_blocks\.(\d+)\.")]
    for block in [*blocks, "mid_block."]:
        for i in numbered(rf"{re.escape(block)}attentions\.(\d+)\."):
            yield from transformer_layers(f"{block}attentions.{i}.", sizes, counted, late)
        if counted & RESIDUAL:
            for i in numbered(rf"{re.escape(block)}resnets\.(\d+)\."):
                every = (f"{block}resnets.{i}.{n}" for n in ("conv1", "time_emb_proj", "conv2", "conv_shortcut"))
                yield from (name for name in every if name in sizes)


def transformer_layers(at: str, sizes: dict, counted: set[str], late: int) -> Iterator[str]:
    """Those of one attention of the U-Net, with all its transformer blocks."""
    count = len({m[1] for n in sizes if (m := re.match(rf"{re.escape(at)}transformer_blocks\.(\d+)\.", n))})
    for i in range(count):
        block = f"{at}transformer_blocks.{i}."
        for layer in ("attn1", "attn2", "ff") if late else ("attn1", "ff", "attn2"):
            if layer == "ff" and counted & GATE:
                yield f"{block}ff.net.0.proj"
            elif layer != "ff" and counted & ATTENTION:
                yield from (f"{block}{layer}.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0"))
