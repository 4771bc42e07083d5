"""IP-Adapter's public spelling: ``image_proj.…`` makes the tokens, ``ip_adapter.N.…`` are the kernels of K' and V'.

N counts the U-Net's attentions, two in every transformer block, in the order encoder, decoder, middle: those with even
numbers are within the picture and have nothing here, those with odd ones are to the text: see :func:`attentions`. A
FaceID file has a LoRA as well, of all of them.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from ldm.adapters.ip_adapter import HEAD, IPAdapterConfig, sites
from ldm.models.unet import UNetConfig
from weights_convert.engine import Layout, Rule, Tensors
from weights_convert.tables.fields import DEEPEST, axis, index

PROJECTION, KERNELS = "image_proj.", "ip_adapter."
KEYS = r"ip_adapter\.(\d{1,4})\.to_k_ip\.weight"
LORA = r"ip_adapter\.(\d{1,4})\.to_(q|k|v|out)_lora\.(down|up)\.weight"
ROLES = ("q", "k", "v", "out")
LATENTS = f"{PROJECTION}latents"
FULL_TOKENS = 257  # that a tower of 224 pixels and patches of 14 makes: nothing in a file of this kind says how many
FACE_ID_PLUS, INSTANT_ID = "FaceID-plus", "InstantID"
FACE_VECTOR = 512  # numbers that a face recogniser says

LAYER = r"\.layers\.(\d+)\."
HIDDEN: tuple[Rule, ...] = ((r"\.fc1\.", ".proj.0."), (r"\.fc2\.", ".proj.2."))
RULES: Mapping[str, tuple[Rule, ...]] = {
    "base": (),
    "face": HIDDEN,
    "full": (*HIDDEN, (r"^image_proj\.norm\.", "image_proj.proj.3.")),
    "plus": (
        (r"\.latents$", ".latents@"),
        (LAYER + r"norm_states\.", r".layers.\1.0.norm1."),
        (LAYER + r"norm_latents\.", r".layers.\1.0.norm2."),
        (LAYER + r"(q|out)\.", r".layers.\1.0.to_\2."),
        (LAYER + r"k\.kernel$", r".layers.\1.0.to_kv.weight%0"),
        (LAYER + r"v\.kernel$", r".layers.\1.0.to_kv.weight%1"),
        (LAYER + r"norm\.", r".layers.\1.1.0."),
        (LAYER + r"fc1\.", r".layers.\1.1.1."),
        (LAYER + r"fc2\.", r".layers.\1.1.3."),
    ),
}


def public(config: IPAdapterConfig) -> Layout:
    """The names in .safetensors files, and in .bin files once nested ones are joined by dots."""
    rules = (
        (r"^([kv])\.(\d+)\.", lambda m: f"ip_adapter.{2 * int(m[2]) + 1}.to_{m[1]}_ip."),
        (r"^projection\.", PROJECTION),
        *RULES[config.kind],
    )
    return Layout("IP-Adapter", rules)


def attentions(unet: UNetConfig) -> list[str]:
    """The sites of all attentions of a U-Net, each at the place of its number."""
    blocks = [site.removesuffix("cross_attn") for site in sites(unet)]
    return [f"{block}{kind}" for block in blocks for kind in ("self_attn", "cross_attn")]


def without_batch(tensors: Tensors) -> Tensors:
    """The latents of a resampler, stored as [1, T, w], as [T, w]."""
    found = tensors.get(LATENTS)
    if found is None or len(found.shape) != 3 or found.shape[0] != 1:
        return tensors
    strides = None if found.strides is None else found.strides[1:]
    return {**tensors, LATENTS: replace(found, shape=found.shape[1:], strides=strides)}


def kind_of(tensors: Tensors) -> str:
    """Which form an adapter has: a kind of :class:`IPAdapterConfig`, ``FACE_ID_PLUS`` or ``INSTANT_ID``. ValueError.

    "plus" files trained on faces alone are "plus" too: only their name tells.
    """
    held = lambda name: PROJECTION + name in tensors
    if any(name.startswith(f"{PROJECTION}perceiver_resampler.") for name in tensors):
        return FACE_ID_PLUS
    if LATENTS in tensors:
        seen = tensors[f"{PROJECTION}proj_in.weight"].shape[-1:] if held("proj_in.weight") else ()
        return INSTANT_ID if seen == (FACE_VECTOR,) else "plus"
    for mark, kind in (("proj.3.weight", "full"), ("proj.weight", "base"), ("proj.0.weight", "face")):
        if held(mark):
            return kind
    raise ValueError("this is not a whole IP-Adapter: nothing in it says how tokens are made of a picture (image_proj)")


def context_of(tensors: Tensors) -> int:
    """How wide the tokens are: by that a family is told. Raises ValueError."""
    keys = sorted(name for name in tensors if re.fullmatch(KEYS, name))
    if not keys:
        raise ValueError("this is not a whole IP-Adapter: it has no ip_adapter.1.to_k_ip.weight and so on")
    return axis(tensors, keys[0], 1, (2,))


def config_from_shapes(tensors: Tensors, unet: UNetConfig) -> IPAdapterConfig:
    """The numbers of an adapter for ``unet``, of a kind that is read, off its shapes. Raises ValueError."""
    kind, E = kind_of(tensors), unet.context_dim
    size = lambda name, n: axis(tensors, PROJECTION + name, n, (2,))
    many = lambda rows: max(1, rows // E)
    try:
        if kind == "base":
            return IPAdapterConfig(unet, kind, many(size("proj.weight", 0)), size("proj.weight", 1))
        if kind == "full":
            return IPAdapterConfig(unet, kind, FULL_TOKENS, size("proj.0.weight", 1))
        if kind == "face":
            inside, seen = (size("proj.0.weight", n) for n in (0, 1))
            return IPAdapterConfig(unet, kind, many(size("proj.2.weight", 0)), seen, inside)
        width, seen = (size("proj_in.weight", n) for n in (0, 1))
        return IPAdapterConfig(unet, kind, axis(tensors, LATENTS, -2, (2, 3)), seen, checked(width), layers(tensors))
    except KeyError as error:
        raise ValueError(f"this is not a whole IP-Adapter: tensor {error} is missing") from None


def checked(width: int) -> int:
    """A resampler's width. Raises ValueError where its heads do not fill it."""
    if width % HEAD:
        raise ValueError(f"its resampler is {width} wide, where a multiple of {HEAD} is expected, the width of a head")
    return width


def layers(tensors: Tensors) -> int:
    """How many layers a resampler has. Raises ValueError."""
    pattern = rf"{re.escape(PROJECTION)}layers\.(\d+)\."
    found = {index(m[1], name, tensors) for name in tensors if (m := re.match(pattern, name))}
    if not 0 < len(found) <= DEEPEST:
        raise ValueError(f"its resampler has {len(found)} layers, where 1 to {DEEPEST} are expected")
    return 1 + max(found)
