"""The KL autoencoder's public spellings: single file, folder, and the folder's older names for the attention."""

import re
from collections.abc import Mapping
from math import gcd
from typing import Any

from ldm.models.autoencoder import VAEConfig
from weights_convert.engine import Layout, Tensors
from weights_convert.tables.fields import DEEPEST, LEVELS, axis, divides, fixed, index, number, whole, wholes

IGNORE = r"(loss|model_ema)\..*"  # the discriminator and the moving average of the autoencoder's own training


def single_file(config: VAEConfig) -> Layout:
    """Names below ``first_stage_model.``; the decoder counts its levels from the finest, we from the coarsest."""
    coarsest = len(config.channels) - 1
    rules = (
        (r"^(quant|post_quant)\.", r"\1_conv."),
        (r"\.middle\.res([12])\.", r".mid.block_\1."),
        (r"\.middle\.attn\.attn\.([qkv])\.", r".mid.attn_1.\1."),
        (r"\.middle\.attn\.attn\.out\.", ".mid.attn_1.proj_out."),
        (r"\.middle\.attn\.norm\.", ".mid.attn_1.norm."),
        (r"\.up\.(\d+)\.", lambda m: f".up.{coarsest - int(m[1])}."),
        (r"\.res\.(\d+)\.", r".block.\1."),
        (r"\.(down|up)sample\.", r".\1sample.conv."),
        (r"\.skip\.", ".nin_shortcut."),
    )
    return Layout("single-file autoencoder", rules, IGNORE)


def _folder(title: str, attention: tuple[str, str, str, str]) -> Layout:
    rules = (
        (r"^(quant|post_quant)\.", r"\1_conv."),
        (r"\.middle\.res1\.", ".mid_block.resnets.0."),
        (r"\.middle\.res2\.", ".mid_block.resnets.1."),
        *[(rf"\.attn\.attn\.{ours}\.", f".attn.{theirs}.") for ours, theirs in zip("qkv", attention, strict=False)],
        (r"\.attn\.attn\.out\.", f".attn.{attention[3]}."),
        (r"\.middle\.attn\.norm\.", ".middle.attn.group_norm."),
        (r"\.middle\.attn\.", ".mid_block.attentions.0."),
        (r"\.(down|up)\.(\d+)\.res\.", r".\1_blocks.\2.resnets."),
        (r"\.(down|up)\.(\d+)\.(down|up)sample\.", r".\1_blocks.\2.\3samplers.0.conv."),
        (r"\.norm_out\.", ".conv_norm_out."),
        (r"\.skip\.", ".conv_shortcut."),
    )
    return Layout(title, rules, IGNORE)


def folder(config: VAEConfig) -> Layout:
    """Names of ``vae/diffusion_pytorch_model.*`` today."""
    return _folder("folder autoencoder", ("to_q", "to_k", "to_v", "to_out.0"))


def old_folder(config: VAEConfig) -> Layout:
    """The same with the attention names of 2022, which most published files still have."""
    return _folder("old folder autoencoder", ("query", "key", "value", "proj_attn"))


def layouts(config: VAEConfig) -> list[Layout]:
    """All spellings."""
    return [single_file(config), folder(config), old_folder(config)]


def config_from_shapes(tensors: Tensors) -> VAEConfig:
    """The numbers of an autoencoder in any spelling (names without prefix). Raises ValueError if it is not whole."""
    pattern = r"encoder\.down(?:_blocks)?\.(\d+)\.(?:block|resnets)\.(\d+)\.conv2\.weight"
    matches = [m for key in tensors if (m := re.fullmatch(pattern, key))]
    found = {tuple(index(m[i], m[0], tensors) for i in (1, 2)): axis(tensors, m[0], 0, (4,)) for m in matches}
    ends = ("encoder.conv_in.weight", "post_quant_conv.weight")
    levels = range(1 + max((level for level, _ in found), default=-1))
    if not found or any(end not in tensors for end in ends) or any((level, 0) not in found for level in levels):
        raise ValueError(
            f"this is not a whole autoencoder: its encoder's blocks or one of {', '.join(ends)} is missing"
        )
    blocks = 1 + max(block for _, block in found)
    if len(levels) > LEVELS or len(levels) * blocks > len(tensors):
        raise ValueError(f"{len(tensors)} tensors are not {len(levels)} levels of {blocks} blocks (encoder.down)")
    channels = tuple(found[level, 0] for level in levels)
    return VAEConfig(
        in_channels=axis(tensors, ends[0], 1, (4,)),
        latent_channels=axis(tensors, ends[1], 0, (2, 4)),
        channels=channels,
        blocks=blocks,
        groups=gcd(32, *channels),  # 32 in all published ones
    )


FIXED = {  # what our autoencoder does; a configuration that asks for anything else is refused
    "act_fn": "silu",
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    "shift_factor": None,
    "latents_mean": None,
}


def config_from_json(data: Mapping[str, Any], where: str) -> VAEConfig:
    """The numbers of ``vae/config.json``; files from 2022 leave out the scale and the groups.

    Raises ValueError where the file asks for what this autoencoder does not do, or for what cannot be.
    """
    fixed(data, FIXED, where, "autoencoder")
    config = VAEConfig(
        in_channels=whole(data, "in_channels", 3, where),
        latent_channels=whole(data, "latent_channels", 4, where),
        channels=wholes(data, "block_out_channels", (64,), where),
        blocks=whole(data, "layers_per_block", 1, where, high=DEEPEST),
        groups=whole(data, "norm_num_groups", 32, where),
        scale=number(data, "scaling_factor", 0.18215, where, 1e-6, 1e6),
    )
    divides(where, "norm_num_groups", config.groups, config.channels)
    return config
