"""PyTorch diffusers as a worker: eager as its pages show it; with ``--compiled``, ``torch.compile`` and channels last.

On a GPU attention is PyTorch's own fused one in both. Shapes are PyTorch's: [B, C, h, w].
"""

import sys
from functools import cache
from typing import Any

from bench.workers.protocol import Ask, Prepared, serve

COMPILED = "--compiled" in sys.argv


def about() -> dict[str, str]:
    """Versions."""
    torch = pytorch()
    import diffusers
    import transformers

    versions = {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }
    return {"peer": "diffusers-compiled" if COMPILED else "diffusers", **versions}


@cache
def pytorch() -> Any:
    """torch without gradients, on all cores."""
    import os

    import torch

    torch.set_grad_enabled(False)
    if hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    if COMPILED and not torch.cuda.is_available():
        import torch._inductor.config as inductor

        inductor.freezing = True  # weights are constants: convolutions and products get them packed
    return torch


def device() -> str:
    """Where to run."""
    return "cuda" if pytorch().cuda.is_available() else "cpu"


def counters() -> dict[str, Any]:
    """The device's peak memory, where it is not the host's."""
    if device() == "cpu":
        return {}
    return {"device_peak_mb": round(pytorch().cuda.max_memory_allocated() / 1e6, 1)}


def made_ready(module: Any) -> Any:
    """A network on its device; compiled, and channels last, if so asked."""
    torch = pytorch()
    module = module.to(device()).eval()
    if not COMPILED:
        return module
    if hasattr(module, "conv_in") or hasattr(module, "decoder"):
        module = module.to(memory_format=torch.channels_last)
    return module


def compiled(function: Any) -> Any:
    """``function`` as it is, or compiled; on a GPU with CUDA graphs, so that launching costs nothing."""
    if not COMPILED:
        return function
    return pytorch().compile(function, mode="reduce-overhead" if device() == "cuda" else "default")


@cache
def pipeline(model: str, dtype: str) -> Any:
    """The whole pipeline."""
    torch = pytorch()
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(model, torch_dtype=getattr(torch, dtype), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    for part in ("unet", "vae", "text_encoder"):
        setattr(pipe, part, made_ready(getattr(pipe, part)))
    pipe.unet.forward = compiled(pipe.unet.forward)
    pipe.vae.decode = compiled(pipe.vae.decode)
    return pipe


@cache
def part(model: str, dtype: str, name: str) -> Any:
    """One network alone."""
    torch = pytorch()
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}[name]
    options = {"dtype" if name == "text_encoder" else "torch_dtype": getattr(torch, dtype)}
    return made_ready(kind.from_pretrained(f"{model}/{name}", local_files_only=True, **options))


def load(ask: Ask) -> Any:
    """The whole pipeline."""
    return pipeline(ask["model"], ask["dtype"])


def waited(function: Any, *args: Any) -> Prepared:
    """``function`` of ``args`` as work that ends when the device has done it."""
    torch = pytorch()

    def run() -> None:
        function(*args)
        if device() == "cuda":
            torch.cuda.synchronize()

    return Prepared(run)


def call(ask: Ask) -> Prepared:
    """One call of one network."""
    torch, (width, height), B = pytorch(), ask["size"], ask["batch"]
    model, dtype, question = ask["model"], ask["dtype"], ask["question"]
    noise = lambda *shape: torch.randn(shape, dtype=getattr(torch, dtype), device=device())
    last = lambda x: x.to(memory_format=torch.channels_last) if COMPILED else x
    if question == "unet":
        unet = part(model, dtype, "unet")
        x, context = noise(B, 4, height // 8, width // 8), noise(B, 77, unet.config.cross_attention_dim)
        return waited(compiled(unet), last(x), torch.tensor(500.0, device=device()), context)
    if question == "text":
        ids = torch.full((B, 77), 49407, device=device())
        return waited(compiled(part(model, dtype, "text_encoder")), ids)
    vae = part(model, dtype, "vae")
    if question == "encode":
        return waited(compiled(vae.encode), last(noise(B, 3, height, width)))
    return waited(compiled(vae.decode), last(noise(B, 4, height // 8, width // 8)))


def prepare(ask: Ask) -> Prepared:
    """Loads what a question needs; torch compiles on the first run."""
    if ask["question"] in ("text", "unet", "decode", "encode"):
        return call(ask)
    pipe, (width, height) = pipeline(ask["model"], ask["dtype"]), ask["size"]
    numbers = {"num_inference_steps": ask["steps"], "guidance_scale": ask["guidance"]}
    return waited(lambda: pipe([ask["prompt"]] * ask["batch"], width=width, height=height, **numbers))


if __name__ == "__main__":
    serve(sys.modules[__name__])
