"""Public checkpoints made by the tests, and how to compare and refuse bundles."""

import numpy as np
import pytest
from safetensors.numpy import save_file

import weights_convert
from weights_convert.engine import bare, to_public
from weights_convert.families import TEXT_FOLDER, UNET, VAE
from weights_convert.tables import autoencoder, text, unet

BUFFERS = {"betas": np.ones(3, np.float32), "model_ema.decay": np.ones((), np.float32)}


def single_file(bundle, path, change=None, metadata=None):
    """Writes the bundle as a Stable Diffusion 1.x single file, after ``change`` to its tensors."""
    c, tensors = bundle.configs, dict(BUFFERS)
    layouts = [
        (UNET, "unet", unet.single_file(c.unet)),
        (VAE, "vae", autoencoder.single_file(c.vae)),
        (TEXT_FOLDER + "text_model.", "text", text.folder(c.text)),
    ]
    for prefix, part, layout in layouts:
        for name, array in bundle.params[part].items():
            key = layout.public(name)
            public = np.ascontiguousarray(to_public(key, np.asarray(array)))
            in_conv = key.endswith(("proj_in.weight", "proj_out.weight")) and public.ndim == 2
            tensors[prefix + key] = public[..., None, None] if in_conv else public
    tensors[f"{TEXT_FOLDER}text_model.embeddings.position_ids"] = np.arange(77)[None]
    if change:
        change(tensors)
    save_file(tensors, path, metadata)
    return path


def spelt(layout, params):
    """Our parameters in a public spelling, the fused ones put together: {public name: array}."""
    tensors = {}
    for name, array in params.items():
        key = layout.public(name)
        tensors.setdefault(bare(key), {})[key] = np.ascontiguousarray(to_public(key, np.asarray(array)))
    return {name: np.concatenate([parts[key] for key in sorted(parts)]) for name, parts in tensors.items()}


def same(a, b, parts=("unet", "vae", "text")):
    """Whether two bundles hold the same numbers, bit for bit."""
    return all(
        a.params[p].keys() == b.params[p].keys()
        and all(np.array_equal(a.params[p][k], b.params[p][k]) for k in b.params[p])
        for p in parts
    )


def refused(source, *phrases, **options):
    """Asserts that loading fails with one sentence that has all ``phrases``."""
    with pytest.raises(ValueError) as caught:
        weights_convert.load(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for phrase in phrases:
        assert phrase in message, message
