"""The U-Net's public spellings: the folder layout (model hub) and the single-file layout (the original code's names).

Both are checked at full size against the name lists of Stable Diffusion 1.x, 2.x, inpainting, SDXL and its refiner.
"""

import re
from collections.abc import Mapping
from math import gcd
from typing import Any

from ldm.models.unet import UNetConfig
from weights_convert.engine import Layout, Tensors
from weights_convert.tables.fields import DEEPEST, LEVELS, axis, divides, fail, fixed, given, index, whole, wholes

SD1_CONTEXT, SD2_CONTEXT, XL_CONTEXT = 768, 1024, 2048
GUIDANCE = "time_embed.cond_proj.weight"
CONTEXT_PROBE = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"

TRANSFORMER = (
    (r"\.blocks\.(\d+)\.self_attn\.", r".transformer_blocks.\1.attn1."),
    (r"\.blocks\.(\d+)\.cross_attn\.", r".transformer_blocks.\1.attn2."),
    (r"\.blocks\.(\d+)\.", r".transformer_blocks.\1."),
    (r"(attn[12])\.([qkv])\.", r"\1.to_\2."),
    (r"(attn[12])\.out\.", r"\1.to_out.0."),
    (r"\.ff\.proj_in\.", ".ff.net.0.proj."),
    (r"\.ff\.proj_out\.", ".ff.net.2."),
)


def folder(config: UNetConfig) -> Layout:
    """Names of ``unet/diffusion_pytorch_model.*``."""
    rules = (
        *TRANSFORMER,
        (r"^time_mlp\.fc", "time_embedding.linear_"),
        (r"^guidance\.", "time_embedding.cond_proj."),
        (r"^pooled_mlp\.fc", "add_embedding.linear_"),
        (r"^encoder\.conv_in\.", "conv_in."),
        (r"^norm_out\.", "conv_norm_out."),
        (r"\.time\.", ".time_emb_proj."),
        (r"\.skip\.", ".conv_shortcut."),
        (r"^encoder\.middle\.res1\.", "mid_block.resnets.0."),
        (r"^encoder\.middle\.res2\.", "mid_block.resnets.1."),
        (r"^encoder\.middle\.attn\.", "mid_block.attentions.0."),
        (r"^(?:en|de)coder\.(down|up)\.(\d+)\.res\.", r"\1_blocks.\2.resnets."),
        (r"^(?:en|de)coder\.(down|up)\.(\d+)\.attn\.", r"\1_blocks.\2.attentions."),
        (r"^encoder\.down\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0.conv."),
        (r"^decoder\.up\.(\d+)\.upsample\.", r"up_blocks.\1.upsamplers.0.conv."),
    )
    return Layout("folder U-Net", rules)


def single_file(config: UNetConfig) -> Layout:
    """Names below ``model.diffusion_model.``: the blocks of all levels are numbered through."""
    n, coarsest = config.blocks + 1, len(config.channels) - 1
    inside_res = [("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time", "emb_layers.1")]
    inside_res += [("norm2", "out_layers.0"), ("conv2", "out_layers.3"), ("skip", "skip_connection")]
    middle = {"res1": 0, "attn": 1, "res2": 2}

    def up_sampler(m: re.Match) -> str:
        attends = config.depth[coarsest - int(m[1])] > 0
        return f"output_blocks.{n * int(m[1]) + n - 1}.{1 + attends}.conv."

    rules = (
        *[(rf"(\.res\.\d+|\.res[12])\.{ours}\.", rf"\1.{theirs}.") for ours, theirs in inside_res],
        *TRANSFORMER,
        (r"^time_mlp\.fc([12])\.", lambda m: f"time_embed.{2 * int(m[1]) - 2}."),
        (r"^guidance\.", "time_embed.cond_proj."),
        (r"^pooled_mlp\.fc([12])\.", lambda m: f"label_emb.0.{2 * int(m[1]) - 2}."),
        (r"^encoder\.conv_in\.", "input_blocks.0.0."),
        (r"^norm_out\.", "out.0."),
        (r"^conv_out\.", "out.2."),
        (r"^encoder\.middle\.(res1|attn|res2)\.", lambda m: f"middle_block.{middle[m[1]]}."),
        (r"^encoder\.down\.(\d+)\.res\.(\d+)\.", lambda m: f"input_blocks.{n * int(m[1]) + int(m[2]) + 1}.0."),
        (r"^encoder\.down\.(\d+)\.attn\.(\d+)\.", lambda m: f"input_blocks.{n * int(m[1]) + int(m[2]) + 1}.1."),
        (r"^encoder\.down\.(\d+)\.downsample\.", lambda m: f"input_blocks.{n * int(m[1]) + n}.0.op."),
        (r"^decoder\.up\.(\d+)\.res\.(\d+)\.", lambda m: f"output_blocks.{n * int(m[1]) + int(m[2])}.0."),
        (r"^decoder\.up\.(\d+)\.attn\.(\d+)\.", lambda m: f"output_blocks.{n * int(m[1]) + int(m[2])}.1."),
        (r"^decoder\.up\.(\d+)\.upsample\.", up_sampler),
    )
    return Layout("single-file U-Net", rules)


