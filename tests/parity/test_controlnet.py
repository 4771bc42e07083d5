"""Our ControlNet against diffusers', small, random weights everywhere (also where training begins at zero).

Limit 1e-5: float32 through some 60 layers; measured about 1e-6.
"""

import jax
import numpy as np

from ldm.adapters.controlnet import ControlNet, ControlNetConfig
from ldm.conditioning import Conditioning
from ldm.models.layers import bind
from weights_convert.tables import controlnet as table
from weights_convert.tables import unet

from . import oracle, ours
from .oracle import agree, gaussian, nchw, nhwc, torch

LIMIT = 1e-5


def test_control():
    from diffusers import ControlNetModel

    numbers = {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 24, "attention_head_dim": 4}
    model = oracle.randomize(ControlNetModel(**numbers, conditioning_embedding_out_channels=(8, 12, 16, 24)), 3).eval()
    config = ControlNetConfig(unet.config_from_json(model.config, "the oracle"), widths=(8, 12, 16, 24))
    layouts = [table.single_file(config), table.folder(config)]
    params = ours.convert(ControlNet, config, ours.tensors(oracle.arrays(model)), layouts)
    x, hint, context = gaussian(1, 2, 8, 16, 4), gaussian(2, 2, 64, 128, 3), gaussian(3, 2, 7, 24)
    t = np.array([1.0, 981.0], np.float32)
    with torch.no_grad():
        want = model(nchw(x), torch.from_numpy(t), torch.from_numpy(context), nchw(hint), return_dict=False)
    got = jax.jit(lambda p: bind(ControlNet, config, p)(x, t, Conditioning(context), hint))(params)
    assert len(got.skips) == len(want[0]) == 12
    for i, (a, b) in enumerate(zip(got.skips, want[0], strict=True)):
        agree(f"ControlNet, skip {i}", a, nhwc(b), LIMIT)
    agree("ControlNet, middle", got.middle, nhwc(want[1]), LIMIT)
