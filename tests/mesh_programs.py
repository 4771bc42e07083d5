"""Programs for processes of their own, with several virtual devices: ``python mesh_programs.py NAME [ARGUMENT]...``.

They print one line of JSON, which test_sharding.py looks at. The number of devices is the environment's matter:
``XLA_FLAGS=--xla_force_host_platform_device_count=8``.
"""

import functools
import json
import re
import sys
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from closed_forms import mixture
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from ldm import program
from ldm.bundle import Configs
from ldm.conditioning import Conditioning
from ldm.guidance import keep_known
from ldm.inputs import guidance_of, plain_texts
from ldm.models.autoencoder import VAEConfig
from ldm.models.layers import bind, init
from ldm.models.text import TextConfig
from ldm.models.unet import UNet, UNetConfig
from ldm.program import Inputs
from ldm.samplers import (
    SAMPLERS,
    START,
    Plan,
    brownian_noise,
    image_keys,
    make_plan,
    noise_per_step,
    sample,
    unit_noise,
)
from ldm.schedule import NoiseSchedule
from ldm.starts import Picture, start_of
from ldm.training.losses import DiffusionOptions, denoising_loss
from ldm.training.optimiser import OptimiserConfig, make
from ldm.training.sharding import distributed, make_mesh, replicate, shard_batch, shard_state
from ldm.training.step import make_step, start
from weights_convert.tiny import random_bundle

CONFIG = UNetConfig(channels=(8,), blocks=1, depth=(1,), middle_depth=0, heads=(2,), context_dim=8, groups=4)
SCHEDULE = NoiseSchedule(prediction="v_prediction")
STEPS, ROWS = 3, 16
COLLECTIVE = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
TINY = Configs(
    unet=UNetConfig(channels=(32,), blocks=1, depth=(1,), middle_depth=0, heads=(2,), context_dim=32),
    vae=VAEConfig(channels=(8, 8), blocks=1, groups=4),
    text=TextConfig(width=32, mlp_width=64, layers=1, heads=1),
)

# ---------------------------------------------------------------------------------------------------------------------
# A real U-Net, as small as can be, and a small regression with noise


def unet_loss(params: Any, frozen: Any, batch: Any, keys: jax.Array) -> tuple:
    unet = bind(UNet, CONFIG, params["unet"])
    network = lambda x, t: unet(x, t, Conditioning(batch["context"]))
    return denoising_loss(network, SCHEDULE, batch["latents"], keys, DiffusionOptions(min_snr=5.0))


