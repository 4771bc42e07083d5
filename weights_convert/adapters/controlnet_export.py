"""ControlNets in the layouts that the PyTorch tools load.

original    one .safetensors, the original code's names below ``control_model.``
diffusers   a folder: config.json and diffusion_pytorch_model.safetensors
"""

from pathlib import Path

from safetensors.numpy import save, save_file

from ldm.adapters.controlnet import ControlNet, ControlNetConfig, Net
from ldm.files import into_place, write_whole
from ldm.models.layers import shapes
from ldm.models.unet import UNetConfig
from weights_convert.adapters.controlnet import CLASS, CONFIG, PREFIX
from weights_convert.export import public_tensors, unet_json, write_json
from weights_convert.folder import DIFFUSION
from weights_convert.tables import controlnet as table
from weights_convert.tables.unet import SD1_CONTEXT, SD2_CONTEXT

LAYOUTS = ("original", "diffusers")
CONV_1X1 = (
    r"(skip_connection|conv_shortcut|zero_convs\.\d+\.0|middle_block_out\.0|controlnet_(down|mid)_block.*)\.weight$"
)
PROJECTIONS = r"\.proj_(in|out)\.weight$"  # around transformers: 1x1 convolutions in Stable Diffusion 1.x alone
NOT_OF_ENCODERS = ("out_channels", "sample_size", "time_cond_proj_dim", "up_block_types")


def export_control(net: Net, path: str | Path, layout: str) -> None:
    """Writes a ControlNet in a layout of ``LAYOUTS``, in the dtype of its parameters.

    The original layout does not say whether it is pooled.

    Raises ValueError for another layout, and for a folder that is not empty.
    """
    writers = {"original": original, "diffusers": diffusers}
    if layout not in writers:
        raise ValueError(f"layout {layout!r} is none of {', '.join(writers)}")
    writers[layout](net, Path(path))


def original(net: Net, path: Path) -> None:
    """One file."""
    tensors = public(net, table.single_file(net.config))
    named = {PREFIX + name: array for name, array in tensors.items()}
    write_whole(path, lambda file: file.write(save(named, {"format": "pt"})))


def diffusers(net: Net, path: Path) -> None:
    """A folder."""
    tensors = public(net, table.folder(net.config))

    def write(folder: Path) -> None:
        save_file(tensors, folder / f"{DIFFUSION}.safetensors", metadata={"format": "pt"})
        write_json(folder / CONFIG, control_json(net.config))

    into_place(path, write)


def public(net: Net, layout: table.Layout) -> dict:
    """The parameters under their public names, in the shapes that the family's files have."""
    convolutions = f"{CONV_1X1}|{PROJECTIONS}" if is_first_generation(net.config.unet) else CONV_1X1
    return public_tensors(layout, shapes(ControlNet, net.config), net.params, convolutions)


def is_first_generation(c: UNetConfig) -> bool:
    """Whether a U-Net is of Stable Diffusion 1.x's kind; of widths that are not published: as many heads everywhere.

    So that readers who know no heads guess the right ones: see ``weights_convert.tables.unet.is_first_generation``.
    """
    return {SD1_CONTEXT: True, SD2_CONTEXT: False}.get(c.context_dim, len(set(c.heads)) == 1)


def control_json(c: ControlNetConfig) -> dict:
    """``config.json``."""
    numbers = {k: v for k, v in unet_json(c.unet, (64, 64), 8).items() if k not in NOT_OF_ENCODERS}
    return numbers | {
        "_class_name": CLASS,
        "_diffusers_version": "0.30.0",
        "conditioning_channels": c.hint_channels,
        "conditioning_embedding_out_channels": list(c.widths),
        "controlnet_conditioning_channel_order": "rgb",
        "global_pool_conditions": c.pooled,
        "use_linear_projection": not is_first_generation(c.unet),
    }
