"""Compiling what ``generate`` will run before there are weights: while they are being read, say.

bundle = weights_convert.load(source, meanwhile=lambda found: compile_ahead(found, "a red cube"))
"""

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from ldm import program, startup
from ldm.bundle import MODELS, Bundle, as_dtype
from ldm.generate import checked, numbered, plan_of
from ldm.inputs import guidance_of, texts, texts_of
from ldm.models.layers import shapes
from ldm.ready import prepare
from ldm.request import Inputs
from ldm.samplers import named
from ldm.starts import start_of


def compile_ahead(
    bundle: Bundle,
    prompts: str | list[str],
    dtype: Any = "float32",
    *,
    negative: str | list[str] = "",
    sampler: str = "ddim",
    size: tuple[int, int] | None = None,
    output: str = "uint8",
    noise: str = "steps",
    syntax: bool = False,
) -> None:
    """Makes ready the programs of ``generate`` with the same settings, from a bundle's configurations alone.

    Whatever is not named here is a run-time value, and compiles nothing. Where programs are not kept
    (``ldm.startup.cache_compilations``), nothing is done. Raises ValueError as ``generate`` does.
    """
    if startup.kept_in is None:
        return
    configs = bundle.configs
    parts = {part: getattr(configs, part) for part in ("unet", "vae", "text") if getattr(configs, part) is not None}
    empty = replace(bundle, params={part: specs(config, dtype) for part, config in parts.items()})
    sampler, spacing = named(sampler, "leading")
    prompts = checked(empty, prompts, output, noise, None, None)
    said = [*texts("negative", negative, len(prompts)), *prompts]
    plan = plan_of(empty, sampler, spacing, 1, None, None)
    values = Inputs(
        texts_of(empty, said, 0, plan, syntax, None),
        start_of(empty, len(prompts), size, None, None, None),
        guidance_of(empty, None),
        *numbered(0, 0, len(prompts)),
        plan,
    )
    static = {"configs": configs, "sampler": sampler, "noise": noise, "wrap": None, "mesh": None}
    for_one_device(
        empty.params, values, static | {"shortcuts": program.NO_SHORTCUTS, "nets": (), "adapters": ()}, output
    )


def specs(config: Any, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a part's parameters, in a dtype."""
    kind = as_dtype(dtype)
    return {name: jax.ShapeDtypeStruct(s.shape, kind) for name, s in shapes(MODELS[type(config)], config).items()}


def for_one_device(params: Any, values: Inputs, static: dict[str, Any], output: str) -> None:
    """The programs of ``ldm.program.draw``, in its order: what one returns says what the next one is given."""
    own = {"configs": static["configs"], "mesh": None}
    begin = prepare(program.BEGIN, {"text": params["text"]}, values, **own)
    said, state = jax.tree.map(lambda made: jax.ShapeDtypeStruct(made.shape, made.dtype), begin.out_info)
    step = np.int32(0)
    prepare(program.ADVANCE, {"unet": params["unet"]}, values._replace(texts=said), state, step, step, **static)
    vae = {} if output == "latents" else {"vae": params["vae"]}
    prepare(program.FINISH, vae, values.start, values.plan, state.x, output=output, **own)
