"""The text tower's public spellings: the folder layout, and that of the original CLIP and OpenCLIP files."""

import re
from collections.abc import Mapping
from typing import Any

from ldm.models.layers import ACTIVATIONS
from ldm.models.text import TextConfig
from weights_convert.engine import Layout, Tensors
from weights_convert.tables.fields import DEEPEST, axis, choice, divides, fixed, index, whole

VISION = r"(visual|vision_model|visual_projection)\..*"  # the image tower of a whole CLIP
SCALARS = r"logit_scale|logit_bias|(.*\.)?attn_mask|input_resolution|context_length|vocab_size"

FOLDER_LAYERS = (  # the layers of both of CLIP's towers
    (r"^layers\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^layers\.(\d+)\.attn\.(q|k|v|out)\.", r"encoder.layers.\1.self_attn.\2_proj."),
    (r"^layers\.(\d+)\.fc", r"encoder.layers.\1.mlp.fc"),
)
OPENCLIP_LAYERS = (
    (r"\.norm([12])\.", r".ln_\1."),
    *[(rf"\.attn\.{x}\.(kernel|bias)$", rf".attn.in_proj_\1#{i}") for i, x in enumerate("qkv")],
    (r"in_proj_kernel", "in_proj_weight"),
    (r"\.attn\.out\.", ".attn.out_proj."),
    (r"\.fc1\.", ".mlp.c_fc."),
    (r"\.fc2\.", ".mlp.c_proj."),
    (r"^layers\.", "transformer.resblocks."),
)


def folder(config: TextConfig) -> Layout:
    """Names of ``text_encoder/model.*`` after :func:`without_wrapper`."""
    rules = (
        (r"^position_embedding$", "embeddings.position_embedding.weight"),
        (r"^token_embedding\.", "embeddings.token_embedding."),
        (r"^final_norm\.", "final_layer_norm."),
        (r"^projection\.", "text_projection."),
        *FOLDER_LAYERS,
    )
    unused_projection = "" if config.projection else r"|text_projection\.weight"
    return Layout("folder text tower", rules, rf"{VISION}|{SCALARS}|embeddings\.position_ids{unused_projection}")


def openclip(config: TextConfig) -> Layout:
    """Names of OpenAI's and OpenCLIP's files: queries, keys and values are fused, the projection is input-first.

    Layers beyond ``config.layers`` are ignored: Stable Diffusion 2.x carries ViT-H's 24th, and never runs it.
    """
    rules = (
        (r"^position_embedding$", "positional_embedding"),
        (r"^final_norm\.", "ln_final."),
        (r"^projection\.kernel$", "text_projection@"),
        *OPENCLIP_LAYERS,
    )
    beyond = rf"transformer\.resblocks\.{config.layers}\..*"
    unused_projection = "" if config.projection else "|text_projection"
    return Layout("CLIP text tower", rules, rf"{VISION}|{SCALARS}|{beyond}{unused_projection}")


def layouts(config: TextConfig) -> list[Layout]:
    """All spellings."""
    return [folder(config), openclip(config)]


def without_wrapper(tensors: Tensors) -> dict:
    """Drops the ``text_model.`` that most public folders put before every name, and new or merged ones do not."""
    return {key.removeprefix("text_model."): value for key, value in tensors.items()}


def config_from_shapes(tensors: Tensors, projected: bool, activation: str, drop_layers: int = 0) -> TextConfig:
    """The numbers of a text tower in either spelling (names without prefix). Heads are 64 wide in all public ones.

    Raises ValueError if it is not whole.
    """
    is_folder = "embeddings.token_embedding.weight" in tensors
    tokens = "embeddings.token_embedding.weight" if is_folder else "token_embedding.weight"
    positions = "embeddings.position_embedding.weight" if is_folder else "positional_embedding"
    mlp = "encoder.layers.0.mlp.fc1.weight" if is_folder else "transformer.resblocks.0.mlp.c_fc.weight"
    for key in (tokens, positions, mlp):
        if key not in tensors:
            raise ValueError(f"this is not a whole text tower: tensor '{key}' is missing")
    numbered = r"(?:encoder\.layers|transformer\.resblocks)\.(\d+)\..*"
    vocabulary, width = (axis(tensors, tokens, n, (2,)) for n in (0, 1))
    projection = [k for k in ("text_projection", "text_projection.weight") if k in tensors]
    output = 1 if projection == ["text_projection"] else 0
    layers = 1 + max(index(m[1], k, tensors) for k in tensors if (m := re.fullmatch(numbered, k))) - drop_layers
    heads = max(width // 64, 1)
    if layers < 1 or width % heads:
        raise ValueError(f"tensor '{tokens}' is {width} wide and {layers} layers are used: no public text tower is so")
    return TextConfig(
        vocabulary=vocabulary,
        length=axis(tensors, positions, 0, (2,)),
        width=width,
        mlp_width=axis(tensors, mlp, 0, (2,)),
        layers=layers,
        heads=heads,
        activation=activation,
        projection=axis(tensors, projection[0], output, (2,)) if projection and projected else 0,
        end_id=vocabulary - 1,
    )


def config_from_json(data: Mapping[str, Any], projected: bool, where: str) -> TextConfig:
    """The numbers of ``text_encoder/config.json``; ``projected`` says whether the file holds a ``text_projection``.

    An ``eos_token_id`` of 2 is a known slip of public files: it stands for the last token of the vocabulary.
    """
    fixed(data, {"layer_norm_eps": 1e-5}, where, "text tower")
    vocabulary, end = whole(data, "vocab_size", 49408, where), whole(data, "eos_token_id", 49407, where, low=0)
    config = TextConfig(
        vocabulary=vocabulary,
        length=whole(data, "max_position_embeddings", 77, where),
        width=whole(data, "hidden_size", 512, where),
        mlp_width=whole(data, "intermediate_size", 2048, where),
        layers=whole(data, "num_hidden_layers", 12, where, high=DEEPEST),
        heads=whole(data, "num_attention_heads", 8, where),
        activation=choice(data, "hidden_act", "quick_gelu", sorted(ACTIVATIONS), where),
        projection=whole(data, "projection_dim", 512, where) if projected else 0,
        end_id=vocabulary - 1 if end == 2 else end,
    )
    divides(where, "num_attention_heads", config.heads, [config.width])
    return config
