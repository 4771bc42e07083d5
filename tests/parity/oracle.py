"""The oracles' side: tiny and full-size PyTorch models with random weights, and how an array is compared with theirs.

Importing this module skips the importing test module when an oracle package is missing, so it is the first import of
every parity test. Shapes: torch is channels first (NCHW), this project channels last (NHWC).

Sizes of the public models: the ``config.json`` files of Stable Diffusion 1.4 and 2.1.
"""

import importlib
import importlib.util
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PACKAGES = ("torch", "torchvision", "torchsde", "torchdiffeq", "diffusers", "transformers", "accelerate")
PACKAGES += ("k_diffusion", "open_clip", "cv2")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
if MISSING:
    pytest.skip(f"the oracle extra is not installed (no {', '.join(MISSING)})", allow_module_level=True)

import cv2  # noqa: E402, F401
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402


def package_folder(name: str) -> Path:
    """Where a package lies, without importing it."""
    return Path(importlib.util.find_spec(name).submodule_search_locations[0])


def define_torchvision_operators() -> torch.library.Library | None:
    """Declares the two operators without which a CUDA build of torchvision cannot be imported beside a CPU torch."""
    try:
        torch.ops.load_library(str(package_folder("torchvision") / "_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library


def import_k_diffusion(module: str = "sampling") -> types.ModuleType:
    """``k_diffusion.<module>`` without the package's own ``__init__``, which imports far more than is needed."""
    if "k_diffusion" not in sys.modules:
        stub = types.ModuleType("k_diffusion")
        stub.__path__ = [str(package_folder("k_diffusion"))]
        sys.modules["k_diffusion"] = stub
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"k_diffusion.{module}")


_operators = define_torchvision_operators()  # the declarations live as long as this object
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import accelerate
    import diffusers
    import transformers

    importlib.import_module("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")

torch.set_num_threads(2)
torch.set_grad_enabled(False)
diffusers.logging.set_verbosity_error()
diffusers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


# ---- comparing ----


def rel(ours: Any, theirs: Any) -> float:
    """||ours - theirs|| / ||theirs|| in float64."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def agree(what: str, ours: Any, theirs: Any, limit: float) -> None:
    """Prints the relative error and asserts that it is at most ``limit``, over arrays of one shape that vary."""
    assert np.shape(ours) == np.shape(theirs), f"{what}: shape {np.shape(ours)}, the oracle's {np.shape(theirs)}"
    assert np.asarray(theirs).std() > 0, f"{what}: the oracle's output is constant, which would prove nothing"
    error = rel(ours, theirs)
    print(f"{what}: relative error {error:.2e} (limit {limit:.0e})")
    assert error <= limit, f"{what}: relative error {error:.2e} > {limit:.0e}"


def nhwc(x: Tensor) -> np.ndarray:
    """[B, C, H, W] -> [B, H, W, C]."""
    return x.detach().permute(0, 2, 3, 1).contiguous().numpy()


def nchw(x: Any) -> Tensor:
    """[B, H, W, C] -> [B, C, H, W]."""
    return torch.from_numpy(np.array(x)).permute(0, 3, 1, 2).contiguous()


def gaussian(seed: int, *shape: int) -> np.ndarray:
    """Unit Gaussian numbers, float32."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def arrays(module: nn.Module) -> dict[str, np.ndarray]:
    """The module's state dict as NumPy arrays that share its memory."""
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


# ---- random weights ----


def _spread(owner: nn.Module, name: str, shape: torch.Size) -> tuple[float, float]:
    """Centre and standard deviation that keep activations near unit size."""
    if isinstance(owner, nn.Embedding):
        return 0.0, 1.0
    if len(shape) >= 2:
        return 0.0, shape[1:].numel() ** -0.5  # variance 1 / fan-in
    is_gain = isinstance(owner, nn.GroupNorm | nn.LayerNorm) and name == "weight"
    return (1.0 if is_gain else 0.0), 0.1


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fills every parameter with uniform numbers, none zero or symmetric, allocating those that are abstract (meta).

    Default initialisations would hide errors: zero biases, unit gains and zero output layers agree with anything.
    """
    generator = torch.Generator().manual_seed(seed)
    for owner in module.modules():
        for name, parameter in list(owner._parameters.items()):
            if parameter is not None:
                centre, deviation = _spread(owner, name, parameter.shape)
                reach = 3**0.5 * deviation
                data = torch.empty(parameter.shape).uniform_(centre - reach, centre + reach, generator=generator)
                owner._parameters[name] = nn.Parameter(data, requires_grad=False)
    return module.eval()


def abstract(model: type, *args: Any, **numbers: Any) -> nn.Module:
    """``model(*args, **numbers)`` with names and shapes but without a byte of parameters; buffers are real."""
    with accelerate.init_empty_weights(include_buffers=False):
        return model(*args, **numbers)


# ---- models ----

DOWN, CROSS_DOWN, UP, CROSS_UP = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
CROSS = {"down_block_types": (CROSS_DOWN,) * 3 + (DOWN,), "up_block_types": (UP,) + (CROSS_UP,) * 3}
SDXL = {
    "down_block_types": (DOWN, CROSS_DOWN, CROSS_DOWN),
    "up_block_types": (CROSS_UP, CROSS_UP, UP),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
UNETS = {
    "sd1": CROSS | {"attention_head_dim": 8, "cross_attention_dim": 768},
    "sd2": CROSS | {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True},
    "sdxl": SDXL
    | {
        "block_out_channels": (320, 640, 1280),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "transformer_layers_per_block": (1, 2, 10),
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
TINY = {"block_out_channels": (64, 128, 192, 192), "cross_attention_dim": 128}
TINY_UNETS = {  # sd2's heads are 64 wide, as in the public models: single files do not say the number of heads
    "sd1": CROSS | TINY | {"attention_head_dim": 8},
    "sd2": CROSS | TINY | {"attention_head_dim": (1, 2, 3, 3), "use_linear_projection": True},
    "sdxl": SDXL
    | {
        "block_out_channels": (64, 128, 192),
        "attention_head_dim": (1, 2, 3),
        "cross_attention_dim": 128,
        "transformer_layers_per_block": (1, 2, 3),
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 256,
    },
}
TEXTS = {
    "sd1": {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "hidden_act": "quick_gelu"},
    "sd2": {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 23, "hidden_act": "gelu"},
}
TINY_TEXTS = {  # sd2 keeps its 23 layers: converters know the one layer that is left out by its number
    "sd1": {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 4, "hidden_act": "quick_gelu"},
    "sd2": {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 23, "hidden_act": "gelu"},
}


def unet(family: str, full: bool = False, **numbers: Any) -> nn.Module:
    """``UNet2DConditionModel`` of ``family`` sd1, sd2 or sdxl, abstract: levels, heads and projections as in public."""
    sizes = (UNETS if full else TINY_UNETS)[family] | {"sample_size": 64 if full else 8} | numbers
    return abstract(diffusers.UNet2DConditionModel, **sizes)


def vae(full: bool = False, **numbers: Any) -> nn.Module:
    """``AutoencoderKL`` that scales pictures down by 8, abstract."""
    sizes = {
        "block_out_channels": (128, 256, 512, 512) if full else (32, 64, 96, 96),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "sample_size": 512 if full else 64,
    }
    return abstract(diffusers.AutoencoderKL, **sizes | numbers)


def text(family: str, full: bool = False, **numbers: Any) -> nn.Module:
    """``CLIPTextModel`` of ``family`` sd1 (ViT-L/14) or sd2 (ViT-H/14 without its last layer), abstract.

    ``eos_token_id`` 2 is what the public files say; it means that the pooled state is taken at the largest token.
    """
    sizes = (TEXTS if full else TINY_TEXTS)[family] | numbers
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    config = transformers.CLIPTextConfig(intermediate_size=4 * sizes["hidden_size"], vocab_size=49408, **sizes, **ids)
    return abstract(transformers.CLIPTextModel, config)


def taesd(**numbers: Any) -> nn.Module:
    """``AutoencoderTiny`` at its public size, abstract."""
    return abstract(diffusers.AutoencoderTiny, **numbers)
