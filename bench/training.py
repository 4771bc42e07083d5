"""What a training step costs at Stable Diffusion 1.5's sizes: time where there is an accelerator, memory and flops
from the compiled program everywhere.

    full        the whole U-Net learns                          frozen: text tower
    controlnet  a ControlNet learns beside a frozen U-Net       frozen: U-Net, text tower       (arXiv:2302.05543)

Claim 17 of the course: ControlNet's paper, section 3.3, says that training one takes 23 % more GPU memory and 34 % more
time a step than training Stable Diffusion without it. ``of`` is where a way of training is added.

Shapes: B examples, h w latent size, L = 77 tokens.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from bench.models import FAMILIES
from bench.profiling import flops
from bench.workers.protocol import Ask, Prepared, timed
from ldm.adapters.controlnet import ControlNet, ControlNetConfig
from ldm.bundle import MODELS, Configs
from ldm.conditioning import Conditioning
from ldm.models.layers import bind, shapes
from ldm.models.text import TextTower
from ldm.models.unet import UNet
from ldm.training import losses, optimiser
from ldm.training.parts import TRAINING
from ldm.training.step import make_step, start


def full(configs: Configs, params: Any, frozen: Any, batch: Any, keys: Array) -> tuple[Array, dict]:
    """Denoising by a U-Net that learns."""
    cond = Conditioning(bind(TextTower, configs.text, frozen["text"])(batch["ids"]).context)
    unet = bind(UNet, configs.unet, params["unet"])
    network = lambda x, t: unet(x.astype(unet.conv_out.kernel.dtype), t, cond, hooks=TRAINING)
    return losses.denoising_loss(network, configs.schedule, batch["latents"], keys)


def controlnet(configs: Configs, params: Any, frozen: Any, batch: Any, keys: Array) -> tuple[Array, dict]:
    """Denoising by a U-Net that stays as it is, with the control that learns."""
    cond = Conditioning(bind(TextTower, configs.text, frozen["text"])(batch["ids"]).context)
    unet = bind(UNet, configs.unet, frozen["unet"])
    net = bind(ControlNet, ControlNetConfig(configs.unet), params["controlnet"])

    def network(x: Array, t: Array) -> Array:
        x = x.astype(unet.conv_out.kernel.dtype)
        return unet(x, t, cond, control=net(x, t, cond, batch["hint"], hooks=TRAINING), hooks=TRAINING)

    return losses.denoising_loss(network, configs.schedule, batch["latents"], keys)


WAYS: dict[str, Callable] = {"full": full, "controlnet": controlnet}


def of(how: str, configs: Configs, dtype: str) -> tuple[dict, dict]:
    """The abstract parameters that a way of training changes, and those that it leaves: (learned, frozen)."""
    part = lambda name: abstract(shapes(MODELS[type(getattr(configs, name))], getattr(configs, name)), dtype)
    if how == "full":
        return {"unet": part("unet")}, {"text": part("text")}
    learned = shapes(ControlNet, ControlNetConfig(configs.unet))
    return {"controlnet": learned}, {"unet": part("unet"), "text": part("text")}


def abstract(specs: dict, dtype: str) -> dict:
    """The same shapes in ``dtype``."""
    return {name: jax.ShapeDtypeStruct(spec.shape, dtype) for name, spec in specs.items()}


def batch_of(count: int, size: tuple[int, int], hint: bool) -> dict:
    """The shapes of a batch: latents [B, h, w, 4], ids [B, L], and a hint picture [B, H, W, 3]."""
    width, height = size
    batch = {"latents": jax.ShapeDtypeStruct((count, height // 8, width // 8, 4), jnp.float32)}
    batch["ids"] = jax.ShapeDtypeStruct((count, 77), jnp.int32)
    return batch | ({"hint": jax.ShapeDtypeStruct((count, height, width, 3), jnp.float32)} if hint else {})


def traced(ask: Ask) -> tuple[Any, tuple]:
    """The training step as JAX has traced it, and its abstract arguments (state, frozen, batch).

    Masters and averages are float32; the networks compute in the question's dtype, and frozen ones are stored in it.
    """
    configs, how = FAMILIES[ask["family"]].configs, ask["how"]
    adam = optimiser.make(optimiser.OptimiserConfig(learning_rate=1e-5), 1000)
    learned, frozen = of(how, configs, ask["dtype"])
    loss = lambda params, frozen, batch, keys: WAYS[how](configs, params, frozen, batch, keys)
    step = make_step(loss, adam, seed=0, dtype=ask["dtype"])
    state = jax.eval_shape(lambda params: start(params, adam), learned)
    args = (state, frozen, batch_of(ask["batch"], ask["size"], how == "controlnet"))
    return step.trace(*args), args


def figures(compiled: Any, program: Any, devices: int = 1) -> dict[str, float]:
    """Memory of one device in MB, as the compiler says, what is donated counted once; and GFLOP of the products.

    Those are counted in the traced ``program``, of all ``devices`` together: the compiler counts a loop's body once.
    """
    memory, work = compiled.memory_analysis(), flops(program.jaxpr.jaxpr).total() / devices
    mb = lambda count: round(count / 1e6, 1)
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    sizes = {"arguments_mb": mb(memory.argument_size_in_bytes), "temporaries_mb": mb(memory.temp_size_in_bytes)}
    return sizes | {"needed_mb": mb(kept + memory.temp_size_in_bytes), "gflop": round(work / 1e9, 1)}


def filled(specs: Any) -> Any:
    """Small numbers for a tree of shapes, made on the device by one program; zeros for whole numbers.

    They must not be all alike: a GPU multiplies zeros faster than numbers.
    """

    def one(spec: jax.ShapeDtypeStruct) -> Array:
        if not jnp.issubdtype(spec.dtype, jnp.floating):
            return jnp.zeros(spec.shape, spec.dtype)
        places = lax.iota(jnp.float32, int(np.prod(spec.shape)))
        return (0.02 * jnp.sin(12.9898 * places)).reshape(spec.shape).astype(spec.dtype)

    return jax.jit(lambda: jax.tree.map(one, specs))()


def prepared(ask: Ask) -> Prepared:
    """Compiles the step. On a CPU nothing runs at the real size: it would take minutes, and no one trains so."""
    program, args = traced(ask)
    compiled, seconds = timed(program.lower().compile)
    notes = {"compile_s": seconds, **figures(compiled, program), "executed": False}
    if jax.default_backend() == "cpu" and ask["family"] != "small":
        return Prepared(lambda: None, notes)
    state, frozen, batch = filled(args)
    kept = [state]

    def run() -> None:
        kept[0], metrics = compiled(kept[0], frozen, batch)
        np.asarray(metrics["loss"])

    return Prepared(run, notes | {"executed": True})
