"""OpenVINO as a worker: diffusers' networks converted once, and run in float32 (its own default is to lower precision).

Converting is not timed: the files lie beside the model's folder, as they would for a user who runs twice. The sampling
loop is diffusers' scheduler around the converted networks, as in OpenVINO's own pipelines. Shapes: [B, C, h, w].
"""

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.workers.protocol import Ask, Prepared, serve

HINTS = {"float32": "f32", "bfloat16": "bf16"}
NETWORKS = {"text": "text_encoder", "unet": "unet", "decode": "decoder", "encode": "encoder"}
EXAMPLES = {  # shapes by which a network is traced; any batch and size can be set afterwards
    "text_encoder": lambda width: [(2, 77)],
    "unet": lambda width: [(2, 4, 16, 16), (), (2, 77, width)],
    "decoder": lambda width: [(1, 4, 16, 16)],
    "encoder": lambda width: [(1, 3, 64, 64)],
}


def about() -> dict[str, str]:
    """Versions."""
    import diffusers
    import openvino
    import torch

    versions = {"openvino": openvino.__version__, "torch": torch.__version__, "diffusers": diffusers.__version__}
    return {"peer": "openvino", **versions}


def counters() -> dict[str, Any]:
    """Nothing more."""
    return {}


def plain(model: str, name: str) -> tuple[Any, int]:
    """A torch module with tensors in and a tensor out, and the width of the context that it takes, where it does."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    class Plain(torch.nn.Module):
        def __init__(self, network: Any, call: Any):
            super().__init__()
            self.network, self.call = network, call

        def forward(self, *inputs: Any) -> Any:
            return self.call(self.network, *inputs)

    if name == "text_encoder":
        network = CLIPTextModel.from_pretrained(f"{model}/text_encoder", local_files_only=True)
        return Plain(network, lambda n, ids: n(ids).last_hidden_state), 0
    if name == "unet":
        network = UNet2DConditionModel.from_pretrained(f"{model}/unet", local_files_only=True)
        return Plain(network, lambda n, x, t, context: n(x, t, context).sample), network.config.cross_attention_dim
    network = AutoencoderKL.from_pretrained(f"{model}/vae", local_files_only=True)
    if name == "decoder":
        return Plain(network, lambda n, z: n.decode(z).sample), 0
    return Plain(network, lambda n, x: n.encode(x).latent_dist.mean), 0


def converted(model: str, name: str) -> Path:
    """The network as OpenVINO's own pair of files, made on the first call."""
    import openvino
    import torch

    path = Path(f"{model}-openvino") / f"{name}.xml"
    if not path.exists():
        module, width = plain(model, name)
        module.eval()
        example = [
            torch.zeros(s, dtype=torch.int64) if name == "text_encoder" else torch.zeros(s)
            for s in EXAMPLES[name](width)
        ]
        path.parent.mkdir(exist_ok=True)
        with torch.no_grad():
            made = openvino.convert_model(module, example_input=tuple(example))
        openvino.save_model(made, path, compress_to_fp16=False)
    return path


@cache
def network(model: str, name: str, dtype: str, shapes: tuple[tuple[int, ...], ...]) -> Any:
    """A compiled network for inputs of ``shapes``: arrays in, array out."""
    import openvino

    core = openvino.Core()
    read = core.read_model(converted(model, name))
    read.reshape({port: list(shape) for port, shape in zip(read.inputs, shapes, strict=True)})
    options = {"INFERENCE_PRECISION_HINT": HINTS[dtype], "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(read, "CPU", options)
    return lambda *inputs: compiled(list(inputs))[0]


def shapes_of(name: str, batch: int, size: tuple[int, int], width: int) -> tuple[tuple[int, ...], ...]:
    """The shapes of a network's inputs."""
    h, w = size[1] // 8, size[0] // 8
    return {
        "text_encoder": ((batch, 77),),
        "unet": ((batch, 4, h, w), (), (batch, 77, width)),
        "decoder": ((batch, 4, h, w),),
        "encoder": ((batch, 3, size[1], size[0]),),
    }[name]


def context_width(model: str) -> int:
    """The width of the U-Net's context."""
    import json

    return json.loads(Path(model, "unet", "config.json").read_text())["cross_attention_dim"]


def ready(ask: Ask, name: str, batch: int) -> tuple[Any, tuple]:
    """A network for the sizes of a question, and the shapes of its inputs."""
    shapes = shapes_of(name, batch, ask["size"], context_width(ask["model"]))
    return network(ask["model"], name, ask["dtype"], shapes), shapes


def load(ask: Ask) -> Any:
    """All networks of a picture."""
    return [ready(ask, name, n * ask["batch"]) for name, n in (("text_encoder", 2), ("unet", 2), ("decoder", 1))]


def picture(ask: Ask) -> Any:
    """Text to pictures: a function."""
    import torch
    from diffusers import DDIMScheduler
    from transformers import CLIPTokenizer

    (encode, _), (unet, (shape, *_)), (decode, _) = load(ask)
    tokenizer = CLIPTokenizer.from_pretrained(f"{ask['model']}/tokenizer", local_files_only=True)
    scheduler = DDIMScheduler.from_pretrained(f"{ask['model']}/scheduler", local_files_only=True)
    B = ask["batch"]

    def run() -> np.ndarray:
        texts = [""] * B + [ask["prompt"]] * B
        context = encode(tokenizer(texts, padding="max_length", truncation=True, return_tensors="np").input_ids)
        scheduler.set_timesteps(ask["steps"])
        x = torch.randn((B, *shape[1:]))
        for t in scheduler.timesteps:
            both = unet(torch.cat([x, x]).numpy(), np.float32(t), context)
            plain, said = torch.from_numpy(both).chunk(2)
            x = scheduler.step(plain + ask["guidance"] * (said - plain), t, x).prev_sample
        pictures = decode(x.numpy() / 0.18215)
        return ((pictures / 2 + 0.5).clip(0, 1) * 255).round().astype(np.uint8)

    return run


def prepare(ask: Ask) -> Prepared:
    """Compiles what a question needs."""
    if ask["question"] not in NETWORKS:
        return Prepared(picture(ask))
    name = NETWORKS[ask["question"]]
    run, shapes = ready(ask, name, ask["batch"])
    generator = np.random.default_rng(0)
    inputs = [np.asarray(generator.standard_normal(s), np.float32) for s in shapes]
    if name == "text_encoder":
        inputs = [np.full(shapes[0], 49407, np.int64)]
    return Prepared(lambda: run(*inputs))


if __name__ == "__main__":
    serve(sys.modules[__name__])
