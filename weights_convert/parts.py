"""The parts of a model, each found in any of its public spellings. Nothing is read here but names and shapes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ldm.bundle import Bundle, Configs
from ldm.models.autoencoder import VAE, VAEConfig
from ldm.models.taesd import TinyVAE, TinyVAEConfig
from ldm.models.text import TextConfig, TextTower
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vision import VisionConfig, VisionTower
from ldm.tokenizer import Tokenizer
from weights_convert import families
from weights_convert.engine import Part, Tensors
from weights_convert.tables import autoencoder, taesd, text, unet, vision


@dataclass(frozen=True)
class Found:
    """What a checkpoint holds, before any weight is read: ``bundle`` lacks the parameters that ``parts`` will give."""

    family: str
    bundle: Bundle
    parts: dict[str, Part]
    prediction_from: str = ""  # how the prediction type was found out


def together(family: str, parts: Mapping[str, Part]) -> Found:
    """A checkpoint of these parts, by their names in ``ldm.bundle.PARTS``, and nothing else."""
    tokenizer = Tokenizer.clip() if "text" in parts else None
    configs = Configs(**{name: part.config for name, part in parts.items()})
    return Found(family, Bundle(configs, {}, tokenizer), dict(parts))


def alone(family: str, name: str, part: Part) -> Found:
    """A checkpoint of one part."""
    return together(family, {name: part})


def unet_part(what: str, tensors: Tensors, config: UNetConfig | None = None) -> Part:
    """A U-Net, names without prefix. Without ``config`` its numbers come from the shapes (single-file names only)."""
    config = config or _inferred(what, unet.config_from_shapes, tensors)
    seen = families.unet_numbers(tensors)
    hint = f"It looks like {families.unet_family(*seen)}." if seen else ""
    return Part(what, UNet, config, tensors, [unet.folder(config), unet.single_file(config)], hint)


def vae_part(what: str, tensors: Tensors, config: VAEConfig | None = None) -> Part:
    """An autoencoder, names without prefix."""
    config = config or _inferred(what, autoencoder.config_from_shapes, tensors)
    return Part(what, VAE, config, tensors, autoencoder.layouts(config))


def taesd_part(what: str, tensors: Tensors, config: TinyVAEConfig | None = None) -> Part:
    """TAESD, its two halves under ``encoder.`` and ``decoder.``."""
    config = config or _inferred(what, taesd.config_from_shapes, tensors)
    return Part(what, TinyVAE, config, tensors, taesd.layouts(config))


def text_part(
    what: str, tensors: Tensors, config: TextConfig | None = None, activation: str = "gelu", penultimate: bool = False
) -> Part:
    """A text tower, with or without ``text_model.``. ``activation`` and ``penultimate`` (leave out the last layer and
    the projection) matter only where there is no ``config``.
    """
    tensors = text.without_wrapper(tensors)
    infer = lambda t: text.config_from_shapes(t, not penultimate, activation, drop_layers=int(penultimate))
    config = config or _inferred(what, infer, tensors)
    return Part(what, TextTower, config, tensors, text.layouts(config))


def vision_part(what: str, tensors: Tensors, config: VisionConfig | None = None, activation: str = "gelu") -> Part:
    """An image tower, with or without ``vision_model.`` or ``visual.``; ``activation`` as in :func:`text_part`."""
    hint = "It looks like a CLIP text tower." if families.towers(tensors) == ("text",) else ""
    tensors = vision.named_alike(tensors)
    config = config or _inferred(what, lambda t: vision.config_from_shapes(t, activation), tensors)
    return Part(what, VisionTower, config, tensors, vision.layouts(config), hint)


def _inferred(what: str, infer: Callable[[Tensors], Any], tensors: Tensors) -> Any:
    try:
        return infer(tensors)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
