"""From our modules to the public folder layout, which the PyTorch tools load."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ldm.bundle import MODELS, Bundle
from ldm.files import into_place
from ldm.models.autoencoder import VAEConfig
from ldm.models.layers import Params, shapes
from ldm.models.text import TextConfig
from ldm.models.unet import UNetConfig
from ldm.schedule import NoiseSchedule
from weights_convert.engine import Layout, to_public
from weights_convert.tables import autoencoder, text, unet

CONV_1X1 = r"(conv_shortcut|quant_conv)\.weight$"  # linear layers of ours that public files keep as 1x1 convolutions


def export_folder(bundle: Bundle, folder: str | Path) -> None:
    """Writes a whole model in the public folder layout. Raises ValueError if a part is missing or ``folder`` not empty.

    The U-Net's 1x1 convolutions are written as the linear layers that they are (``use_linear_projection``).
    """
    bundle.require("unet", "vae", "text")
    c = bundle.configs
    if not isinstance(c.vae, VAEConfig):
        raise ValueError("a bundle whose autoencoder is TAESD cannot be exported as a whole model")
    parts = [
        ("unet", "unet", "diffusion_pytorch_model", unet.folder(c.unet), unet_json(c.unet, bundle.size, c.vae.factor)),
        ("vae", "vae", "diffusion_pytorch_model", autoencoder.folder(c.vae), vae_json(c.vae, bundle.size)),
        ("text", "text_encoder", "model", text.folder(c.text), text_json(c.text)),
    ]

    def write(to: Path) -> None:
        for part, place, stem, layout, data in parts:
            config = getattr(c, part)
            tensors = public_tensors(layout, shapes(MODELS[type(config)], config), bundle.params[part])
            prefix = "text_model." if part == "text" else ""
            tensors = {k if k.startswith("text_projection") else prefix + k: a for k, a in tensors.items()}
            (to / place).mkdir()
            save_file(tensors, to / place / f"{stem}.safetensors", metadata={"format": "pt"})
            write_json(to / place / "config.json", data)
        (to / "scheduler").mkdir()
        write_json(to / "scheduler/scheduler_config.json", schedule_json(c.schedule))
        bundle.tokenizer.save(to / "tokenizer")
        write_json(to / "model_index.json", INDEX | ({"text_encoder": PROJECTED} if c.text.projection else {}))

    into_place(Path(folder), write)


PROJECTED = ["transformers", "CLIPTextModelWithProjection"]
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.30.0",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def public_tensors(
    layout: Layout, names: Iterable[str], params: Params, convolutions: str = CONV_1X1
) -> dict[str, np.ndarray]:
    """Our parameters ``names`` under their public names and in their public shapes (layouts without fused tensors).

    convolutions: matches the public names of linear layers of ours that are 1x1 convolutions there.
    """
    named = {layout.public(name): np.asarray(params[name]) for name in names}
    named = {name: np.ascontiguousarray(to_public(name, array)) for name, array in named.items()}
    return {name: a[:, :, None, None] if re.search(convolutions, name) else a for name, a in named.items()}


def write_json(path: Path, data: dict) -> None:
    """Writes ``data`` as indented JSON."""
    path.write_text(json.dumps(data, indent=2) + "\n")


def unet_json(c: UNetConfig, size: tuple[int, int], factor: int) -> dict:
    """``unet/config.json``."""
    kinds = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in c.depth]
    return {
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": list(c.heads),  # the number of heads: see weights_convert.tables.unet
        "addition_embed_type": "text_time" if c.pooled_dim else None,
        "addition_time_embed_dim": 256 if c.pooled_dim else None,
        "block_out_channels": list(c.channels),
        "cross_attention_dim": c.context_dim,
        "down_block_types": kinds,
        "in_channels": c.in_channels,
        "layers_per_block": c.blocks,
        "norm_num_groups": c.groups,
        "out_channels": c.out_channels,
        "projection_class_embeddings_input_dim": c.pooled_dim or None,
        "sample_size": [size[1] // factor, size[0] // factor] if size[0] != size[1] else size[0] // factor,
        "time_cond_proj_dim": c.guidance_dim or None,
        "transformer_layers_per_block": [*(d or 1 for d in c.depth[:-1]), c.middle_depth],
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(kinds)],
        "use_linear_projection": True,
    }


def vae_json(c: VAEConfig, size: tuple[int, int]) -> dict:
    """``vae/config.json``."""
    levels = len(c.channels)
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": list(c.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": c.in_channels,
        "latent_channels": c.latent_channels,
        "layers_per_block": c.blocks,
        "norm_num_groups": c.groups,
        "out_channels": c.in_channels,
        "sample_size": max(size),
        "scaling_factor": c.scale,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def text_json(c: TextConfig) -> dict:
    """``text_encoder/config.json``."""
    return {
        "architectures": ["CLIPTextModelWithProjection" if c.projection else "CLIPTextModel"],
        "bos_token_id": c.end_id - 1,
        "eos_token_id": c.end_id,
        "hidden_act": c.activation,
        "hidden_size": c.width,
        "intermediate_size": c.mlp_width,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": c.length,
        "model_type": "clip_text_model",
        "num_attention_heads": c.heads,
        "num_hidden_layers": c.layers,
        "projection_dim": c.projection or c.width,
        "vocab_size": c.vocabulary,
    }


def schedule_json(s: NoiseSchedule) -> dict:
    """``scheduler/scheduler_config.json``."""
    return {
        "_class_name": "DDIMScheduler",
        "beta_end": s.beta_end,
        "beta_schedule": s.betas,
        "beta_start": s.beta_start,
        "clip_sample": False,
        "num_train_timesteps": s.train_steps,
        "prediction_type": s.prediction,
        "rescale_betas_zero_snr": s.zero_terminal_snr,
        "set_alpha_to_one": s.final_alpha_one,
        "steps_offset": s.steps_offset,
        "timestep_spacing": "leading",
    }
