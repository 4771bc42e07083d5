"""``load_embedding``: a public textual-inversion file of any layout -> the word and its vectors.

string_to_param.*           A1111's and the original trainer's .pt, with the name in ``name``
<word>                      the diffusers library's .bin and .safetensors: one tensor, called by its word
emb_params                  InvokeAI's and kohya's
clip_l, clip_g              for SDXL's two towers: the one that is as wide as this model's is taken
"""

import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ldm.bundle import Bundle
from weights_convert.load import located
from weights_convert.reading import Checkpoint, LazyTensor, read_file

FILES = ("learned_embeds.safetensors", "learned_embeds.bin")
NAMELESS = {"*", "emb_params", "clip_l", "clip_g"}


class Embedding(NamedTuple):
    """word: what stands for it in a prompt; vectors [n, E] float32; note: what else the file says of itself."""

    word: str
    vectors: np.ndarray
    note: str = ""


def load_embedding(source: str | Path, bundle: Bundle, word: str | None = None) -> Embedding:
    """Reads a textual inversion for ``bundle``: a file, a folder that holds one, or a hub id.

    word: None: the file's own, or where it has none, the file's name. Raises ValueError in one sentence.
    """
    path = located(source)
    if path.is_dir():
        held = [path / name for name in FILES if (path / name).exists()]
        if not held:
            raise ValueError(f"{path}: holds none of {', '.join(FILES)}; name the file itself")
        path = held[0]
    bundle.require("text")
    checkpoint = read_file(path)
    try:
        name, tensor = chosen(checkpoint, bundle.configs.text.width)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    vectors = np.atleast_2d(tensor.read().astype(np.float32))
    return Embedding(word or name or path.stem, vectors, note(checkpoint))


def chosen(checkpoint: Checkpoint, width: int) -> tuple[str | None, LazyTensor]:
    """(the word or None, its tensor): the one that fits the tower. Raises ValueError."""
    tensors = checkpoint.tensors
    found = {re.sub(r"^(\d+\.)?(string_to_param\.)?(_parameters\.)?", "", name): t for name, t in tensors.items()}
    found.pop("string_to_token", None)
    found = {name: t for name, t in found.items() if not name.startswith("string_to_token.")}
    shaped = {name: t for name, t in found.items() if len(t.shape) in (1, 2) and 0 not in t.shape}
    if not shaped:
        raise ValueError(f"holds no embedding: its tensors are such as {', '.join(list(tensors)[:3]) or 'none'}")
    fitting = [name for name, tensor in shaped.items() if tensor.shape[-1] == width]
    if not fitting:
        widths = " and ".join(sorted({str(t.shape[-1]) for t in shaped.values()}))
        raise ValueError(f"its vectors are {widths} wide, and this model's text tower {width}: it is another family's")
    if len(fitting) > 1:
        raise ValueError(f"holds {len(fitting)} embeddings of this width, {', '.join(fitting[:4])}; one is expected")
    if others := sorted(set(shaped) - set(fitting)):
        warnings.warn(f"the embedding's {', '.join(others)} belong to towers that this model has not", stacklevel=4)
    own = fitting[0] if fitting[0] not in NAMELESS else None
    stated = checkpoint.extras.get("name")
    return own or (stated if isinstance(stated, str) and stated else None), shaped[fitting[0]]


def note(checkpoint: Checkpoint) -> str:
    """ "500 steps on v1-5-pruned", as far as the file says so."""
    steps, model = checkpoint.extras.get("step"), checkpoint.extras.get("sd_checkpoint_name")
    return " ".join(
        [f"{steps} steps"] * isinstance(steps, int) + [f"on {model}"] * (isinstance(model, str) and bool(model))
    )
