"""Controls in a run: identities, order, rules, intervals, several at once, and what cannot be."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import LEAST
from lora_files import relative
from random_parts import noise_picture as picture
from random_parts import random_params

import ldm
from ldm import program
from ldm.adapters.control import RULES, Control, levels_of, steering_of
from ldm.adapters.control_file import read_net, save_net
from ldm.adapters.controlnet import ControlNet, ControlNetConfig, Net
from ldm.adapters.t2i_adapter import T2IAdapter, T2IAdapterConfig, last_blocks
from ldm.conditioning import Conditioning
from ldm.models.layers import bind, init
from ldm.models.unet import UNetConfig
from ldm.samplers import make_plan
from ldm.schedule import NoiseSchedule
from weights_convert.tiny import random_bundle

pytestmark = pytest.mark.optimised  # bits are compared
SIZE = (64, 48)
DRAW = {"steps": 3, "output": "latents", "progress": False}


@pytest.fixture(scope="module")
def nets(least) -> list[Net]:
    """Two ControlNets and a T2I-Adapter for the least model."""
    config = ControlNetConfig(least.configs.unet, widths=(4, 8, 8, 8))
    adapter = T2IAdapterConfig((32,), last_blocks(1, 1), (False,), blocks=1)
    made = [Net(config, random_params(ControlNet, config, seed)) for seed in (1, 2)]
    return [*made, Net(adapter, random_params(T2IAdapter, adapter, 3))]


@pytest.fixture(scope="module")
def draw(least):
    """Latents of a prompt under controls."""
    return lambda *controls, prompt="a toy", **changes: ldm.generate(least, prompt, controls=controls, **DRAW | changes)


def test_untrained_and_at_scale_zero_it_is_the_base_to_the_bit(draw, nets):
    base, hint = draw(), picture(0)
    config = nets[0].config
    fresh = Net(config, init(ControlNet, config, 0))
    assert np.array_equal(draw(Control(fresh, hint)), base)
    for net in nets:
        assert np.array_equal(draw(Control(net, hint, scale=0)), base)
        assert np.array_equal(draw(Control(net, hint, start=0.99)), base), "a part of a step is none"
        assert not np.allclose(draw(Control(net, hint)), base, atol=1e-3)
    assert np.array_equal(draw(*[Control(net, hint, scale=0) for net in nets]), base)


@pytest.mark.long
def test_order_does_not_matter_and_an_absent_one_is_one_of_scale_zero(draw, nets):
    first, second, third = (Control(net, picture(i), scale=0.5 + 0.2 * i) for i, net in enumerate(nets))
    assert relative(draw(second, first), draw(first, second)) < 1e-5  # not 0: sums of products are fused
    assert np.array_equal(draw(first, replace(second, scale=0)), draw(first))
    both = draw(first, second, third)
    assert relative(draw(third, first, second), both) < 1e-5
    assert not np.allclose(both, draw(first), atol=1e-3)


def test_nothing_but_the_nets_is_compiled_in(draw, nets):
    draw(Control(nets[0], picture(0)))
    before = program.advance._cache_size()
    for settings in (
        {"scale": 0.3},
        {"start": 0.4},
        {"end": 0.5},
        {"rule": "guess"},
        {"rule": "resolution"},
        {"prompts_only": True},
    ):
        draw(Control(nets[1], picture(3), **settings), prompt="another", seed=4, guidance=2.0, steps=2)
    assert program.advance._cache_size() == before


def test_prompts_only_is_what_guidance_amplifies(draw, nets):
    """At scale 1 of guidance the negative half does not count; beyond, it does."""
    both, one = Control(nets[0], picture(0)), Control(nets[0], picture(0), prompts_only=True)
    assert np.allclose(draw(both, guidance=1.0), draw(one, guidance=1.0), atol=1e-4)
    assert not np.allclose(draw(both, guidance=3.0), draw(one, guidance=3.0), atol=1e-2)
    unsteered = draw(guidance=0.0)
    assert np.allclose(draw(one, guidance=0.0), unsteered, atol=1e-4)
    skip = {"guidance": 1.0, "shortcuts": ldm.Shortcuts(skip_negative=True)}
    assert np.allclose(draw(one, **skip), draw(one, guidance=1.0), atol=1e-4)


@pytest.mark.long
def test_each_picture_has_its_hint(draw, nets):
    """Alone or in a batch."""
    hints = picture(7, *SIZE[::-1], 2)
    both = draw(Control(nets[0], hints), prompt=["a", "b"])
    for i, prompt in enumerate("ab"):
        alone = draw(Control(nets[0], hints[i]), prompt=prompt, index=i)
        assert np.allclose(alone[0], both[i], rtol=1e-4, atol=1e-4)
    same = draw(Control(nets[0], hints[0]), prompt=["a", "b"])
    assert np.allclose(same[0], both[0], rtol=1e-4, atol=1e-4) and not np.allclose(same[1], both[1], atol=1e-3)


def test_weights_of_the_three_rules():
    """Claims 21 and 22, for Stable Diffusion: 13 residuals."""
    levels = levels_of(UNetConfig())
    assert RULES["resolution"](levels).tolist() == [1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8, 8]
    guess = RULES["guess"](levels)
    assert len(guess) == 13 and guess[-1] == 1 and round(float(guess[0]), 4) == 0.0994
    assert np.abs(RULES["log"](levels) / guess - 1).max() < 0.006, "no more than 0.6 % away"
    assert RULES["uniform"](levels).tolist() == [1] * 13
    small = UNetConfig(channels=(32, 64), blocks=1, depth=(1, 0), heads=(4, 4))
    assert levels_of(small) == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("start", "end", "on"), [(0, 1, range(10)), (0, 0.5, range(5)), (0.5, 1, range(5, 10)), (0.25, 0.75, range(3, 7))]
)
def test_the_interval_is_of_steps(nets, start, end, on):
    """Step i of n is steered if i / n >= start and (i + 1) / n <= end, as diffusers counts."""
    plan = make_plan(NoiseSchedule(), "ddim", "leading", 10)
    how = steering_of(Control(nets[0], None, start=start, end=end), plan)
    found = [i for i, sigma in enumerate(np.asarray(plan.levels)[:10]) if how.low < sigma <= how.high]
    assert found == list(on)


@pytest.mark.long
def test_a_pooled_net_says_the_same_everywhere(draw, nets):
    """Its control is the other's mean, whether it steers in a step or not, and beside one that is not pooled."""
    net = replace(nets[0], config=replace(nets[0].config, pooled=True))
    rng = np.random.default_rng(1)
    x, hint, context = (rng.standard_normal(s, np.float32) for s in ((2, 6, 8, 4), (2, 48, 64, 3), (2, 3, 64)))
    control = lambda own: bind(ControlNet, own.config, own.params)(x, jnp.float32(7), Conditioning(context), hint)
    means, others = jax.jit(lambda: (control(net), control(nets[0])))()
    for mean, other in zip(jax.tree.leaves(means), jax.tree.leaves(others), strict=True):
        assert mean.shape == (2, 1, 1, other.shape[-1])
        np.testing.assert_allclose(mean[:, 0, 0], other.mean((1, 2)), rtol=1e-4, atol=1e-5)
    late, beside = Control(net, picture(0), start=0.3), Control(nets[1], picture(1), end=0.5)
    assert relative(draw(late, beside), draw(replace(late, net=nets[0]), beside)) > 0.01
    assert relative(draw(late, beside), draw(beside, late)) < 1e-5


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "net", "shortcuts"),
    [("bfloat16", "float32", ldm.Shortcuts(every=2, blocks=1)), ("float32", "bfloat16", ldm.Shortcuts())],
)
def test_a_net_of_another_dtype_steers_too(draw, least, nets, model, net, shortcuts):
    """The model computes in its own. bfloat16 has 8 bits: some per cent after three steps."""
    cast = lambda params, dtype: {name: jnp.asarray(array, dtype) for name, array in params.items()}
    bundle = replace(least, params={**least.params, "unet": cast(least.params["unet"], model)})
    control = Control(replace(nets[0], params=cast(nets[0].params, net)), picture(0))
    found = ldm.generate(bundle, "a toy", controls=[control], shortcuts=shortcuts, **DRAW)
    wanted, plain = (draw(Control(nets[0], picture(0), scale), shortcuts=shortcuts) for scale in (1, 0))
    assert relative(found, wanted) < 0.05 < relative(plain, wanted)


