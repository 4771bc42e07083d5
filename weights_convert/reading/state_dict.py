"""From the object that a PyTorch file holds to one flat dict of tensors by dotted name.

A state dict is flat already. Around it there may be a training checkpoint ({"state_dict": {...}, "global_step": ...}),
and instead of it nested dicts ({"model": {...}}), lists, or modules whose tensors are attributes. All of these become
dotted paths. What is neither a tensor nor a plain value is left out.
"""

from collections.abc import Iterator

from weights_convert.reading.errors import CheckpointError, kind, quoted
from weights_convert.reading.pickle_machine import Record
from weights_convert.reading.torch_objects import MODULES, Strided

MOST_NODES = 200_000
MOST_DEPTH = 64
MOST_NAME = 512
MODULE_PARTS = ("_parameters", "_buffers", "_modules")  # where a pickled torch.nn.Module keeps them
PLAIN = str | int | float | bool | None


def named_tensors(root: object) -> tuple[dict[str, Strided], dict[str, object]]:
    """The tensors in ``root`` by dotted name, and the plain values by theirs; CheckpointError if it has no names."""
    extras: dict[str, object] = {}
    for _ in range(MOST_DEPTH):
        if not (isinstance(root, dict) and isinstance(root.get("state_dict"), dict)):
            break
        extras |= {key: value for key, value in root.items() if isinstance(key, str) and isinstance(value, PLAIN)}
        root = root["state_dict"]
    if not (isinstance(root, dict | list) or is_module(root)):
        raise CheckpointError(f"it holds {kind(root)} instead of a dictionary of named tensors")
    tensors: dict[str, Strided] = {}
    for name, leaf in leaves(root):
        table = tensors if isinstance(leaf, Strided) else extras
        if name in tensors:
            raise CheckpointError(f"two tensors have the name {quoted(name)} once nested names are joined")
        table[name] = leaf
    return tensors, extras


def leaves(root: object) -> Iterator[tuple[str, object]]:
    """Every tensor and plain value under ``root`` with its dotted name, in the order of the file.

    Values may be shared, so a small file can describe a tree without end: its depth and its size are bounded.
    """
    open_nodes = [("", iter([("", root)]))]
    for _ in range(MOST_NODES):
        if not open_nodes:
            return
        name, below = open_nodes[-1]
        key, node = next(below, (None, None))
        if key is None:
            open_nodes.pop()
        elif isinstance(node, Strided | PLAIN):
            yield joined(name, key), node
        else:
            open_nodes.append((joined(name, key), children(node)))
        if len(open_nodes) > MOST_DEPTH:
            raise CheckpointError(
                f"values are nested more than {MOST_DEPTH} deep, or inside themselves, at {quoted(name)}"
            )
    raise CheckpointError(f"it holds more than {MOST_NODES} values once shared ones are counted each time")


def children(node: object) -> Iterator[tuple[str, object]]:
    """The named things in a dict, a list or a module; nothing for anything else. The name "" adds no level."""
    if isinstance(node, dict):
        return ((str(key), value) for key, value in node.items() if isinstance(key, str | int))
    if isinstance(node, list | tuple):
        return ((str(index), value) for index, value in enumerate(node))
    if is_module(node):
        return (("" if key in MODULE_PARTS else key, value) for key, value in node.state.items() if type(key) is str)
    return iter(())


def is_module(node: object) -> bool:
    """Whether this is a pickled torch.nn.Module or TorchScript object with its attributes."""
    return isinstance(node, Record) and node.name.startswith(MODULES) and isinstance(node.state, dict)


def joined(name: str, key: str) -> str:
    """``name.key``, or the one of them that is not empty."""
    path = f"{name}.{key}" if name and key else name or key
    if len(path) > MOST_NAME:
        raise CheckpointError(f"a tensor's name is longer than {MOST_NAME} characters: {quoted(path)}")
    return path
