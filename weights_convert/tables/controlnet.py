"""ControlNet's public spellings: the original files (``control_model.``) and the folder layout.

Both are checked at full size against the name lists of the nets for Stable Diffusion 1.5 and 2.1.
"""

import re
from collections.abc import Mapping
from typing import Any

from ldm.adapters.controlnet import ControlNetConfig
from weights_convert.engine import Layout, Tensors
from weights_convert.tables import unet
from weights_convert.tables.fields import LEVELS, axis, fixed, flag, whole, wholes

FIXED = {  # what our ControlNet does; a configuration that asks for anything else is refused
    "addition_embed_type": None,
    "controlnet_conditioning_channel_order": "rgb",
}
NUMBER = r"(\d{1,4})"


def single_file(config: ControlNetConfig) -> Layout:
    """Names below ``control_model.``: the U-Net's own, and three of its own kind."""
    rules = (
        *unet.single_file(config.unet).rules,
        (r"^hint\.convs\.(\d+)\.", lambda m: f"input_hint_block.{2 * int(m[1])}."),
        (r"^zeros\.(\d+)\.", r"zero_convs.\1.0."),
        (r"^zero_middle\.", "middle_block_out.0."),
    )
    return Layout("single-file ControlNet", rules)


def folder(config: ControlNetConfig) -> Layout:
    """Names of ``diffusion_pytorch_model.*`` of a ControlNet folder."""
    last = 2 * len(config.widths) - 1
    rules = (
        *unet.folder(config.unet).rules,
        (r"^hint\.convs\.0\.", "controlnet_cond_embedding.conv_in."),
        (rf"^hint\.convs\.{last}\.", "controlnet_cond_embedding.conv_out."),
        (r"^hint\.convs\.(\d+)\.", lambda m: f"controlnet_cond_embedding.blocks.{int(m[1]) - 1}."),
        (r"^zeros\.", "controlnet_down_blocks."),
        (r"^zero_middle\.", "controlnet_mid_block."),
    )
    return Layout("folder ControlNet", rules)


def layouts(config: ControlNetConfig) -> list[Layout]:
    """Both spellings."""
    return [folder(config), single_file(config)]


def is_folder_names(tensors: Tensors) -> bool:
    """Whether the names are the folder layout's."""
    return any(name.startswith("controlnet_cond_embedding.") for name in tensors)


def with_original_names(tensors: Tensors) -> Tensors:
    """Tensors of the folder layout, those that tell the numbers under their names in the original files.

    Which block of all levels a block is, is told by how many the first level has: no configuration is needed.
    """
    blocks = [m[1] for name in tensors if (m := re.match(rf"down_blocks\.0\.resnets\.{NUMBER}\.", name))]
    n, level, hints = len(set(blocks)) + 1, rf"down_blocks\.{NUMBER}", "controlnet_cond_embedding"
    between = [m[1] for name in tensors if (m := re.match(rf"{hints}\.blocks\.{NUMBER}\.", name))]
    rules = (
        (r"^conv_in\.", "input_blocks.0.0."),
        (r"^mid_block\.attentions\.0\.", "middle_block.1."),
        (rf"^{level}\.attentions\.0\.", lambda m: f"input_blocks.{n * int(m[1]) + 1}.1."),
        (rf"^{level}\.resnets\.0\.conv2\.", lambda m: f"input_blocks.{n * int(m[1]) + 1}.0.out_layers.3."),
        (rf"^{level}\.downsamplers\.0\.conv\.", lambda m: f"input_blocks.{n * int(m[1]) + n}.0.op."),
        (rf"^{hints}\.conv_in\.", "input_hint_block.0."),
        (rf"^{hints}\.conv_out\.", f"input_hint_block.{2 * len(set(between)) + 2}."),
        (rf"^{hints}\.blocks\.{NUMBER}\.", lambda m: f"input_hint_block.{2 * int(m[1]) + 2}."),
    )

    def renamed(name: str) -> str:
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        return name

    return {renamed(name): tensor for name, tensor in tensors.items()}


def config_from_shapes(tensors: Tensors) -> ControlNetConfig:
    """The numbers of a ControlNet in either spelling, names without prefix, read off its shapes.

    Heads and groups are not in the shapes: see ``weights_convert.tables.unet``. Nor is whether it is pooled: here it is
    not. Raises ValueError where a tensor that tells a number is missing.
    """
    original = with_original_names(tensors) if is_folder_names(tensors) else tensors
    convs = {name for name in original if re.fullmatch(r"input_hint_block\.\d+\.weight", name)}
    if len(convs) % 2 or not 2 <= len(convs) <= 2 * LEVELS:
        raise ValueError(f"the hint's network has {len(convs)} convolutions, where an even number is expected")
    try:
        return ControlNetConfig(
            unet.config_from_shapes(original, encoder=True),
            axis(original, "input_hint_block.0.weight", 1, (4,)),
            tuple(axis(original, f"input_hint_block.{4 * i}.weight", 0, (4,)) for i in range(len(convs) // 2)),
        )
    except KeyError as error:
        raise ValueError(f"this is not a whole ControlNet: tensor {error} is missing") from None


def config_from_json(data: Mapping[str, Any], where: str) -> ControlNetConfig:
    """The numbers of a ControlNet folder's ``config.json``. Raises ValueError as ``unet.config_from_json`` does."""
    fixed(data, FIXED, where, "ControlNet")
    return ControlNetConfig(
        unet.check_heads(unet.config_from_json(data, where), where),
        whole(data, "conditioning_channels", 3, where),
        wholes(data, "conditioning_embedding_out_channels", (16, 32, 96, 256), where),
        flag(data, "global_pool_conditions", False, where),
    )
