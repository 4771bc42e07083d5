"""What is trained here, in the layouts that the PyTorch tools load.

LoRA        kohya      one .safetensors, underscored names, alpha in the file; read by most tools
            peft       a folder: adapter_model.safetensors and adapter_config.json, one part of the model
            diffusers  one pytorch_lora_weights.safetensors with PEFT's names under unet. and text_encoder.
embedding   diffusers  one .safetensors, the tensor called by its word
            a1111      a .pt, as that program writes and reads it: ``string_to_param``
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save, save_file

from ldm.adapters.lora import ROLES, Change, Lora, matrices
from ldm.bundle import Configs
from ldm.files import into_place, write_whole
from weights_convert.adapters.lora import METADATA
from weights_convert.adapters.torch_writer import write_torch
from weights_convert.tables import text, unet

UNDERSCORED = {"unet": "lora_unet_", "text": "lora_te_text_model_"}
DOTTED = {"unet": "unet.", "text": "text_encoder.text_model."}
PEFT_ROLES = {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
Layers = Mapping[str, Mapping[str, dict[str, np.ndarray]]]  # part, layer, role
LORA_LAYOUTS, EMBEDDING_LAYOUTS = ("kohya", "peft", "diffusers"), ("diffusers", "a1111")


def theirs(layer: str, change: Change, configs: Configs) -> dict[str, np.ndarray]:
    """The matrices as the public model's layer has them: around its transformers, 1.x has 1x1 convolutions."""
    found = matrices(change)
    if configs.unet.context_dim == unet.SD1_CONTEXT and re.search(r"attentions\.\d+\.proj_(in|out)$", layer):
        found |= {role: found[role][:, :, None, None] for role in ("down", "up")}
    return found


def layers(lora: Lora, configs: Configs) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """{part: {the layer's name in the public folder layout: its matrices}}."""
    table = {"unet": lambda: unet.folder(configs.unet), "text": lambda: text.folder(configs.text)}
    public = lambda part, name: table[part]().public(name).removesuffix(".weight")
    named = {part: {public(part, name): change for name, change in own.items()} for part, own in lora.items()}
    return {part: {n: theirs(n, change, configs) for n, change in own.items()} for part, own in named.items()}


def export_lora(lora: Lora, configs: Configs, to: str | Path, layout: str) -> None:
    """Writes a LoRA for a model of ``configs`` in a layout of ``LORA_LAYOUTS``.

    Raises ValueError for another layout, for changes that are not of low rank, and where a layout cannot hold them.
    """
    writers = {"kohya": kohya, "peft": peft, "diffusers": diffusers}
    if layout not in writers:
        raise ValueError(f"layout {layout!r} is none of {', '.join(writers)}")
    writers[layout](layers(lora, configs), Path(to))


def kohya(named: Layers, to: Path) -> None:
    """One file of underscored names."""
    tensors = {
        f"{UNDERSCORED[part]}{layer.replace('.', '_')}.{ROLES[role]}": array
        for part, own in named.items()
        for layer, found in own.items()
        for role, array in found.items()
    }
    write_whole(to, lambda file: file.write(save(tensors, {"ss_network_module": "networks.lora"})))


def peft_parts(own: Mapping[str, dict[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(tensors by name, settings) of one part: alpha and rank are settings there. Raises ValueError for LoCon."""
    tensors, ranks, alphas = {}, {}, {}
    for layer, found in own.items():
        if "mid" in found or found.get("magnitude", np.zeros(1)).ndim > 1:
            raise ValueError(f"{layer}: PEFT has no form for it (LoCon, or a magnitude of inputs); kohya's layout has")
        ranks[layer], alphas[layer] = int(found["down"].shape[0]), float(found["alpha"])
        tensors |= {f"{layer}.{PEFT_ROLES[role]}": array for role, array in found.items() if role != "alpha"}
    usual_rank, usual_alpha = max(set(ranks.values()), key=list(ranks.values()).count), next(iter(alphas.values()))
    settings = {
        "r": usual_rank,
        "lora_alpha": usual_alpha,
        "rank_pattern": {layer: rank for layer, rank in ranks.items() if rank != usual_rank},
        "alpha_pattern": {layer: alpha for layer, alpha in alphas.items() if alpha != usual_alpha},
        "target_modules": sorted(ranks),
        "use_dora": any("magnitude" in found for found in own.values()),
    }
    return tensors, settings


def peft(named: Layers, to: Path) -> None:
    """A folder for one part; ``get_peft_model`` of the other library wraps one model."""
    if len(named) != 1:
        raise ValueError(f"PEFT's folder holds one model's LoRA, and this changes {' and '.join(named)}; use diffusers")
    ((part, own),) = named.items()
    tensors, settings = peft_parts(own)
    prefix = "base_model.model." + ("text_model." if part == "text" else "")
    settings["target_modules"] = sorted(prefix.removeprefix("base_model.model.") + name for name in own)
    for table in ("rank_pattern", "alpha_pattern"):
        settings[table] = {prefix.removeprefix("base_model.model.") + n: v for n, v in settings[table].items()}

    def write(folder: Path) -> None:
        save_file({prefix + name: array for name, array in tensors.items()}, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "task_type": None, "bias": "none", "inference_mode": True, **settings}
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    into_place(to, write)


def diffusers(named: Layers, to: Path) -> None:
    """One file with PEFT's names of all parts, and their settings in its metadata."""
    tensors, metadata = {}, {}
    for part, own in named.items():
        found, settings = peft_parts(own)
        tensors |= {DOTTED[part] + name: array for name, array in found.items()}
        place, inner = DOTTED[part].split(".", 1)
        for key, value in settings.items():
            whole = value
            if key.endswith("_pattern"):
                whole = {inner + name: v for name, v in value.items()}
            if key == "target_modules":
                whole = [inner + name for name in value]
            metadata[f"{place}.{key}"] = whole
    told = {"format": "pt", METADATA: json.dumps(metadata, sort_keys=True)}
    write_whole(to, lambda file: file.write(save(tensors, told)))


def export_embedding(word: str, vectors: np.ndarray, to: str | Path, layout: str) -> None:
    """Writes a word's vectors [n, E] in a layout of ``EMBEDDING_LAYOUTS``. Raises ValueError for another layout."""
    vectors = np.ascontiguousarray(np.atleast_2d(vectors), np.float32)
    if layout == "diffusers":
        write_whole(Path(to), lambda file: file.write(save({word: vectors}, {"format": "pt"})))
    elif layout == "a1111":
        told = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": word, "step": 0}
        told |= {"sd_checkpoint": None, "sd_checkpoint_name": None}
        write_whole(Path(to), lambda file: write_torch(told, file))
    else:
        raise ValueError(f"layout {layout!r} is none of {', '.join(EMBEDDING_LAYOUTS)}")
