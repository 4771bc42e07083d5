"""Checkpoints that are one file: whole Stable Diffusion 1.x and 2.x models, or one part of them.

A whole model keeps its parts under ``model.diffusion_model.``, ``first_stage_model.`` and ``cond_stage_model.``. It
says neither its prediction type nor its size; see :func:`prediction_of`.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ldm.bundle import Bundle, Configs
from ldm.schedule import NoiseSchedule
from ldm.tokenizer import Tokenizer
from weights_convert import clip, families
from weights_convert.engine import Tensors, below
from weights_convert.parts import Found, alone, taesd_part, text_part, unet_part, vae_part
from weights_convert.reading import Checkpoint, read_file
from weights_convert.tables.unet import is_first_generation

EPSILON_STEP = 875_000  # global_step of the Stable Diffusion 2.x files that predict eps
LAST_LAYER_MARKS = ("text_projection", "logit_scale", "transformer.resblocks.23.ln_1.weight")  # any: 24 layers, not 23
V_SPREAD = 0.09  # see prediction_of
V_PROBE = "output_blocks.11.1.transformer_blocks.0.norm1.bias"


def find_in_file(path: Path, like: Bundle | None = None, prediction: str | None = None, ema: bool = False) -> Found:
    """What one file holds.

    ``like`` gives the configurations, tokenizer and size in place of guesses from the shapes; ``prediction`` overrides
    both; ``ema`` takes the averaged U-Net. Raises ValueError for files of another family, saying which.
    """
    checkpoint = read_file(path)
    tensors = unwrapped(checkpoint.tensors)
    family = families.identify(tensors)
    if family.kind == "pipeline":
        return _pipeline(path, checkpoint, tensors, family.name, like, prediction, ema)
    if family.kind == "other":
        raise ValueError(
            f"{path}: this is {family.name}, where a Stable Diffusion 1.x or 2.x model, or a part of one, is expected"
        )
    known, what = like.configs if like else Configs(), f"{path}: the {family.name}"
    if family.kind == "vae":
        return alone(family.name, "vae", vae_part(what, without_prefix(tensors, families.VAE, "vae."), known.vae))
    if family.kind == "clip":
        return clip.find_in_tensors(str(path), checkpoint, tensors, known.text)
    if family.kind == "taesd":
        return alone(family.name, "vae", taesd_part(what, tensors))
    return alone(family.name, "unet", unet_part(what, tensors, known.unet))


def unwrapped(tensors: Tensors) -> Tensors:
    """Drops the prefixes that training wrappers put before EVERY name."""
    wrappers = ("module.", "_orig_mod.", "state_dict.")
    while tensors and (found := [w for w in wrappers if all(key.startswith(w) for key in tensors)]):
        tensors = below(tensors, found[0])
    return tensors


def without_prefix(tensors: Tensors, *prefixes: str) -> Tensors:
    """The tensors below the first of ``prefixes`` that occurs, or all of them."""
    return next((found for p in prefixes if (found := below(tensors, p))), tensors)


def _pipeline(
    path: Path,
    checkpoint: Checkpoint,
    tensors: Tensors,
    family: str,
    like: Bundle | None,
    prediction: str | None,
    ema: bool,
) -> Found:
    check_leftovers(path, tensors)
    tensors = {key: t for key, t in tensors.items() if not key.endswith("embeddings.position_ids")}
    known = like.configs if like else Configs()
    inner, openclip = below(tensors, families.UNET), below(tensors, families.TEXT_OPENCLIP)
    encoder, activation = (openclip, "gelu") if openclip else (below(tensors, families.TEXT_FOLDER), "quick_gelu")
    parts = {"unet": unet_part(f"{path}: the U-Net", ema_weights(path, tensors) if ema else inner, known.unet)}
    if autoencoder := below(tensors, families.VAE):
        parts["vae"] = vae_part(f"{path}: the autoencoder", autoencoder, known.vae)
    if encoder:
        penultimate = any(mark in openclip for mark in LAST_LAYER_MARKS)
        parts["text"] = text_part(f"{path}: the text tower", encoder, known.text, activation, penultimate)
    if prediction is None and like is None:
        prediction, why = prediction_of(checkpoint, inner, parts["unet"].config)
    else:
        prediction, why = prediction or known.schedule.prediction, "as given"
    configs = {name: part.config for name, part in parts.items()}
    schedule = replace(known.schedule if like else NoiseSchedule(), prediction=prediction)
    if "ztsnr" in tensors:
        schedule = replace(schedule, zero_terminal_snr=True)
    side = 768 if prediction == "v_prediction" else 512
    tokenizer = like.tokenizer if like else Tokenizer.clip(pad="!" if openclip else "<|endoftext|>")
    bundle = Bundle(Configs(**configs, schedule=schedule), {}, tokenizer, like.size if like else (side, side))
    return Found(family, bundle, parts, why)


def check_leftovers(path: Path, tensors: Tensors) -> None:
    """Raises ValueError naming the tensors that belong to no part and are not known to be empty of meaning."""
    parts = (families.UNET, families.VAE, families.TEXT_FOLDER, families.TEXT_OPENCLIP)
    odd = [k for k in tensors if not k.startswith(parts) and not re.fullmatch(families.BUFFERS, k)]
    if odd:
        raise ValueError(
            f"{path}: {len(odd)} tensors belong to no part of Stable Diffusion, such as {', '.join(odd[:6])}"
        )


def ema_weights(path: Path, tensors: Tensors) -> dict:
    """The U-Net's moving average, under the U-Net's own names.

    Its names have lost their dots, which nothing can undo: so each is looked up from the plain name. Raises ValueError
    if it is absent or partly so.
    """
    plain = below(tensors, families.UNET)
    flat = {key: "model_ema." + ("diffusion_model." + key).replace(".", "") for key in plain}
    missing = [name for name in flat.values() if name not in tensors]
    if missing:
        has = "no" if len(missing) == len(flat) else "only a part of the"
        raise ValueError(
            f"{path}: has {has} averaged (EMA) weights: {len(missing)} of {len(flat)} are missing, such as {missing[0]}"
        )
    return {key: tensors[name] for key, name in flat.items()}


def prediction_of(checkpoint: Checkpoint, unet_tensors: Tensors, config: Any) -> tuple[str, str]:
    """(prediction type, how it was found). It is not in the weights; these signs are what public tools go by, in turn:

    the file's own metadata; an empty tensor named ``v_pred``; Stable Diffusion 1.x's kind (they all predict eps); extra
    input channels (eps); the training step of the eps files; the spread of one bias, which is 0.1 and more in the
    published v-models and half of that in the others. Where nothing is learned (the bias is 0), 2.x means v.
    """
    stated = checkpoint.metadata.get("modelspec.prediction_type", "")
    if stated in ("epsilon", "eps", "v", "v_prediction"):
        return ("v_prediction" if stated.startswith("v") else "epsilon"), "its metadata"
    if "v_pred" in checkpoint.tensors:
        return "v_prediction", "the tensor v_pred"
    if is_first_generation(unet_tensors):
        return "epsilon", "as all of Stable Diffusion 1.x"
    if config.in_channels != 4:
        return "epsilon", "as all 2.x models with extra channels"
    if checkpoint.extras.get("global_step") == EPSILON_STEP:
        return "epsilon", f"global_step {EPSILON_STEP}"
    spread = float(np.std(unet_tensors[V_PROBE].read().astype(np.float32))) if V_PROBE in unet_tensors else 0.0
    return ("epsilon" if 0 < spread <= V_SPREAD else "v_prediction"), f"a guess: the spread of one bias is {spread:.3f}"
