"""``python -m bench profile``: where the time of a U-Net call goes, per kind of operation, beside what the machine can.

The compiled program is run under JAX's own profiler, which times every operation of it; the program's text says what
each one is. Floating-point operations are counted in the traced program, bytes as what an operation reads and writes.
Ceilings are measured in the same process: a large matrix product by JAX (and by PyTorch, where it is installed) and a
copy of memory.

Kinds: convolution; matmul; attention (its products, softmax and layout); norm and activation (whatever else computes:
reductions and pointwise operations, by fusion as XLA made them); layout (copies, transposes, concatenations and the
like, alone). An operation that holds several is of the first kind in this list, attention before all.
"""

import argparse
import glob
import gzip
import json
import re
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

from bench import models, report
from bench.workers.ldm import bundle_of, noise
from bench.workers.protocol import timed
from ldm.attention import fused_attention
from ldm.bundle import module
from ldm.conditioning import Conditioning
from ldm.hooks import Hooks

KINDS = ("convolution", "matmul", "attention", "norm and activation", "layout")
SCOPE = "attention_scope"  # put around attention, so that the program's text says what belongs to it
MOVES = {"parameter", "constant", "bitcast", "copy", "transpose", "reshape", "concatenate", "slice", "broadcast", "pad"}
MOVES |= {"tuple", "get-tuple-element", "iota", "dynamic-slice", "dynamic-update-slice", "convert", "fusion", "call"}
HOLDERS = ("while", "conditional", "call")  # whose time is that of the operations in them
BYTES = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "pred": 1, "s8": 1, "u8": 1, "s64": 8, "f64": 8}
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")


@dataclass(frozen=True)
class Operation:
    """One operation of a compiled program."""

    kind: str
    moved: int  # bytes read and written


# ---------------------------------------------------------------------------------------------------------------------
# The program's text


