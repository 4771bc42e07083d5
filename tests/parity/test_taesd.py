"""Our TAESD against ``AutoencoderTiny``, with random weights and, where the real files are at hand, with those.

Limit 1e-5: some 20 convolutions in float32; measured about 1e-6.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldm.models.taesd import TinyVAE
from weights_convert.tables import taesd as table

from . import oracle, ours
from .layouts import load_file
from .oracle import Tensor, agree, gaussian, nchw, nhwc

LIMIT = 1e-5
REAL = Path(__file__).parents[3] / "shared" / "data" / "taesd"


def original_names(model: Any) -> dict[str, Tensor]:
    """The names of the original files: no ``layers.``, and the decoder counted from the clamp before it."""
    shifted = {}
    for name, value in model.state_dict().items():
        part, _, index, rest = name.split(".", 3)
        shifted[f"{part}.{int(index) + (part == 'decoder')}.{rest}"] = value
    return shifted


def compare(title: str, model: Any, config: Any, params: dict) -> None:
    """Encoding and decoding; latents beyond +-3 so that the clamp is felt."""
    x, z = np.clip(gaussian(1, 2, 64, 96, 3), -1, 1), 3 * gaussian(2, 2, 8, 12, 4)
    want = nhwc(model.encode(nchw(x)).latents), nhwc(model.decode(nchw(z)).sample)
    agree(f"{title}, encoded", ours.run(TinyVAE, config, "encode")(params, x), want[0], LIMIT)
    agree(f"{title}, decoded", ours.run(TinyVAE, config, "decode")(params, z), want[1], LIMIT)


def test_random_weights_in_both_spellings():
    model = oracle.randomize(oracle.taesd(), 1)
    config = table.config_from_json(model.config, "the oracle")
    params = ours.convert(TinyVAE, config, ours.tensors(oracle.arrays(model)), table.layouts(config))
    original = ours.tensors(original_names(model))
    assert table.config_from_shapes(original) == config
    assert ours.same(ours.convert(TinyVAE, config, original, table.layouts(config)), params)
    compare("TAESD", model, config, params)


def test_real_weights():
    if not REAL.exists():
        pytest.skip("../shared/data/taesd is not there")
    files = {part: load_file(REAL / f"taesd_{part}.safetensors") for part in ("encoder", "decoder")}
    real = {f"{part}.{name}": value.float() for part, file in files.items() for name, value in file.items()}
    model = oracle.randomize(oracle.taesd())
    places = {name: real[original] for name, original in zip(model.state_dict(), original_names(model), strict=True)}
    model.load_state_dict(places)
    config = table.config_from_shapes(ours.tensors(real))
    params = ours.convert(TinyVAE, config, ours.tensors(real), table.layouts(config))
    compare("TAESD, real weights", model, config, params)
