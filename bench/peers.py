"""The peers: how each worker is started, and what installs it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """``command``: the arguments of Python; ``questions`` that it can be asked, none: all of ``CALLS`` and more."""

    command: tuple[str, ...]
    install: str  # what to do where it is missing
    single_file: bool = False  # it reads the single file, not the folder
    without: tuple[str, ...] = ()  # questions that mean nothing for it
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    small: bool = True  # whether it knows models of other sizes than the public ones


EXTRA = "pip install -e '.[bench]'"
OURS = "ldm"
PEERS = {
    "ldm": Peer(("-m", "bench.workers.ldm"), "pip install -e ."),
    "diffusers": Peer(("-m", "bench.workers.diffusers"), EXTRA),
    "diffusers-compiled": Peer(("-m", "bench.workers.diffusers", "--compiled"), EXTRA, without=("load",)),
    "openvino": Peer(("-m", "bench.workers.openvino"), EXTRA),
    "stable-diffusion.cpp": Peer(
        ("-m", "bench.workers.stable_diffusion_cpp"),
        "pip install stable-diffusion-cpp-python, which builds it",
        single_file=True,
        without=("text", "encode"),
        small=False,
    ),
    "flax-diffusers": Peer(
        ("-m", "bench.workers.flax_diffusers"),
        "an environment of its own with bench/requirements/flax-diffusers.txt, given by --python flax-diffusers=PATH",
    ),
}