def is_first_generation(tensors: Tensors) -> bool:
    """Whether a single-file U-Net is of Stable Diffusion 1.x's kind: 8 heads everywhere, and eps predicted.

    Later kinds have heads 64 wide. The published widths of the context decide; for any other width, 1x1 convolutions
    around the transformers mean the first kind and linear layers a later one. (For the published widths they do not:
    some tools save one as the other.)
    """
    known = {SD1_CONTEXT: True, SD2_CONTEXT: False, XL_CONTEXT: False}
    convolutions = len(tensors["middle_block.1.proj_in.weight"].shape) == 4
    return known.get(axis(tensors, CONTEXT_PROBE, 1, (2,)), convolutions)


def _levels_from_names(tensors: Tensors) -> tuple[range, int]:
    """The levels, and how many input blocks each has: the downsamplers end them."""
    pattern = r"input_blocks\.(\d+)\.0\.op\.weight"
    downs = sorted((index(m[1], k, tensors), k) for k in tensors if (m := re.fullmatch(pattern, k)))
    n, key = downs[0] if downs else (3, "")
    if n < 2 or len(downs) >= LEVELS or n * len(downs) > len(tensors):
        raise ValueError(f"tensor '{key}' is out of place: no U-Net of {len(tensors)} tensors halves the picture there")
    return range(len(downs) + 1), n


def _check_size(config: UNetConfig, most: int, where: str) -> UNetConfig:
    """Refuses more transformer blocks than ``most``: to build them would take for ever."""
    blocks = (2 * config.blocks + 1) * sum(config.depth) + config.middle_depth
    if blocks > most:
        raise ValueError(f"{where}: {blocks} transformer blocks, of which {most} at most are expected")
    return config


def check_heads(config: UNetConfig, where: str) -> UNetConfig:
    """The same configuration; ValueError unless heads divide the width wherever there is attention."""
    for width, heads, depth in zip(config.channels, config.heads, (*config.depth[:-1], 1), strict=True):
        if depth:
            divides(where, "attention_head_dim (the number of heads)", heads, [width])
    return config


