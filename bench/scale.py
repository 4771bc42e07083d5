"""Several devices: throughput of a small model on 1 to 8 virtual ones, and what compiled programs send between them.

    python -m bench.scale            a small model: seconds and collectives of sampling and of a training step
    python -m bench.scale --plan     Stable Diffusion 1.5 on 8 devices: flops, memory and bytes, compiled and never run
    python -m bench.scale --plan --ways data --each 4 --dtype bfloat16

One JSON line for each program. Virtual devices share the cores of this machine, so eight are no faster than one: what
can be seen is what cutting the work costs (``overhead``: time over that of one device, less 1) and which collectives
the compiler put in. Bytes are those of each collective's result on one device. A CPU writes a reduce-scatter as an
all-reduce of the whole and a slice; other compilers do not. docs/scale/README.md plans with these figures.
"""

import argparse
import json
import math
import os
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from bench.models import FAMILIES, Family
from bench.training import batch_of, figures, full, of
from bench.workers.protocol import timed
from ldm import program
from ldm.bundle import Configs
from ldm.devices import WHOLE, mesh_of
from ldm.guidance import Guidance
from ldm.models.text import TextConfig
from ldm.models.unet import UNetConfig
from ldm.request import Inputs, Start, Texts
from ldm.samplers import initial, make_plan
from ldm.training.sharding import make_mesh, replicate, rows, shard_batch, shard_state, state_shardings, whole
from ldm.training.step import make_step, start

DEVICES = 8
FLAG = "--xla_force_host_platform_device_count"
COLLECTIVE = re.compile(
    r" = (\(?[^()]*\)?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
WIDTH = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1, "f64": 8, "s64": 8, "u64": 8}
SMALL = Family(
    Configs(
        UNetConfig(channels=(32,), blocks=1, depth=(1,), middle_depth=0, heads=(2,), context_dim=32),
        text=TextConfig(width=32, mlp_width=64, layers=1, heads=1),
    ),
    (128, 128),
)
MODELS = {"small": SMALL, "sd1": FAMILIES["sd1"]}
PICTURES = 16  # of the small model, over all devices


def collectives(compiled: Any) -> dict[str, dict[str, float]]:
    """Of a compiled program: {kind: {count, mb}}, mb the size of what they make on one device."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"count": 0, "mb": 0.0})
    for shape, kind in COLLECTIVE.findall(compiled.as_text()):
        found[kind]["count"] += 1
        for dtype, sides in re.findall(r"(\w+)\[([\d,]*)\]", shape):
            found[kind]["mb"] += WIDTH[dtype] * math.prod(map(int, filter(None, sides.split(",")))) / 1e6
    return {kind: {"count": row["count"], "mb": round(row["mb"], 3)} for kind, row in found.items()}


def request(configs: Configs, count: int, size: tuple[int, int]) -> tuple[Inputs, Any]:
    """The run-time values of ``count`` pictures of 4 steps, with a context given, and the state that they begin at."""
    shape = (count, size[1] // 8, size[0] // 8, 4)
    nothing, context = np.zeros(shape, np.float32), np.zeros((1, 2 * count, 77, configs.unet.context_dim), np.float32)
    said = Texts(None, None, context, np.full((1, 2 * count), np.inf, np.float32), np.int32(0))
    begin = Start(nothing, np.bool_(False), nothing, nothing, np.ones((*shape[:3], 1), np.float32), None)
    plan = make_plan(configs.schedule, "ddim", "leading", 4, most=1000)
    numbers = Guidance(*map(np.float32, (7.5, 0, 0, np.inf))), np.uint32(0), np.arange(count, dtype=np.int32)
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    return Inputs(said, begin, *numbers, plan), initial(noise)


def laid(spec: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """A shape with a layout."""
    return jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=sharding)


def filled(spec: jax.ShapeDtypeStruct) -> np.ndarray:
    """Small random numbers of a shape; zeros for whole numbers."""
    if not jnp.issubdtype(spec.dtype, jnp.floating):
        return np.zeros(spec.shape, spec.dtype)
    return (0.02 * np.random.default_rng(0).standard_normal(spec.shape)).astype(spec.dtype)


Run = Callable[[jax.stages.Compiled], Any]  # of the program when it has been compiled


def sampling(family: str, devices: int, count: int, dtype: str) -> tuple[Any, Run]:
    """The program of the U-Net's steps for ``count`` pictures, traced, and a run of it."""
    configs, mesh = MODELS[family].configs, mesh_of(devices)
    inputs, state = request(configs, count, MODELS[family].size)
    unet = of("full", configs, dtype)[0]["unet"]
    specs = jax.tree.map(lambda s: laid(s, NamedSharding(mesh, WHOLE)), unet)
    static = {"configs": configs, "sampler": "ddim", "noise": "steps", "mesh": mesh}
    bounds = np.int32(0), np.int32(4)
    traced = program.advance.trace({"unet": specs}, inputs, state, *bounds, **static)
    if family == "sd1":
        return traced, lambda compiled: None
    params = {"unet": replicate(mesh, jax.tree.map(filled, unet))}
    begin = jax.tree.map(np.asarray, state)
    return traced, lambda compiled: compiled(params, inputs, begin, *bounds)