def size_of(shape: str) -> int:
    """Bytes of "f32[2,64,64,320]{3,2,1,0}", and of a tuple of such."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return sum(BYTES.get(t, 0) * int(np.prod([int(n) for n in axes.split(",") if n] or [1])) for t, axes in found)


def instructions(text: str) -> dict[str, list[tuple[str, str, str, str]]]:
    """Computations by name, each a list of (name, shape, opcode, the rest of the line)."""
    found: dict[str, list] = defaultdict(list)
    current = ""
    for line in text.splitlines():
        if head := re.match(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
            current = head[1]
        elif match := INSTRUCTION.match(line):
            found[current].append(match.groups())
    return found


def kind_of(opcodes: set[str], named: str) -> str:
    """The kind of an operation that holds ``opcodes``, by those and by the names that its text carries."""
    if SCOPE in named:
        return "attention"
    if "convolution" in opcodes or "conv_general" in named:
        return "convolution"
    if "dot" in opcodes or "dot_general" in named:
        return "matmul"
    return "layout" if opcodes <= MOVES else "norm and activation"


def operations(text: str) -> dict[str, Operation]:
    """Every operation of a program that its profile may name. Loops and the like are left out."""
    computations = instructions(text)
    sizes = {name: size_of(shape) for body in computations.values() for name, shape, _, _ in body}

    def inside(rest: str) -> Iterator[tuple[str, str]]:
        for called in re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", rest):
            for _, _, opcode, more in computations.get(called, []):
                yield opcode, more
                yield from inside(more)

    found = {}
    for body in computations.values():
        for name, shape, opcode, rest in body:
            if opcode in HOLDERS or opcode == "parameter":
                continue
            parts = [(opcode, rest), *inside(rest)]
            named = " ".join("".join(re.findall(r'op_name="([^"]*)"', more)) for _, more in parts)
            read = sum(sizes.get(operand, 0) for operand in re.findall(r"%([\w.\-]+)", rest.split("), ")[0]))
            found[name] = Operation(kind_of({code for code, _ in parts}, named), size_of(shape) + read)
    return found


def flops(jaxpr: Any, times: int = 1) -> Counter:
    """Floating-point operations of convolutions and products by kind; loops of known length count as often."""
    found: Counter = Counter()
    for eqn in jaxpr.eqns:
        attention = SCOPE in str(eqn.source_info.name_stack)
        if eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            out = eqn.params["dimension_numbers"].rhs_spec[0]
            found["convolution"] += times * 2 * eqn.outvars[0].aval.size * int(np.prod(kernel)) // kernel[out]
        elif eqn.primitive.name == "dot_general":
            axes = eqn.params["dimension_numbers"][0][0]
            depth = int(np.prod([eqn.invars[0].aval.shape[axis] for axis in axes]))
            found["attention" if attention else "matmul"] += times * 2 * eqn.outvars[0].aval.size * depth
        repeats = times * eqn.params.get("length", 1) if eqn.primitive.name == "scan" else times
        for inner in jaxprs_in_params(eqn.params):
            counted = flops(inner, repeats)
            found.update(Counter({"attention": counted.total()}) if attention else counted)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Time


def traced(run: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Seconds of each operation in one run, the mean of ``rounds``, by the profiler."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            for _ in range(rounds):
                run()
        (path,) = glob.glob(f"{folder}/**/perfetto_trace.json.gz", recursive=True)
        with gzip.open(path) as file:
            events = json.load(file)
    seconds: dict[str, float] = defaultdict(float)
    for event in events if isinstance(events, list) else events["traceEvents"]:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            seconds[event["args"]["hlo_op"]] += event["dur"] / 1e6 / rounds
    return seconds


def best(run: Callable[[], Any], rounds: int = 5) -> float:
    """The least seconds of some runs, after one that does not count."""
    run()
    return min(timed(run)[1] for _ in range(rounds))


def ceilings(side: int, megabytes: int) -> dict[str, float]:
    """GFLOP/s of a float32 product of ``side`` squared, and GB/s of a copy, read and write both counted."""
    a = jnp.asarray(np.random.default_rng(0).standard_normal((side, side), np.float32))
    work = 2 * side**3 / 1e9
    product = jax.jit(jnp.matmul)
    found = {"matmul, JAX": work / best(lambda: product(a, a).block_until_ready())}
    try:
        import torch
    except ImportError:
        pass
    else:
        b = torch.from_numpy(np.array(a))
        found["matmul, PyTorch"] = work / best(lambda: b @ b)
    block = np.ones(megabytes * 250_000, np.float32)
    into = np.empty_like(block)
    found["copy"] = 2 * block.nbytes / 1e9 / best(lambda: np.copyto(into, block))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The table


def marked(site: str, q: Any, k: Any, v: Any) -> Any:
    """The default attention, under a name that the compiled program keeps."""
    with jax.named_scope(SCOPE):
        return fused_attention(site, q, k, v)


def profile(family: str, side: int, rounds: int, cache: Path) -> tuple[list[list[str]], dict[str, float]]:
    """The lines of the table for one U-Net call of two rows, and the ceilings."""
    bundle = bundle_of(str(models.folder(family, "float32", cache)), "float32", ("unet",))
    config = bundle.configs.unet

    def call(params: Any, x: Any, t: Any, context: Any) -> Any:
        return module(bundle.configs, params, "unet")(x, t, Conditioning(context), hooks=Hooks(attend=marked))

    args = (bundle.params, noise(2, side // 8, side // 8, 4), np.float32(500), noise(2, 77, config.context_dim))
    lowered = jax.jit(call).trace(*args)
    compiled = lowered.lower().compile()
    run = lambda: jax.block_until_ready(compiled(*args))
    run()
    wall = statistics.median(timed(run)[1] for _ in range(rounds))
    known, work = operations(compiled.as_text()), flops(lowered.jaxpr.jaxpr)
    seconds, moved = Counter(), Counter()
    for name, spent in traced(run, rounds).items():
        if name in known:
            seconds[known[name].kind] += spent
            moved[known[name].kind] += known[name].moved
    top = ceilings(*((4096, 1000) if family != "small" else (512, 10)))
    return lines(seconds, moved, work, wall, top), top


def lines(seconds: Counter, moved: Counter, work: Counter, wall: float, top: dict[str, float]) -> list[list[str]]:
    """Time, share, arithmetic and memory traffic of each kind, against the ceilings."""
    product = max(value for name, value in top.items() if name.startswith("matmul"))
    table, total = [], sum(seconds.values())
    for kind in KINDS:
        spent, gflop = seconds[kind], work[kind] / 1e9
        if not spent:
            continue
        row = [kind, f"{spent:.3f}", f"{spent / total:.0%}"]
        if gflop:
            row += [f"{gflop:.0f}", f"{gflop / spent:.0f} GFLOP/s", f"{gflop / spent / product:.0%} of a product"]
        else:
            rate = moved[kind] / 1e9 / spent
            row += ["–", f"{rate:.1f} GB/s", f"{rate / top['copy']:.0%} of a copy"]
        table.append(row)
    gflop = sum(work.values()) / 1e9
    whole = [f"{gflop:.0f}", f"{gflop / wall:.0f} GFLOP/s", f"{gflop / wall / product:.0%} of a product"]
    return [*table, ["**the call, by the clock**", f"{wall:.3f}", f"{total / wall:.0%} found", *whole]]


def main(given: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser("python -m bench profile", description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="sd1", choices=tuple(models.FAMILIES))
    parser.add_argument("--side", type=int, help="of the picture, in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "ldm-bench")
    parser.add_argument("--save", action="store_true", help="into bench/README.md")
    args = parser.parse_args(given)
    side = args.side or min(512, models.FAMILIES[args.family].size[0])
    table, top = profile(args.family, side, args.rounds, args.cache)
    head = ["kind", "s", "share", "GFLOP", "achieved", "of the ceiling"]
    measured = ", ".join(f"{name} {value:.0f} {'GB/s' if name == 'copy' else 'GFLOP/s'}" for name, value in top.items())
    text = f"{report.table(head, table)}\nCeilings measured beside it: {measured}.\n"
    print(text)
    if args.save:
        page = report.README.read_text(encoding="utf-8")
        report.README.write_text(report.replaced(page, "profile", text), encoding="utf-8")
