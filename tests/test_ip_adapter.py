"""IP-Adapters: sizes, identities, two attentions against one, several prompts at once, and what cannot be."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from lora_files import relative
from random_parts import noise_picture as picture
from random_parts import random_params

import ldm
from ldm import ImagePrompt, program
from ldm.adapters.image_prompt import Adapter, scales_of, square_of, tokens_of
from ldm.adapters.ip_adapter import PROJECTIONS, IPAdapter, IPAdapterConfig, sites, with_pairs
from ldm.attention import attention
from ldm.conditioning import Conditioning
from ldm.hooks import Hooks
from ldm.models.layers import bind, shapes
from ldm.models.unet import UNet, UNetConfig

pytestmark = pytest.mark.optimised  # bits are compared
SIZE = (64, 48)
DRAW = {"steps": 3, "output": "latents", "progress": False}
KINDS = {"base": {"tokens": 2}, "plus": {"tokens": 3, "width": 128, "depth": 2}, "full": {"tokens": 17}}


@pytest.fixture(scope="module")
def adapters(least, least_with_image) -> dict[str, Adapter]:
    """One of each kind for the least model."""
    vision, tower, made = least_with_image.configs.image, least_with_image.params["image"], {}
    for seed, (kind, more) in enumerate(KINDS.items()):
        config = IPAdapterConfig(least.configs.unet, kind, image_dim=48 if kind == "base" else 64, **more)
        made[kind] = Adapter(config, random_params(IPAdapter, config, seed), vision, tower)
    config = IPAdapterConfig(least.configs.unet, "face", 2, 24, 40)
    return made | {"face": Adapter(config, random_params(IPAdapter, config, 5))}


@pytest.fixture(scope="module")
def draw(least):
    """Latents of a prompt with image prompts."""
    return lambda *shown, prompt="a toy", **more: ldm.generate(least, prompt, image_prompts=shown, **DRAW | more)


def seen(kind: str, seed: int = 0) -> np.ndarray:
    """What an adapter of a kind is shown."""
    return np.random.default_rng(seed).standard_normal(24).astype(np.float32) if kind == "face" else picture(seed)


def test_claim_24_sizes():
    """19.17 million numbers in the kernels of 16 sites, 3.15 million in what makes the tokens."""
    found = shapes(IPAdapter, IPAdapterConfig())
    count = lambda part: sum(int(np.prod(spec.shape)) for name, spec in found.items() if name.startswith(part))
    assert len(sites(UNetConfig())) == 16
    assert count(("k.", "v.")) == 19_169_280 and count("projection.") == 3_150_336
    assert round((count("k.") + count("v.") + count("projection.")) / 1e6, 1) == 22.3


@pytest.mark.parametrize(
    "config",
    [
        UNetConfig(),
        UNetConfig(channels=(320, 640, 1280), depth=(0, 2, 10), middle_depth=10, heads=(5, 10, 20), context_dim=2048),
    ],
    ids=["sd1", "sdxl"],
)
def test_sites_are_the_unets_own(config):
    own = {name.removesuffix(".k.kernel") for name in shapes(UNet, config) if name.endswith("cross_attn.k.kernel")}
    found = sites(config)
    assert set(found) == own
    widths = {name: shapes(UNet, config)[f"{name}.q.kernel"].shape[-1] for name in own}
    assert all(widths[name] == width for name, (width, _) in found.items())
    order = [name.split(".")[1] for name in found]
    assert order == sorted(order, key=["down", "up", "middle"].index)


RARER = [pytest.param(kind, marks=pytest.mark.long) for kind in ("full", "face")]


@pytest.mark.parametrize("kind", ["base", "plus", *RARER])
def test_at_scale_zero_it_is_the_text_alone_to_the_bit(draw, adapters, kind):
    base = draw()
    shown = ImagePrompt(adapters[kind], seen(kind), scale=0)
    assert np.array_equal(draw(shown), base)
    assert np.array_equal(draw(replace(shown, scale=1, start=0.99)), base), "a part of a step is none"
    assert not np.allclose(draw(replace(shown, scale=1)), base, atol=1e-3)


def test_two_attentions_are_not_one_over_the_tokens_of_both():
    """Claim 24; and equal they are where the image's keys leave no doubt of the shares."""
    rng = np.random.default_rng(0)
    q, k, v, k2, v2 = (jnp.asarray(rng.standard_normal((2, n, 2, 8)), jnp.float32) for n in (5, 7, 7, 4, 4))
    hooks = with_pairs({"here": (k2, v2)}, {"here": 1.0})
    two, text = hooks.attend("here", q, k, v), attention(q, k, v)
    joined = attention(q, jnp.concatenate([k, k2], 1), jnp.concatenate([v, v2], 1))
    assert relative(two, text + attention(q, k2, v2)) < 1e-6
    assert relative(two, joined) > 0.5
    scores = lambda keys: jnp.exp(jnp.einsum("blnd,bsnd->bnls", q, keys) * 8**-0.5).sum(-1)
    share = (scores(k2) / (scores(k) + scores(k2))).transpose(0, 2, 1)[..., None]
    assert relative((1 - share) * text + share * attention(q, k2, v2), joined) < 1e-5, "a mean, and not a sum"
    assert np.array_equal(hooks.attend("elsewhere", q, k, v), Hooks().attend("elsewhere", q, k, v))