def unet_batch(step: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(step).standard_normal
    return {"latents": draw((ROWS, 4, 4, 4), np.float32), "context": draw((ROWS, 3, 8), np.float32)}


def line_loss(params: Any, frozen: Any, batch: Any, keys: jax.Array) -> tuple:
    noise = jax.vmap(lambda key: jax.random.normal(key, (16,)))(keys)
    answer = jnp.tanh((batch["x"] + 0.1 * noise) @ params["line"]["kernel"]) + params["line"]["bias"] + frozen["shift"]
    return ((answer - batch["y"]) ** 2).mean(), {}


def line_batch(step: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(step).standard_normal((ROWS, 16)).astype(np.float32)
    return {"x": x, "y": x[:, ::2] + 1}


def line_run(mesh: Mesh | None, rows: slice = slice(None), steps: int = STEPS, **options: Any) -> tuple:
    """The step and its last state; ``rows`` are those that this process reads."""
    optimiser = make(OptimiserConfig(learning_rate=0.05), steps)
    params = {"line": {"kernel": np.eye(16, 8, dtype=np.float32), "bias": np.zeros(8, np.float32)}}
    step, state = make_step(line_loss, optimiser, seed=5, mesh=mesh, **options), start(params, optimiser)
    frozen = {"shift": np.full(8, 0.1, np.float32)}
    if mesh is not None:
        state, frozen = shard_state(mesh, state), replicate(mesh, frozen)
    for i in range(steps):
        batch = {name: array[rows] for name, array in line_batch(i).items()}
        state, metrics = step(state, frozen, batch if mesh is None else shard_batch(mesh, batch))
    return step, state, {name: float(value) for name, value in metrics.items()}


# ---------------------------------------------------------------------------------------------------------------------
# What is said of a run


def farthest(a: Any, b: Any) -> float:
    """The largest difference of two trees of arrays."""
    differences = jax.tree.map(lambda x, y: float(np.abs(np.asarray(x, np.float64) - np.asarray(y)).max()), a, b)
    return max(jax.tree.leaves(differences))


def share(tree: Any) -> float:
    """The part of the bytes of a tree that the first device holds."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves) / sum(leaf.nbytes for leaf in leaves)


def unet_run(mesh: Mesh | None) -> dict[str, Any]:
    """A few steps of the U-Net, and the collectives of the compiled program. (Compiling Adam takes longer.)"""
    optimiser = optax.sgd(0.1, momentum=0.9)
    state = start({"unet": init(UNet, CONFIG, 0)}, optimiser)
    place = (lambda batch: batch) if mesh is None else (lambda batch: shard_batch(mesh, batch))
    state = state if mesh is None else shard_state(mesh, state)
    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_step(unet_loss, optimiser, seed=3, mesh=mesh).lower(state, {}, place(unet_batch(0))).compile()
    losses = []
    for i in range(STEPS):
        state, metrics = step(state, {}, place(unet_batch(i)))
        losses.append(float(metrics["loss"]))
    return {
        "state": state,
        "losses": losses,
        "collectives": Counter(COLLECTIVE.findall(step.as_text())),
        "share": share(state),
        "kept": layout == jax.tree.map(lambda leaf: leaf.sharding, state),
    }


def training() -> dict[str, Any]:
    """One device against data parallel and fully sharded."""
    alone, report = unet_run(None), {"arrays": len(jax.tree.leaves(init(UNet, CONFIG, 0)))}
    for name, mesh in (("data", make_mesh()), ("fsdp", make_mesh(data=1, fsdp=8))):
        run = unet_run(mesh)
        report[name] = {key: run[key] for key in ("collectives", "share", "kept")}
        report[name]["parameters"] = farthest(run["state"].params, alone["state"].params)
        report[name]["moved"] = farthest(run["state"].params, {"unet": init(UNet, CONFIG, 0)})
        report[name]["average"] = farthest(run["state"].average, alone["state"].average)
        report[name]["losses"] = farthest(run["losses"], alone["losses"])
    return report


def lines() -> dict[str, Any]:
    """The small regression on every shape of mesh, whole and in microbatches; how often its step was compiled."""
    _, alone, metrics = line_run(None)
    report = {"loss": metrics["loss"]}
    for data, fsdp, accumulate in ((8, 1, 1), (1, 8, 1), (2, 4, 2), (-1, 2, 1)):
        step, state, metrics = line_run(make_mesh(data, fsdp), accumulate=accumulate)
        far = max(farthest(state.params, alone.params), farthest(state.average, alone.average))
        report[f"{data} x {fsdp}, {accumulate}"] = [far, metrics["loss"], step._cache_size(), share(state)]
    return report


PHOTO = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
HOLE = np.zeros((16, 16), bool)
HOLE[:8] = True


def sampler(picture: Picture | None = None) -> tuple[Any, dict, Inputs, dict]:
    """``ldm.generate``'s programs, and parameters, inputs and static arguments for a tiny model and eight pictures."""
    bundle = random_bundle(configs=TINY, size=(16, 16))
    plan = make_plan(TINY.schedule, "euler_a", "leading", 3, strength=picture and picture.strength)
    said = plain_texts(bundle, [""] * 8 + [f"{n} dogs" for n in range(8)], 0)
    begin = start_of(bundle, 8, None, picture, None, None)
    inputs = Inputs(said, begin, guidance_of(bundle, 5.0), np.uint32(3), np.arange(8, dtype=np.int32), plan)
    static = {"configs": TINY, "sampler": "euler_a", "output": "latents", "noise": "steps", "progress": False}
    return program.draw, dict(bundle.params), inputs, static


def sampling() -> dict[str, Any]:
    """Pictures over eight devices against one device: from noise, from a picture, from a picture with a hole."""
    mesh, reports = make_mesh(), {}
    holes = np.stack([np.roll(HOLE, n, axis=0) for n in range(8)])
    pictures = {"noise": None, "image": Picture(PHOTO, None, 0.7), "hole": Picture(PHOTO, holes, 0.7)}
    for name, picture in pictures.items():
        run, params, inputs, static = sampler(picture)
        alone = run(params, inputs, **static)[0]
        everywhere = replicate(mesh, inputs)
        rows = {key: shard_batch(mesh, getattr(inputs.start, key)) for key in ("latents", "origin", "known", "mask")}
        cut = everywhere._replace(start=everywhere.start._replace(**rows), indices=shard_batch(mesh, inputs.indices))
        latents = run(replicate(mesh, params), cut, **static)[0]
        outside = np.broadcast_to(np.asarray(inputs.start.mask) == 0, alone.shape)
        reports[name] = {
            "difference": farthest(latents, alone),
            "share": share(latents),
            "size": float(np.std(alone)),
            "kept": int(outside.sum()),
            "outside": bool((np.asarray(latents) == np.asarray(alone))[outside].all()),
        }
    return reports


def randomness() -> dict[str, Any]:
    """Of every sampler with noise, and of the noise itself, over eight devices against one.

    On a mixture of Gaussians; with a part that is known, as in inpainting.
    """
    mesh, reports = make_mesh(), {}
    shape, indices = (8, 8, 2), np.arange(8, dtype=np.int32)
    known = np.random.default_rng(1).standard_normal((8, *shape), np.float32)
    mask = (np.arange(8) < 4).astype(np.float32)[None, :, None, None]
    ways = {"steps": lambda keys, plan: noise_per_step(keys, shape), "brownian": None}
    ways["brownian"] = lambda keys, plan: brownian_noise(keys, shape, plan.levels[0])

    def images(numbers: jax.Array, kept: jax.Array, plan: Plan, name: str, way: str) -> tuple[jax.Array, jax.Array]:
        keys = image_keys(5, numbers)
        noise_at, start = ways[way](keys, plan), unit_noise(keys, START, shape)
        fresh = noise_at(1, 0, plan.levels[1], plan.levels[2])
        held = keep_known(mixture, kept, mask)
        return jnp.stack([start, fresh], 1), sample(SAMPLERS[name], held, plan.scale * start, plan, noise_at)

    noisy = [name for name, sampler in SAMPLERS.items() if sampler.eta is not None or name in ("ddpm", "lcm")]
    for name in noisy:
        for way in ways if name in ("dpmpp_sde", "dpmpp_2m_sde") else ("steps",):
            plan = make_plan(NoiseSchedule(), name, "karras", 6, eta=None if SAMPLERS[name].eta is None else 1.0)
            run = jax.jit(functools.partial(images, name=name, way=way))
            noise, one = run(indices, known, plan)
            cut_noise, cut = run(*shard_batch(mesh, (indices, known)), replicate(mesh, plan))
            reports[f"{name}, {way}"] = {
                "bits": np.array_equal(noise, cut_noise),
                "difference": farthest(cut, one),
                "share": share(cut),
                "size": float(np.std(one)),
            }
    return reports


def together(coordinator: str, processes: str, process: str) -> dict[str, Any]:
    """One of several processes that train together, each reading its own rows."""
    index, count = distributed(coordinator, int(processes), int(process))
    rows = slice(index * ROWS // count, (index + 1) * ROWS // count)
    _, state, metrics = line_run(make_mesh(data=1, fsdp=count), rows)
    gather = lambda leaf: np.asarray(process_allgather(leaf, tiled=True)).tolist()
    return {
        "process": [index, count, jax.process_count(), len(jax.devices())],
        "params": jax.tree.map(gather, state.params),
        "loss": metrics["loss"],
        "share": share(state),
    }


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