def training(family: str, devices: int, fsdp: int, count: int, dtype: str) -> tuple[Any, Run]:
    """The training step of the whole U-Net on a batch of ``count``, traced, and a run of it."""
    configs, size = MODELS[family].configs, MODELS[family].size
    mesh = make_mesh(devices // fsdp, fsdp, jax.devices()[:devices])
    sgd = optax.sgd(1e-5, momentum=0.9)  # Adam adds no communication, and compiles for minutes
    learned, frozen = of("full", configs, dtype)
    learned = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.float32), learned)
    step = make_step(lambda *args: full(configs, *args), sgd, seed=0, dtype=dtype, mesh=mesh)
    state, batch = jax.eval_shape(lambda p: start(p, sgd), learned), batch_of(count, size, False)
    specs = jax.tree.map(laid, state, state_shardings(mesh, state))
    others = (
        jax.tree.map(lambda s, lay=lay: laid(s, lay(mesh)), tree) for tree, lay in ((frozen, whole), (batch, rows))
    )
    traced = step.trace(specs, *others)
    if family == "sd1":
        return traced, lambda compiled: None
    made = jax.tree.map(filled, (state, frozen, batch))
    held = [shard_state(mesh, made[0])]
    rest = replicate(mesh, made[1]), shard_batch(mesh, made[2])

    def run(compiled: jax.stages.Compiled) -> Any:
        held[0], metrics = compiled(held[0], *rest)
        return metrics

    return traced, run


def parameters_mb(configs: Configs) -> float:
    """The U-Net's parameters in float32."""
    return round(sum(4 * math.prod(s.shape) for s in of("full", configs, "float32")[0]["unet"].values()) / 1e6, 3)


def seconds(run: Callable[[], Any], rounds: int = 5) -> float:
    """The median time of a run, after one that is not counted."""
    times = [timed(lambda: jax.block_until_ready(run()))[1] for _ in range(rounds + 1)]
    return statistics.median(times[1:])


def measured() -> Iterator[dict[str, Any]]:
    """The small model on 1, 2, 4 and 8 devices: as many pictures in all, so that one device's time is the ideal."""
    count, alone = PICTURES, {}
    for devices in (1, 2, 4, 8):
        makers = {
            "sampling, 4 steps": lambda d=devices: sampling("small", d, count, "float32"),
            "training, data parallel": lambda d=devices: training("small", d, 1, count, "float32"),
            "training, fully sharded": lambda d=devices: training("small", d, d, count, "float32"),
        }
        for what, make in makers.items():
            traced, run = make()
            compiled = traced.lower().compile()
            taken = seconds(lambda run=run, compiled=compiled: run(compiled))
            alone.setdefault(what, taken)
            row = {"what": what, "devices": devices, "pictures": count, "seconds": round(taken, 4)}
            row["parameters_mb"] = parameters_mb(MODELS["small"].configs)
            row["pictures_per_second_and_device"] = round(count / taken / devices, 2)
            yield row | {"overhead": round(taken / alone[what] - 1, 3), "collectives": collectives(compiled)}


def planned(ways: list[str], each: list[int], dtype: str) -> Iterator[dict[str, Any]]:
    """Stable Diffusion 1.5 at 512x512 on 8 devices, ``each`` pictures on every one: compiled, not run."""
    for way in ways:
        for count in each:
            begin, total = time.perf_counter(), count * DEVICES
            if way == "sampling":
                traced, _ = sampling("sd1", DEVICES, total, dtype)
            else:
                traced, _ = training("sd1", DEVICES, DEVICES if way == "fsdp" else 1, total, dtype)
            compiled = traced.lower().compile()
            work = figures(compiled, traced, 1 if way == "sampling" else DEVICES)  # sampling is traced for one device
            row = {"what": way, "dtype": dtype, "devices": DEVICES, "pictures_each": count, **work}
            row["parameters_mb"] = parameters_mb(MODELS["sd1"].configs)
            yield row | {"collectives": collectives(compiled), "compile_s": round(time.perf_counter() - begin, 1)}


def main() -> None:
    """Starts itself again with virtual devices, which must be asked for before JAX is loaded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", action="store_true", help="Stable Diffusion 1.5, compiled and not run")
    parser.add_argument("--ways", nargs="+", default=["sampling", "data", "fsdp"], choices=["sampling", "data", "fsdp"])
    parser.add_argument("--each", nargs="+", type=int, default=[1, 4], help="pictures on every device")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    args = parser.parse_args()
    flags = os.environ.get("XLA_FLAGS", "")
    if FLAG not in flags:
        quick = " --xla_backend_optimization_level=0" if args.plan else ""  # machine code that nobody will run
        env = os.environ | {"XLA_FLAGS": f"{flags} {FLAG}={DEVICES}{quick}", "JAX_PLATFORMS": "cpu"}
        os.execve(sys.executable, [sys.executable, "-m", "bench.scale", *sys.argv[1:]], env)
    for row in planned(args.ways, args.each, args.dtype) if args.plan else measured():
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