def test_nothing_but_the_adapter_is_compiled_in(draw, adapters):
    draw(ImagePrompt(adapters["base"], picture(0)))
    before = program.advance._cache_size()
    place = next(iter(sites(adapters["base"].config.unet)))
    for more in ({"scale": 0.3}, {"scale": {place: 1.0}}, {"start": 0.4}, {"end": 0.5}, {"negative": picture(4)}):
        draw(ImagePrompt(adapters["base"], picture(3, 90, 30), **more), prompt="another", seed=4, guidance=2.0, steps=2)
    assert program.advance._cache_size() == before


def test_scales_by_place(least, adapters):
    names = list(sites(least.configs.unet))
    assert np.array_equal(scales_of(0.5, least.configs.unet), np.full(len(names), 0.5, np.float32))
    found = scales_of({"decoder": 0.5, names[-1]: 2.0}, least.configs.unet)
    assert found.tolist() == [2.0 if n == names[-1] else 0.5 if n.startswith("decoder") else 0.0 for n in names]


def test_pictures_of_a_prompt_stand_side_by_side_and_prompts_are_added(draw, adapters, least):
    one, other = (ImagePrompt(adapters["base"], picture(seed), scale=0.5 + 0.2 * seed) for seed in (0, 1))
    both = draw(one, other)
    assert relative(draw(other, one), both) < 1e-5  # not 0: sums of products are fused
    together = ImagePrompt(adapters["base"], [picture(0), picture(1)])
    assert tokens_of(together, 1).shape == (1, 2, 2 * 2, least.configs.unet.context_dim)
    assert relative(draw(together), draw(replace(together, image=[picture(1), picture(0)]))) < 1e-5
    assert not np.allclose(draw(together), both, atol=1e-3)


def test_each_picture_may_have_its_prompt(draw, adapters):
    shown = picture(7, 40, 40, 2)
    both = draw(ImagePrompt(adapters["plus"], shown), prompt=["a", "b"])
    for i, prompt in enumerate("ab"):
        alone = draw(ImagePrompt(adapters["plus"], shown[i]), prompt=prompt, index=i)
        assert np.allclose(alone[0], both[i], rtol=1e-4, atol=1e-4)


def test_the_hook_alone(least, adapters):
    """The U-Net with the hook is the U-Net whose attention was written out."""
    adapter, rng = adapters["base"], np.random.default_rng(0)
    unet = bind(UNet, least.configs.unet, least.params["unet"])
    net = bind(IPAdapter, adapter.config, adapter.params)
    x = jnp.asarray(rng.standard_normal((1, 6, 8, 4)), jnp.float32)
    cond = Conditioning(jnp.asarray(rng.standard_normal((1, 5, least.configs.unet.context_dim)), jnp.float32))
    pairs = net.pairs(net.see(jnp.asarray(rng.standard_normal((1, 48)), jnp.float32)))

    def written(site, q, k, v):
        return attention(q, k, v) + (0.6 * attention(q, *pairs[site]) if site in pairs else 0)

    got = unet(x, jnp.float32(7), cond, hooks=with_pairs(pairs, dict.fromkeys(pairs, 0.6)))
    assert relative(got, unet(x, jnp.float32(7), cond, hooks=Hooks(attend=written))) < 1e-5


def test_square_of_cuts_the_middle():
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 200
    assert square_of(wide, 32).shape == (32, 32, 3) and square_of(wide, 32).min() > 150
    assert square_of(wide.transpose(1, 0, 2), 32).min() > 150


def test_what_cannot_be_is_one_sentence(draw, adapters, least):
    base = adapters["base"]
    wide = replace(base.config, unet=replace(least.configs.unet, context_dim=7))
    other = replace(base.config, unet=replace(least.configs.unet, channels=(64,)))
    cases = [
        (ImagePrompt(base, picture(0), scale=float("nan")), "scale of an image prompt must be a finite number"),
        (ImagePrompt(base, picture(0), scale={"encoder.nowhere": 1}), "no cross-attention's site begins with"),
        (ImagePrompt(base, picture(0), start=1, end=0), "counts from start to end"),
        (ImagePrompt(base, picture(0).astype(np.float32)), "image must be"),
        (ImagePrompt(base, []), "its list is empty"),
        (ImagePrompt(base, picture(0, 8, 8, 3)), "3 image prompts for 1 pictures"),
        (ImagePrompt(replace(base, config=wide), picture(0)), "makes tokens 7 wide"),
        (ImagePrompt(replace(base, config=other), picture(0)), "attentions are not the model's"),
        (ImagePrompt(replace(base, vision=replace(base.vision, projection=16)), picture(0)), "expects 48 numbers"),
        (ImagePrompt(adapters["face"], picture(0)), "sees vectors of 24 finite numbers"),
        (ImagePrompt(adapters["face"], [picture(0), picture(1, 30)]), "sees vectors of 24 finite numbers"),
        (ImagePrompt(replace(adapters["plus"], vision=None), picture(0)), "has none: load it with its tower"),
        (ImagePrompt(adapters["face"], np.full(24, np.nan)), "sees vectors of 24 finite numbers"),
    ]
    for shown, words in cases:
        with pytest.raises(ValueError, match=words):
            draw(shown)


def test_every_kind_makes_tokens():
    assert set(PROJECTIONS) == {*KINDS, "face"}
