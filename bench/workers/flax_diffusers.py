"""The last Flax diffusers as a worker, in an environment of its own (bench/requirements/flax-diffusers.txt).

Networks are jitted as its pages show. Weights come from the same folder, through its own conversion from PyTorch.
Shapes are PyTorch's outside ([B, C, h, w]) and channels last inside, as these classes have them.
"""

import sys
from functools import cache
from typing import Any

import numpy as np

from bench.workers.protocol import Ask, Prepared, serve

LENGTH = 77


def about() -> dict[str, str]:
    """Versions."""
    import diffusers
    import flax
    import jax
    from diffusers import FlaxStableDiffusionPipeline  # noqa: F401

    versions = {"diffusers": diffusers.__version__, "jax": jax.__version__, "flax": flax.__version__}
    return {"peer": "flax-diffusers", **versions, "device": jax.devices()[0].device_kind}


def counters() -> dict[str, Any]:
    """The device's peak memory, where it is not the host's."""
    import jax

    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {} if peak is None else {"device_peak_mb": round(peak / 1e6, 1)}


@cache
def part(model: str, dtype: str, name: str) -> tuple[Any, Any]:
    """A network and its parameters."""
    import jax.numpy as jnp
    from diffusers import FlaxAutoencoderKL, FlaxUNet2DConditionModel
    from diffusers.models.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax
    from safetensors.torch import load_file
    from transformers import FlaxCLIPTextModel

    if name == "text_encoder":
        module = FlaxCLIPTextModel.from_pretrained(f"{model}/{name}", from_pt=True, dtype=getattr(jnp, dtype))
        return module, as_dtype(module.params, dtype)
    kind = {"unet": FlaxUNet2DConditionModel, "vae": FlaxAutoencoderKL}[name]
    module = kind.from_config(kind.load_config(f"{model}/{name}"), dtype=getattr(jnp, dtype))
    state = load_file(f"{model}/{name}/diffusion_pytorch_model.safetensors")  # from_pretrained reads pickles only
    return module, as_dtype(convert_pytorch_state_dict_to_flax(state, module), dtype)


def as_dtype(params: Any, dtype: str) -> Any:
    """Parameters on the device, in ``dtype``."""
    import jax
    import jax.numpy as jnp

    return jax.tree_util.tree_map(lambda p: jnp.asarray(p, dtype), params)


def load(ask: Ask) -> Any:
    """All networks of a picture."""
    return [part(ask["model"], ask["dtype"], name) for name in ("text_encoder", "unet", "vae")]


def network(ask: Ask) -> tuple[Any, tuple]:
    """For a question about one network: the function of (params, …), and what it is given."""
    import jax.numpy as jnp

    (width, height), B, model, dtype = ask["size"], ask["batch"], ask["model"], ask["dtype"]
    noise = lambda *shape: jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)
    name = {"text": "text_encoder", "unet": "unet", "decode": "vae", "encode": "vae"}[ask["question"]]
    module, params = part(model, dtype, name)
    if name == "text_encoder":
        return lambda p, ids: module(ids, params=p)[0], (params, jnp.full((B, LENGTH), 49407))
    if name == "unet":
        x, context = noise(B, 4, height // 8, width // 8), noise(B, LENGTH, module.config.cross_attention_dim)
        return lambda p, x, t, c: module.apply({"params": p}, x, t, c).sample, (params, x, jnp.float32(500), context)
    if ask["question"] == "decode":
        z = noise(B, 4, height // 8, width // 8)
        return lambda p, z: module.apply({"params": p}, z, method=module.decode).sample, (params, z)
    encode = lambda p, x: module.apply({"params": p}, x, method=module.encode).latent_dist.mean
    return encode, (params, noise(B, 3, height, width))


def picture(ask: Ask) -> Prepared:
    """Text to pictures, by its pipeline, jitted whole."""
    import jax
    from diffusers import FlaxDDIMScheduler, FlaxStableDiffusionPipeline
    from transformers import CLIPTokenizer

    (text, text_params), (unet, unet_params), (vae, vae_params) = load(ask)
    tokenizer = CLIPTokenizer.from_pretrained(f"{ask['model']}/tokenizer", local_files_only=True)
    scheduler, state = FlaxDDIMScheduler.from_pretrained(f"{ask['model']}/scheduler", local_files_only=True)
    parts = {"vae": vae, "text_encoder": text, "tokenizer": tokenizer, "unet": unet, "scheduler": scheduler}
    pipe = FlaxStableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None)
    params = {"text_encoder": text_params, "unet": unet_params, "vae": vae_params, "scheduler": state}
    width, height = ask["size"]
    shape = (ask["steps"], height, width)
    jitted = jax.jit(lambda ids, p, key, scale, negative: pipe._generate(ids, p, key, *shape, scale, None, negative))
    negative = pipe.prepare_inputs([""] * ask["batch"])

    def run() -> None:
        ids = pipe.prepare_inputs([ask["prompt"]] * ask["batch"])
        np.asarray(jitted(ids, params, jax.random.PRNGKey(0), np.float32(ask["guidance"]), negative))

    return Prepared(run)


def prepare(ask: Ask) -> Prepared:
    """Loads and jits what a question needs; it compiles on the first run."""
    import jax

    if ask["question"] not in ("text", "unet", "decode", "encode"):
        return picture(ask)
    function, args = network(ask)
    jitted = jax.jit(function)
    return Prepared(lambda: jax.block_until_ready(jitted(*args)))


if __name__ == "__main__":
    serve(sys.modules[__name__])
