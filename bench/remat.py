"""Memory of a training step by what its gradient keeps: ``python -m bench.remat [NAMES…] [--batch N]``.

The gradient of the U-Net's loss at Stable Diffusion 1.5's size, 64x64 latents, float32, compiled from shapes alone for
the platform at hand; nothing is run. A row of JSON for each policy of ``ldm.training.step.REMAT``:

    kept_gb   what the way back is given by the way there, beside the weights: a matter of the program, not the compiler
    temp_gb   buffers that the compiled program needs beside its arguments and results
"""

import argparse
import json
import time
from typing import Any

import jax
import jax.numpy as jnp

from ldm.conditioning import Conditioning
from ldm.models.layers import bind, shapes
from ldm.models.unet import UNet, UNetConfig
from ldm.program import IN_TURN
from ldm.training.parts import TRAINING
from ldm.training.step import REMAT, rematerialised

CONFIG = UNetConfig()


def loss(params: Any, frozen: Any, batch: Any, keys: Any) -> tuple[Any, dict]:
    """Mean square of the error; all that it needs is in ``batch``."""
    x, t, context, wanted = batch
    answer = bind(UNet, CONFIG, params)(x, t, Conditioning(context), hooks=TRAINING)
    return jnp.mean((answer - wanted) ** 2), {}


def size(tree: Any) -> int:
    """Bytes of arrays or their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def measured(remat: str, batch: int) -> dict[str, Any]:
    """A row."""
    params, spec = shapes(UNet, CONFIG), lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    data = spec(batch, 64, 64, 4), spec(batch), spec(batch, 77, CONFIG.context_dim), spec(batch, 64, 64, 4)
    own = rematerialised(loss, remat)
    run = lambda params, data: own(params, None, data, None)[0]
    back = jax.eval_shape(lambda params, data: jax.vjp(lambda p: run(p, data), params)[1], params, data)
    start = time.perf_counter()
    options = IN_TURN if jax.default_backend() == "cpu" else None
    compiled = jax.jit(jax.value_and_grad(run)).lower(params, data).compile(compiler_options=options)
    row = {"question": "remat", "platform": jax.default_backend(), "remat": remat, "batch": batch}
    row |= {"kept_gb": round((size(back) - size(params)) / 1e9, 3)}
    row |= {"temp_gb": round(compiled.memory_analysis().temp_size_in_bytes / 1e9, 3)}
    return row | {"compile_s": round(time.perf_counter() - start, 1)}


def main() -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(REMAT)}; all if none is named")
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    for name in args.names or REMAT:
        print(json.dumps(measured(name, args.batch)), flush=True)


if __name__ == "__main__":
    main()
