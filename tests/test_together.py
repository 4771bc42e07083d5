"""Everything that can be put beside a model, at once: a LoRA, two ControlNets, two image prompts, a new word."""

import numpy as np
import pytest
from lora_files import numbers, relative
from random_parts import noise_picture, random_params

import ldm
from ldm import Control, ImagePrompt, program
from ldm.adapters import lora as loras
from ldm.adapters.controlnet import ControlNet, ControlNetConfig, Net
from ldm.adapters.image_prompt import Adapter
from ldm.adapters.ip_adapter import IPAdapter, IPAdapterConfig

pytestmark = pytest.mark.optimised  # orders are compared
WORD = numbers(0, 2, 64)
ALL = ("lora", "edges", "depth", "base", "full", "word")


@pytest.fixture(scope="module")
def draw(least, least_with_image):
    """(what is there, {its scale}) -> latents. A word has no scale: it is in the prompt, or it is not."""
    unet = least.configs.unet
    kernel = "encoder.down.0.attn.0.blocks.0.cross_attn.q.kernel"
    wide, out = least.params["unet"][kernel].shape
    change = {"unet": loras.changes_of({kernel: loras.LowRank(numbers(3, wide, 2), numbers(4, 2, out))}, 1.0)}
    own = ControlNetConfig(unet, widths=(4, 8, 8, 8))
    nets = {name: Net(own, random_params(ControlNet, own, seed)) for seed, name in enumerate(("edges", "depth"))}
    vision, tower, adapters = least_with_image.configs.image, least_with_image.params["image"], {}
    for kind, more in {"base": {"image_dim": 48, "tokens": 2}, "full": {"image_dim": 64, "tokens": 17}}.items():
        config = IPAdapterConfig(unet, kind, **more)
        adapters[kind] = Adapter(config, random_params(IPAdapter, config, 3), vision, tower)

    def run(names=ALL, **said: float) -> np.ndarray:
        scale, model = dict.fromkeys(ALL, 0.5) | said, least
        for name in names:
            model = ldm.with_word(model, "<toy>", WORD) if name == "word" else model
            model = ldm.with_lora(model, change, scale[name]) if name == "lora" else model
        controls = [Control(nets[n], noise_picture(n == "edges"), scale[n]) for n in names if n in nets]
        shown = [ImagePrompt(adapters[n], noise_picture(n == "base"), scale[n]) for n in names if n in adapters]
        prompt = "a <toy>" if "word" in names else "a toy"
        more = {"steps": 3, "output": "latents", "progress": False}
        return ldm.generate(model, prompt, controls=controls, image_prompts=shown, **more)

    return run


def test_the_whole_stack_is_one_program_for_all_scales(draw):
    before = program.advance._cache_size()
    whole = draw()
    assert program.advance._cache_size() == before + 1
    for name in ALL[:-1]:
        assert relative(draw(**{name: 0.9}), whole) > 1e-3, f"{name} counts"
    assert program.advance._cache_size() == before + 1


def test_the_stack_is_the_same_in_any_order(draw):
    assert relative(draw(ALL[::-1]), draw()) < 1e-5  # not 0: sums are taken in another order
