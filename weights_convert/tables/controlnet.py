"""ControlNet's public spellings: the original files (``control_model.``) and the folder layout."""

from ldm.adapters.controlnet import ControlNetConfig
from weights_convert.engine import Layout
from weights_convert.tables import unet


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