def config_from_shapes(tensors: Tensors, encoder: bool = False) -> UNetConfig:
    """The numbers of a single-file U-Net (names without prefix), read off its shapes.

    Head counts are not in the shapes: see :func:`is_first_generation`. ``encoder``: there is no more than that, as in a
    ControlNet, and the number of output channels is the usual one. Raises ValueError where a tensor that every U-Net
    (or encoder) has is missing.
    """
    depth_at = lambda block: len(
        {m[1] for k in tensors if (m := re.match(rf"{block}\.transformer_blocks\.(\d+)\.", k))}
    )
    try:
        levels, n = _levels_from_names(tensors)
        channels = tuple(axis(tensors, f"input_blocks.{n * i + 1}.0.out_layers.3.weight", 0, (4,)) for i in levels)
        eight = is_first_generation(tensors)
        config = UNetConfig(
            in_channels=axis(tensors, "input_blocks.0.0.weight", 1, (4,)),
            out_channels=axis(tensors, "out.2.weight", 0, (4,)) if not encoder else UNetConfig.out_channels,
            channels=channels,
            blocks=n - 1,
            depth=tuple(depth_at(rf"input_blocks\.{n * i + 1}\.1") for i in levels),
            middle_depth=depth_at(r"middle_block\.1"),
            heads=(8,) * len(channels) if eight else tuple(max(c // 64, 1) for c in channels),
            context_dim=axis(tensors, CONTEXT_PROBE, 1, (2,)),
            pooled_dim=axis(tensors, "label_emb.0.0.weight", 1, (2,)) if "label_emb.0.0.weight" in tensors else 0,
            guidance_dim=axis(tensors, GUIDANCE, 1, (2,)) if GUIDANCE in tensors else 0,
            groups=gcd(32, *channels),  # 32 in all published ones
        )
    except KeyError as error:
        raise ValueError(
            f"this is not a whole {'encoder' if encoder else 'U-Net'}: tensor {error} is missing"
        ) from None
    return check_heads(_check_size(config, len(tensors), "its tensors' names"), "its tensors' shapes")


FIXED = {  # what our U-Net does; a configuration that asks for anything else is refused
    "act_fn": "silu",
    "center_input_sample": False,
    "class_embed_type": None,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "num_class_embeds": None,
    "encoder_hid_dim_type": None,
    "encoder_hid_dim": None,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "attention_type": "default",
    "cross_attention_norm": None,
    "reverse_transformer_layers_per_block": None,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
}


KINDS = ("CrossAttnDownBlock2D", "DownBlock2D")
MOST_BLOCKS = 1000  # transformer blocks; SDXL has 70


def config_from_json(data: Mapping[str, Any], where: str) -> UNetConfig:
    """The numbers of ``unet/config.json``.

    ``attention_head_dim`` there means the NUMBER of heads (unless ``num_attention_heads`` is given): a misnomer that
    public files have kept. Raises ValueError where the file asks for what this U-Net does not do, or for what cannot
    be; whether the heads divide the widths, :func:`check_heads` says.
    """
    fixed(data, FIXED, where, "U-Net")
    channels = wholes(data, "block_out_channels", (320, 640, 1280, 1280), where)
    kinds, levels = given(data, "down_block_types", [KINDS[0]] * 3 + [KINDS[1]]), len(channels)
    if not isinstance(kinds, list | tuple) or len(kinds) != levels or any(kind not in KINDS for kind in kinds):
        raise fail(where, "down_block_types", kinds, f"a list of {levels} of {', '.join(KINDS)} is expected")
    depth = wholes(data, "transformer_layers_per_block", 1, where, levels, high=DEEPEST)
    heads_key = "attention_head_dim" if data.get("num_attention_heads") is None else "num_attention_heads"
    groups = whole(data, "norm_num_groups", 32, where)
    divides(where, "norm_num_groups", groups, channels)
    config = UNetConfig(
        in_channels=whole(data, "in_channels", 4, where),
        out_channels=whole(data, "out_channels", 4, where),
        channels=channels,
        blocks=whole(data, "layers_per_block", 2, where, high=DEEPEST),
        depth=tuple(d * ("CrossAttn" in kind) for d, kind in zip(depth, kinds, strict=True)),
        middle_depth=depth[-1],
        heads=wholes(data, heads_key, 8, where, levels),
        context_dim=whole(data, "cross_attention_dim", 1280, where),
        pooled_dim=whole(data, "projection_class_embeddings_input_dim", 0, where, low=0),
        guidance_dim=whole(data, "time_cond_proj_dim", 0, where, low=0),
        groups=groups,
    )
    return _check_size(config, MOST_BLOCKS, f"{where}: layers_per_block and transformer_layers_per_block")
