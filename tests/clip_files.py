"""CLIP's two towers, small and random, in every public layout: made here, for the tests that read them."""

import json
from dataclasses import replace

import numpy as np
from safetensors.numpy import save_file

from ldm.models.text import TextConfig
from ldm.models.vision import VisionConfig
from tests import checkpoint_files as make
from tests.public_files import spelt
from weights_convert.tables import text, vision
from weights_convert.tiny import random_params

READ = TextConfig(
    vocabulary=60, length=9, width=64, mlp_width=96, layers=2, heads=1, activation="gelu", projection=48, end_id=59
)
SEEN = VisionConfig(image=32, patch=8, width=128, mlp_width=160, layers=3, heads=2, activation="gelu", projection=48)
BARE = replace(SEEN, projection=0)
SCALE = {"logit_scale": np.array(4.6, np.float32)}
IDS = {"embeddings.position_ids": np.arange(17)[None]}


def numbers(config, seed):
    """Random parameters, as NumPy's arrays."""
    return {name: np.asarray(a) for name, a in random_params(config, np.random.default_rng(seed)).items()}


TEXT, IMAGE = numbers(READ, 1), numbers(SEEN, 2)


def prefixed(prefix, tensors):
    """``prefix`` before every name but the projection's."""
    return {name if "_projection." in name else prefix + name: array for name, array in tensors.items()}


def hub(config=SEEN, prefix="vision_model."):
    """The image tower in the hub's names."""
    params = {name: array for name, array in IMAGE.items() if config.projection or "projection" not in name}
    return prefixed(prefix, spelt(vision.folder(config), params) | IDS)


def original():
    """The image tower in OpenAI's and OpenCLIP's names."""
    return spelt(vision.openclip(SEEN), IMAGE)


def whole_hub():
    """Both towers in the hub's names."""
    return hub() | prefixed("text_model.", spelt(text.folder(READ), TEXT)) | SCALE


def whole_original():
    """Both towers in OpenAI's and OpenCLIP's names."""
    return original() | spelt(text.openclip(READ), TEXT) | SCALE


def scripted(tree):
    """The pickled object of a module compiled by PyTorch: tensors and other modules are its attributes."""
    fields = {key: scripted(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return make.name("__torch__.clip.model", "Module") + b")\x81" + make.pickled(fields | {"training": False}) + b"b"


def torchscript(tensors):
    """A TorchScript archive, as OpenAI's files are: modules within modules, and numbers of the model as tensors."""
    tensors = tensors | {"input_resolution": np.array(32), "context_length": np.array(9), "vocab_size": np.array(60)}
    tree = {}
    for name, saved in make.saved_arrays(tensors).items():
        *path, last = name.split(".")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = saved
    pickle = make.PROTO + scripted(tree) + make.STOP
    entries = make.torch_entries(None, (array.tobytes() for array in tensors.values()), pickle)
    return make.zip_bytes([*entries, make.Entry("archive/constants.pkl", make.PROTO + make.pickled(()) + make.STOP)])


def wrapped(tensors):
    """A zip file by PyTorch whose names have what a training run puts before them."""
    return make.torch_zip_bytes({f"module.{name}": array for name, array in tensors.items()})


def folder_of(path, kind, tensors, data):
    """A folder of the model hub."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"architectures": [kind]} | data))
    save_file(tensors, path / "model.safetensors")
    return path


def seen_json(config=SEEN):
    """The numbers of an image tower in a ``config.json``."""
    sizes = {"image_size": config.image, "patch_size": config.patch, "hidden_size": config.width}
    sizes |= {"intermediate_size": config.mlp_width, "num_hidden_layers": config.layers}
    return sizes | {"num_attention_heads": config.heads, "hidden_act": config.activation, "projection_dim": 48}


READ_JSON = {"vocab_size": 60, "max_position_embeddings": 9, "hidden_size": 64, "intermediate_size": 96}
READ_JSON |= {"num_hidden_layers": 2, "num_attention_heads": 1, "hidden_act": "gelu", "eos_token_id": 59}
CLIP_JSON = {"projection_dim": 48, "text_config": READ_JSON, "vision_config": seen_json()}


def written(path, content):
    """A file of bytes, or of arrays as safetensors."""
    path.write_bytes(content if isinstance(content, bytes) else make.safetensors_bytes(content))
    return path
