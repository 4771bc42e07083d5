"""A public T2I-Adapter in any spelling, as a part to convert. Nothing is read here but names and shapes."""

from ldm.adapters.t2i_adapter import T2IAdapter, T2IAdapterConfig
from weights_convert.engine import Part, Tensors
from weights_convert.tables import t2i_adapter as table

REFUSED = {  # a name that only they have: what they are
    "style_embedding": "a T2I style adapter, which makes words out of a CLIP image tower's output",
    "task_embedding": "a CoAdapter's fuser, which weighs the features of several adapters",
}


def t2i_part(what: str, tensors: Tensors, config: T2IAdapterConfig | None = None) -> Part:
    """A T2I-Adapter: full, light or SDXL's, of the original layouts or the folder's.

    ``what`` names the file, for errors. Without ``config`` (see ``weights_convert.tables.t2i_adapter``) its numbers
    come from the shapes. Raises ValueError for adapters of other kinds, by name.
    """
    tensors = table.without_wrapper(tensors)
    for name, kind in REFUSED.items():
        if name in tensors:
            raise ValueError(f"{what}: this is {kind}; of T2I-Adapters the full and the light ones are read")
    try:
        config = config or table.config_from_shapes(tensors)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    return Part(what, T2IAdapter, config, tensors, [table.folder(config), table.single_file(config)])