@pytest.mark.long
def test_under_cached_features(draw, nets):
    """A step that is whole is what it was; in the others too a control counts, and one of scale 0 does not."""
    control, cached = Control(nets[0], picture(0)), {"shortcuts": ldm.Shortcuts(every=2, blocks=1)}
    assert relative(draw(control, steps=1, **cached), draw(control, steps=1)) < 1e-5
    late = draw(replace(control, start=0.3, end=0.7), **cached)  # of three steps the second, which is not whole
    off = draw(replace(control, scale=0), **cached)
    assert np.array_equal(draw(**cached), off) and relative(late, off) > 1e-3


@pytest.mark.long
@pytest.mark.parametrize("numbers", [{"in_channels": 9}, {"guidance_dim": 16}], ids=["inpainting", "told its guidance"])
def test_models_of_other_inputs(nets, numbers):
    """An inpainting model's net sees the latent alone; a model that is told its guidance has no negative half."""
    bundle = random_bundle(configs=replace(LEAST, unet=replace(LEAST.unet, **numbers)), size=SIZE)
    extra = np.random.default_rng(1).standard_normal((2, 6, 8, 5), np.float32)

    def drawn(prompts: list[str], first: int = 0, **settings) -> np.ndarray:
        controls = [Control(net, picture(7, *SIZE[::-1], 2)[first:][: len(prompts)], **settings) for net in nets[1:]]
        concat = extra[first:][: len(prompts)] if "in_channels" in numbers else None
        return ldm.generate(bundle, prompts, controls=controls, concat=concat, index=first, **DRAW)

    both, off = drawn(["a", "b"]), drawn(["a", "b"], scale=0)
    assert relative(both, off) > 0.01
    assert relative(drawn(["b"], 1)[0], both[1]) < 1e-4, "each picture has its own hint"
    told = "guidance_dim" in numbers
    assert (relative(drawn(["a", "b"], prompts_only=True), both) < 1e-6) == told


