"""stable-diffusion.cpp as a worker, through stable-diffusion-cpp-python, which builds it for the machine.

It has no call for one network, but it says what each took. So for ``unet`` and ``decode`` a picture of one step is made
and the program's own figure taken: of sampling, whose guided step is two calls with one row each, and of the decoder.
"""

import re
import sys
from functools import cache
from importlib.metadata import version
from typing import Any

from bench.workers.protocol import Ask, Prepared, serve

FIGURES = {
    "unet": r"sampling completed, taking ([\d.]+)s",
    "decode": r"decode_first_stage completed, taking ([\d.]+)s",
}
TYPES = {"float32": "f32", "bfloat16": "bf16"}
NAME = "stable_diffusion_cpp_python"
_said: list[str] = []
_kept: list[Any] = []  # the callback, as long as the library may call it


def about() -> dict[str, str]:
    """The version of the binding."""
    library()
    return {"peer": "stable-diffusion.cpp", NAME: version(NAME)}


def counters() -> dict[str, Any]:
    """Nothing more."""
    return {}


@cache
def library() -> Any:
    """The binding, with what the program says kept."""
    import ctypes

    import stable_diffusion_cpp

    def listen(level: int, text: bytes, data: Any) -> None:
        _said.append(text.decode("utf-8", errors="replace"))

    _kept.append(stable_diffusion_cpp.sd_log_callback(listen))
    stable_diffusion_cpp.sd_set_log_callback(_kept[0], ctypes.c_void_p(0))
    return stable_diffusion_cpp


@cache
def model_of(path: str, dtype: str) -> Any:
    """The model, in memory."""
    return library().StableDiffusion(model_path=path, wtype=TYPES[dtype], verbose=False)


def load(ask: Ask) -> Any:
    """The whole model."""
    return model_of(ask["model"], ask["dtype"])


def prepare(ask: Ask) -> Prepared:
    """A function that draws, and returns the seconds of one network if that was asked."""
    model, (width, height), figure = load(ask), ask["size"], FIGURES.get(ask["question"])

    def run() -> float | None:
        _said.clear()
        model.generate_image(
            prompt=ask["prompt"],
            width=width,
            height=height,
            cfg_scale=ask["guidance"],
            sample_steps=1 if figure else ask["steps"],
            sample_method="euler",
            batch_count=1 if figure else ask["batch"],
        )
        return float(re.findall(figure, "".join(_said))[-1]) if figure else None

    return Prepared(run)


if __name__ == "__main__":
    serve(sys.modules[__name__])
