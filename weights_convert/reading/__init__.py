"""Reads public checkpoint files without PyTorch, and without running anything that they contain.

checkpoint = read_file("v1-5-pruned-emaonly.ckpt")     one file, in whatever container it is
checkpoint = read_component("sd-v1-4/unet", "diffusion_pytorch_model")     one file, or shards with an index
checkpoint.tensors["model.diffusion_model.out.2.bias"].read()              one tensor as a NumPy array
folder = fetch("stabilityai/sd-turbo")                                     a repository of the hub
"""

from weights_convert.reading.container import read_file
from weights_convert.reading.errors import CheckpointError
from weights_convert.reading.folder import read_component, read_sharded
from weights_convert.reading.hub import fetch
from weights_convert.reading.tensor import Checkpoint, LazyTensor

__all__ = ["Checkpoint", "CheckpointError", "LazyTensor", "fetch", "read_component", "read_file", "read_sharded"]