def test_a_hint_of_another_size_is_resized_and_said(draw, nets):
    with pytest.warns(UserWarning, match="the hint is 32x48 and the picture 64x48: it is stretched"):
        draw(Control(nets[0], picture(0, 48, 32)))


def test_what_cannot_be_is_one_sentence(draw, least, nets):
    for settings, words in (
        ({"scale": float("nan")}, "scale of a control must be a finite number"),
        ({"start": 0.5, "end": 0.5}, "0 <= start < end <= 1, got 0.5 and 0.5"),
        ({"rule": "much"}, "unknown rule 'much'"),
    ):
        with pytest.raises(ValueError, match=words):
            draw(Control(nets[0], picture(0), **settings))
    with pytest.raises(ValueError, match="a T2I-Adapter knows only 'uniform'"):
        draw(Control(nets[2], picture(0), rule="guess"))
    with pytest.raises(ValueError, match="there are 3 hints for 1 pictures"):
        draw(Control(nets[0], picture(0, *SIZE[::-1], 3)))
    with pytest.raises(ValueError, match=r"the hint must be uint8 of \[H, W\]"):
        draw(Control(nets[0], picture(0)[..., :2]))
    wide = replace(least.configs.unet, context_dim=128)
    with pytest.raises(ValueError, match="for a U-Net with context_dim 128, and the model's has 64"):
        draw(Control(Net(ControlNetConfig(wide), {}), picture(0)))
    with pytest.raises(ValueError, match="makes hints 4 times smaller, and the model makes pictures 8 times"):
        draw(Control(Net(replace(nets[0].config, widths=(4, 8, 8)), {}), picture(0)))
    with pytest.raises(ValueError, match="sees hints of 6 channels, and pictures have 3, or 1"):
        draw(Control(Net(replace(nets[0].config, hint_channels=6), {}), picture(0)))
    with pytest.raises(ValueError, match="the ControlNet sees 9 channels, and the model's latents have 4"):
        draw(Control(Net(ControlNetConfig(replace(least.configs.unet, in_channels=9)), {}), picture(0)))
    with pytest.raises(ValueError, match=r"adds 32 channels at 1/4 .*, and this U-Net has 32 at 1/8"):
        draw(Control(Net(replace(nets[2].config, unshuffle=4), {}), picture(0)))


def test_a_net_in_a_file_of_ours(nets, tmp_path):
    save_net(nets[0], tmp_path / "net.safetensors")
    back = read_net(tmp_path / "net.safetensors")
    assert back.config == nets[0].config and not back.config.pooled
    save_net(replace(nets[0], config=replace(nets[0].config, pooled=True)), tmp_path / "pooled.safetensors")
    assert read_net(tmp_path / "pooled.safetensors").config.pooled
    assert all(np.array_equal(back.params[name], array) for name, array in nets[0].params.items())
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"other\.safetensors"):
        read_net(tmp_path / "other.safetensors")
