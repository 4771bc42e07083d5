"""This project as a worker: what users call (``weights_convert.load``, ``ldm.generate``) and the programs below them.

Shapes: B rows, h w latent size, L = 77 tokens, E width of the context.
"""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np

from bench.workers.protocol import Ask, Prepared, serve, timed

COMPILED, CACHED = "/jax/core/compile/backend_compile_duration", "/jax/compilation_cache/cache_hits"
PARTS = {"text": ("text",), "unet": ("unet",), "decode": ("vae",), "encode": ("vae",)}
_seen: Counter = Counter()


@cache
def listen() -> None:
    """Counts JAX's compilations from now on, and apart from them those that a cache saved."""
    import jax

    def compiled(event: str, seconds: float, **_: Any) -> None:
        if event == COMPILED:
            _seen.update({"requests": 1, "seconds": seconds})

    jax.monitoring.register_event_duration_secs_listener(compiled)
    jax.monitoring.register_event_listener(lambda event, **_: _seen.update([event]))


def counters() -> dict[str, Any]:
    """Programs compiled so far in this process, those taken from a cache left out, and the time of both."""
    import jax

    stats = jax.devices()[0].memory_stats() or {}
    known = {"compiles": _seen["requests"] - _seen[CACHED], "compile_total_s": round(_seen["seconds"], 2)}
    peak = stats.get("peak_bytes_in_use")
    return known | ({} if peak is None else {"device_peak_mb": round(peak / 1e6, 1)})


def about() -> dict[str, str]:
    """Versions; JAX's devices are started."""
    import flax
    import jax

    import ldm  # noqa: F401
    import weights_convert  # noqa: F401

    listen()
    return {"peer": "ldm", "jax": jax.__version__, "flax": flax.__version__, "device": jax.devices()[0].device_kind}


@cache
def bundle_of(model: str, dtype: str, parts: tuple[str, ...] | None = None) -> Any:
    """The bundle of a folder: the whole of it as users load it, or some parts alone."""
    import jax

    import weights_convert

    if parts is None:
        bundle = weights_convert.load(model, dtype)
    else:
        from weights_convert.engine import convert
        from weights_convert.load import find

        found = find(model)
        bundle = replace(found.bundle, params={part: convert(found.parts[part], dtype) for part in parts})
    jax.block_until_ready(bundle.params)
    return bundle


_started: dict[str, Any] = {}


def as_the_command(ask: Ask) -> Any:
    """The bundle of a folder as ``ldm generate`` loads it, once: programs are made ready meanwhile, and kept."""
    import weights_convert
    from ldm.ahead import compile_ahead
    from ldm.startup import cache_compilations

    if ask["model"] not in _started:
        cache_compilations()
        prompts, size = [ask["prompt"]] * ask["batch"], tuple(ask["size"])
        ready = lambda found: compile_ahead(found, prompts, ask["dtype"], size=size)
        _started[ask["model"]] = weights_convert.load(ask["model"], ask["dtype"], meanwhile=ready)
    return _started[ask["model"]]


def load(ask: Ask) -> Any:
    """The whole model."""
    return bundle_of(ask["model"], ask["dtype"])


def noise(*shape: int) -> Any:
    """Unit Gaussian numbers on the device."""
    import jax

    return jax.device_put(np.random.default_rng(0).standard_normal(shape, np.float32))


def of_program(jitted: Any, *args: Any, **static: Any) -> Prepared:
    """One compiled program as the work, with what its compilation took and the temporaries that it needs."""
    import jax

    compiled, seconds = timed(jitted.lower(*args, **static).compile)
    notes = {"compile_s": seconds, "temporaries_mb": round(compiled.memory_analysis().temp_size_in_bytes / 1e6, 1)}
    return Prepared(lambda: jax.block_until_ready(compiled(*args)), notes)


def text(bundle: Any, ask: Ask) -> Prepared:
    """Token ids [1, B, 1, L] -> states [1, B, L, E]."""
    from ldm.inputs import plain_texts
    from ldm.program import contexts_alone

    texts = plain_texts(bundle, ["", *[ask["prompt"]] * (ask["batch"] - 1)], 0)
    return of_program(contexts_alone, bundle.params, texts, configs=bundle.configs)


def unet(bundle: Any, ask: Ask) -> Prepared:
    """Latents [B, h, w, 4], a timestep, context [B, L, E] -> the network's answer."""
    import jax

    from ldm.bundle import module
    from ldm.conditioning import Conditioning
    from ldm.program import IN_TURN

    width, height = ask["size"]
    x = noise(ask["batch"], height // 8, width // 8, 4).astype(ask["dtype"])
    context = noise(ask["batch"], 77, bundle.configs.unet.context_dim).astype(ask["dtype"])

    def call(params: Any, x: Any, t: Any, context: Any) -> Any:
        return module(bundle.configs, params, "unet")(x, t, Conditioning(context))

    return of_program(jax.jit(call, compiler_options=IN_TURN), bundle.params, x, np.float32(500), context)


def decode(bundle: Any, ask: Ask) -> Prepared:
    """Latents [B, h, w, 4] -> pictures [B, H, W, 3]."""
    from ldm.program import decoded

    width, height = ask["size"]
    z = noise(ask["batch"], height // 8, width // 8, 4)
    return of_program(decoded, {"vae": bundle.params["vae"]}, z, configs=bundle.configs)


def encode(bundle: Any, ask: Ask) -> Prepared:
    """Pictures [B, H, W, 3] -> latents [B, h, w, 4]."""
    from ldm.program import encoded

    width, height = ask["size"]
    pictures = noise(ask["batch"], height, width, 3)
    return of_program(encoded, {"vae": bundle.params["vae"]}, pictures, configs=bundle.configs)


def picture(bundle: Any, ask: Ask) -> Prepared:
    """Text to B pictures. Where memory is asked for, parts are let go as soon as they are done, as by ``ldm generate``;
    it can then run only once."""
    import ldm

    numbers = {name: ask[name] for name in ("steps", "guidance", "size")} | {"release": ask["question"] == "memory"}
    run = partial(ldm.generate, bundle, [ask["prompt"]] * ask["batch"], progress=False, **numbers)
    return Prepared(run)


def train(ask: Ask) -> Prepared:
    """What the compiled training step says of itself; on an accelerator also its time."""
    from bench.training import prepared

    return prepared(ask)


CALLS: dict[str, Callable[[Any, Ask], Prepared]] = {
    "text": text,
    "unet": unet,
    "decode": decode,
    "encode": encode,
    "picture": picture,
    "memory": picture,
}


def prepare(ask: Ask) -> Prepared:
    """Loads the parts that a question needs, and compiles."""
    listen()
    if ask["question"] == "train":
        return train(ask)
    if ask["question"] == "start":
        return picture(as_the_command(ask), ask)
    bundle = bundle_of(ask["model"], ask["dtype"], PARTS.get(ask["question"]))
    return CALLS[ask["question"]](bundle, ask)


if __name__ == "__main__":
    serve(sys.modules[__name__])
