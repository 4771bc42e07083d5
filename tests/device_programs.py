"""Drawing on eight virtual devices, in processes of its own: ``python device_programs.py NAME`` prints JSON."""

import json
import re
import sys
from typing import Any

import jax
import numpy as np
from mesh_programs import COLLECTIVE, HOLE, PHOTO, TINY

import ldm
from ldm import program
from ldm.acceleration.shortcuts import Shortcuts
from ldm.adapters.controlnet import ControlNet, ControlNetConfig, Net
from ldm.adapters.t2i_adapter import T2IAdapter, T2IAdapterConfig, last_blocks
from ldm.inputs import guidance_of, plain_texts
from ldm.models.layers import shapes
from ldm.request import Inputs, dealt
from ldm.samplers import make_plan
from ldm.starts import start_of
from weights_convert.tiny import random_bundle

PROMPTS, NEGATIVE = [f"{n} dogs" for n in range(8)], [f"no {n}" for n in range(8)]


def controls() -> list[ldm.Control]:
    """A ControlNet with a hint for each of eight pictures, and a T2I-Adapter with one for all; random weights."""
    rng = np.random.default_rng(4)
    adapter = T2IAdapterConfig((32,), last_blocks(1, 1), (False,), blocks=1, unshuffle=TINY.vae.factor)
    made = []
    for model, config in ((ControlNet, ControlNetConfig(TINY.unet, widths=(4, 8))), (T2IAdapter, adapter)):
        specs = shapes(model, config).items()
        arrays = {n: rng.standard_normal(s.shape, np.float32) * np.prod(s.shape[:-1]) ** -0.5 for n, s in specs}
        made.append(Net(config, arrays))
    return [ldm.Control(made[0], PHOTO, prompts_only=True), ldm.Control(made[1], PHOTO[0], scale=0.5, end=0.5)]


def generating() -> dict[str, Any]:
    """``ldm.generate`` on four and on eight devices against one."""
    bundle = random_bundle(configs=TINY, size=(16, 16))
    context = ldm.encode_prompts(bundle, PROMPTS, NEGATIVE, clip_skip=0)
    ways = {
        "texts": {},
        "scheduled": {"syntax": True, "negative": ["[a:b:0.5] (c:1.2)"] * 8},
        "context": {"context": context},
        "hole": {"image": PHOTO, "mask": HOLE},
        "brownian": {"noise": "brownian", "sampler": "dpmpp_2m_sde"},
        "memory": {"shortcuts": Shortcuts(every=2, blocks=1)},
        "controls": {"controls": controls()},
    }
    report, many = {}, ldm.on_devices(bundle, 8)
    for name, options in ways.items():
        options = {"negative": NEGATIVE, "sampler": "euler_a", "output": "latents", "steps": 3} | options
        alone, *others = (
            ldm.generate(b, PROMPTS, progress=False, **options)
            for b in (bundle, many, *([ldm.on_devices(bundle, 4)] if name == "texts" else []))
        )
        report[name] = [max(float(np.abs(other - alone).max()) for other in others), float(np.std(alone))]
    pictures = [ldm.generate(b, PROMPTS, steps=2, progress=False).astype(int) for b in (bundle, many)]
    report["levels"] = int(np.abs(pictures[0] - pictures[1]).max())
    report["decoded"] = int(np.abs(ldm.decode(many, alone).astype(int) - ldm.decode(bundle, alone)).max())
    return report


def programs() -> dict[str, Any]:
    """The noise to the bit, and what the compiled U-Net's program says to other devices."""
    bundle = random_bundle(configs=TINY, size=(16, 16))
    many = ldm.on_devices(bundle, 8)
    plan = make_plan(TINY.schedule, "euler_a", "leading", 3)
    said = plain_texts(bundle, [*NEGATIVE, *PROMPTS], 0)
    numbers = guidance_of(bundle, 5.0), np.uint32(3), np.arange(8, dtype=np.int32)
    inputs = Inputs(said, start_of(bundle, 8, None, None, None, None), *numbers, plan)
    cut = inputs._replace(texts=dealt(said, 8))
    _, alone = program.begin({"text": bundle.params["text"]}, inputs, configs=TINY)
    texts, state = program.begin({"text": many.params["text"]}, cut, configs=TINY, mesh=many.mesh)
    static = {"configs": TINY, "sampler": "euler_a", "noise": "steps", "mesh": many.mesh}
    given = {"unet": many.params["unet"]}, cut._replace(texts=texts), state, plan.first, plan.steps
    compiled = program.advance.lower(*given, **static).compile()
    text = compiled.as_text()
    return {
        "bits": bool((np.asarray(state.x) == np.asarray(alone.x)).all()),
        "shards": [shard.data.shape[0] for shard in state.x.addressable_shards],
        "collectives": len(COLLECTIVE.findall(text)),
        "partitions": int(re.search(r"num_partitions=(\d+)", text)[1]),
        "devices": len(jax.devices()),
    }


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
