"""What a checkpoint is, told from the names and shapes of its tensors."""

import re
from dataclasses import dataclass

from weights_convert.engine import Tensors, below
from weights_convert.tables.text import VISION
from weights_convert.tables.unet import SD1_CONTEXT, SD2_CONTEXT, XL_CONTEXT

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT_FOLDER, TEXT_OPENCLIP = "cond_stage_model.transformer.", "cond_stage_model.model."

# Tensors of single files that carry nothing for us: buffers of the noise schedule, and marks that other tools read.
BUFFERS = (
    r"(betas|alphas_cumprod(_prev)?|sqrt_.*|log_one_minus_alphas_cumprod|posterior_.*|logvar|lvlb_weights|scale_factor|"
    r"model_ema\..*|v_pred|ztsnr|denoiser\..*|cond_stage_model\.logit_scale|.*embeddings\.position_ids)"
)

# Checkpoints of other kinds, by a name that only they have: told apart so that the refusal says what the file is.
OTHERS = (
    (r"conditioner\.embedders\..*", "an SDXL checkpoint"),
    (r"(control_model|input_hint_block|controlnet_cond_embedding)\..*|lora_controlnet", "a ControlNet"),
    (r"(image_proj|ip_adapter)\..*", "an IP-Adapter"),  # before LoRAs: some have one in them
    (r".*(lora_(up|down|A|B|unet|te)|hada_w1|lokr_w1|_lora\.(up|down)).*", "a LoRA"),
    (r"(adapter\.)?body\.\d+\..*", "a T2I-Adapter"),
    (r"style_embedding", "a T2I style adapter"),
    (r"string_to_param\..*|emb_params|clip_[lg]|<.*>", "a textual inversion embedding"),
    (r".*(position_net|fuser)\..*", "a GLIGEN model"),
    (r"cc_projection\..*", "a Zero-1-to-3 model"),
    (r"(model\.diffusion_model\.)?(double_blocks|joint_blocks|transformer_blocks)\.\d+\..*", "a diffusion transformer"),
    (r"concept_embeds(_weights)?", "a safety checker"),
)

TOWERS = {
    ("text",): "CLIP text tower",
    ("image",): "CLIP image tower",
    ("text", "image"): "CLIP, its text tower and its image tower",
}


@dataclass(frozen=True)
class Family:
    """``name`` for people; ``kind``: "pipeline", "vae", "clip", "taesd", "unet" or "other"."""

    name: str
    kind: str


def unet_family(context: int, in_channels: int) -> str:
    """The family of a U-Net by the width of its context and its input channels."""
    base = {SD1_CONTEXT: "Stable Diffusion 1.x", SD2_CONTEXT: "Stable Diffusion 2.x", XL_CONTEXT: "SDXL"}
    kinds = {4: "", 8: " with an image beside the latent", 9: " inpainting"}
    name = base.get(context, f"Stable Diffusion-like, context {context}")
    return name + kinds.get(in_channels, f", {in_channels} channels")


def unet_numbers(tensors: Tensors) -> tuple[int, int] | None:
    """(context width, input channels) of a U-Net in either spelling, without prefix."""
    first = tensors.get("input_blocks.0.0.weight", tensors.get("conv_in.weight"))
    attends = [t for key, t in tensors.items() if key.endswith("attn2.to_k.weight")]
    if first is None or not attends or len(first.shape) != 4 or len(attends[0].shape) != 2:
        return None
    return attends[0].shape[1], first.shape[1]


def towers(tensors: Tensors) -> tuple[str, ...]:
    """Which of CLIP's towers, "text" and "image", these tensors are of, by the names of any spelling."""
    read = any(key.endswith(("embeddings.token_embedding.weight", "ln_final.weight")) for key in tensors)
    seen = any(key.endswith("class_embedding") or re.fullmatch(VISION, key) for key in tensors)
    return ("text",) * read + ("image",) * seen


def identify(tensors: Tensors) -> Family:
    """The family of a file's tensors."""
    other = next((name for pattern, name in OTHERS if any(re.fullmatch(pattern, key) for key in tensors)), None)
    inside = unet_numbers(below(tensors, UNET))
    if inside and inside[0] == XL_CONTEXT:
        return Family("an SDXL checkpoint", "other")
    if inside and other is None:
        return Family(unet_family(*inside), "pipeline")
    if inside:
        return Family(other, "other")
    if {"encoder.0.weight", "decoder.1.weight"} <= set(tensors) or {"1.conv.0.weight", "1.weight"} & set(tensors):
        return Family("TAESD", "taesd")
    prefixes = ("", VAE, "vae.")
    if any(f"{p}post_quant_conv.weight" in tensors for p in prefixes):
        return Family("KL autoencoder", "vae")
    if other is None and (found := towers(tensors)):
        return Family(TOWERS[found], "clip")
    alone = unet_numbers(tensors)
    if alone and other is None:
        return Family(f"U-Net of {unet_family(*alone)}", "unet")
    return Family(other or "nothing this program knows", "other")
