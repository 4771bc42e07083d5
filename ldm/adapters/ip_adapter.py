"""IP-Adapter: pictures as prompts, by a second cross-attention beside that of the text.

Shapes: N pictures; L tokens of a vision tower and V their width; T tokens of an image prompt, E width of the context;
B rows of a call of the U-Net, Q queries, H heads, D head width; w width inside a resampler.

Source: "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models" (arXiv:2308.06721),
section 3.2, eq. (4) and (5): with queries q from the picture's features, K V of the text, K' V' of the image prompt,

    Attention(q, K, V) + scale * Attention(q, K', V')

so that only the kernels of K' and V', and a small network that makes tokens of what a CLIP tower sees, are learned.
That is not attention over the tokens of both: each softmax sums to one by itself. The forms beside "base" are those of
the authors' published code and weights; the resampler is that of Flamingo (arXiv:2204.14198), section 3.1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jax import Array

from ldm.attention import fused_attention
from ldm.hooks import Attend, Hooks
from ldm.models.layers import Keys, exact_gelu, layer_norm, linear, normal
from ldm.models.unet import UNetConfig

HEAD = 64  # width of a resampler's heads


@dataclass(frozen=True)
class IPAdapterConfig:
    """The numbers of an adapter; the defaults are the base form's for Stable Diffusion 1.x and CLIP ViT-H/14.

    kind    "base": a picture's one vector becomes ``tokens`` tokens; "plus": ``tokens`` queries read the tower's
            penultimate states; "full": every one of those states becomes a token; "face": as base with a layer more,
            for the vector of a face recogniser
    width   inside: of a plus's resampler, of a face's hidden layer; not used by the others
    depth   of a plus's resampler
    """

    unet: UNetConfig = UNetConfig()  # noqa: RUF009
    kind: str = "base"
    tokens: int = 4
    image_dim: int = 1024  # V
    width: int = 768
    depth: int = 4

    @property
    def reads_states(self) -> bool:
        """Whether it is given the tower's penultimate states [N, L, V], and not one vector [N, V] a picture."""
        return self.kind in ("plus", "full")


def sites(unet: UNetConfig) -> dict[str, tuple[int, int]]:
    """{site of a cross-attention: (its width, its heads)}, in the order of public files: encoder, decoder, middle."""
    last, found = len(unet.channels) - 1, {}
    halves = [("encoder.down", list(range(last + 1)), unet.blocks)]
    halves += [("decoder.up", list(range(last, -1, -1)), unet.blocks + 1)]
    for path, levels, blocks in halves:
        for i, level in enumerate(levels):
            for j in range(blocks):
                for k in range(unet.depth[level]):
                    numbers = unet.channels[level], unet.heads[level]
                    found[f"{path}.{i}.attn.{j}.blocks.{k}.cross_attn"] = numbers
    middle = unet.channels[-1], unet.heads[-1]
    return found | {f"encoder.middle.attn.blocks.{k}.cross_attn": middle for k in range(unet.middle_depth)}


# ---------------------------------------------------------------------------------------------------------------------
# Tokens out of what a tower sees


class Project(nnx.Module):
    """base: a picture's vector [N, V] -> tokens [N, T, E], by one linear layer and a norm."""

    def __init__(self, config: IPAdapterConfig, keys: Keys):
        E = config.unet.context_dim
        self.tokens = config.tokens
        self.proj, self.norm = linear(config.image_dim, config.tokens * E, keys), layer_norm(E, keys)

    def __call__(self, seen: Array) -> Array:
        return self.norm(self.proj(seen).reshape(len(seen), self.tokens, -1))


class Face(nnx.Module):
    """face: as base, with a hidden layer."""

    def __init__(self, config: IPAdapterConfig, keys: Keys):
        E = config.unet.context_dim
        self.tokens = config.tokens
        self.fc1 = linear(config.image_dim, config.width, keys)
        self.fc2, self.norm = linear(config.width, config.tokens * E, keys), layer_norm(E, keys)

    def __call__(self, seen: Array) -> Array:
        return self.norm(self.fc2(exact_gelu(self.fc1(seen))).reshape(len(seen), self.tokens, -1))


class Full(nnx.Module):
    """full: the tower's states [N, L, V] -> as many tokens [N, L, E]."""

    def __init__(self, config: IPAdapterConfig, keys: Keys):
        V, E = config.image_dim, config.unet.context_dim
        self.fc1, self.fc2, self.norm = linear(V, V, keys), linear(V, E, keys), layer_norm(E, keys)

    def __call__(self, seen: Array) -> Array:
        return self.norm(self.fc2(exact_gelu(self.fc1(seen))))


class Reading(nnx.Module):
    """A layer of the resampler: the latents [N, T, w] attend to the states [N, L, w] and to themselves."""

    def __init__(self, width: int, heads: int, keys: Keys):
        inside = heads * HEAD
        self.heads = heads
        self.norm_states, self.norm_latents = layer_norm(width, keys), layer_norm(width, keys)
        self.q = linear(width, inside, keys, bias=False)
        self.k, self.v = (linear(width, inside, keys, bias=False) for _ in range(2))
        self.out = linear(inside, width, keys, bias=False)
        self.norm = layer_norm(width, keys)
        self.fc1, self.fc2 = (linear(*pair, keys, bias=False) for pair in ((width, 4 * width), (4 * width, width)))

    def __call__(self, latents: Array, states: Array) -> Array:
        own = self.norm_latents(latents)
        context = jnp.concatenate([self.norm_states(states), own], axis=1)
        q, k, v = (split(y, self.heads) for y in (self.q(own), self.k(context), self.v(context)))
        latents = latents + self.out(fused_attention("", q, k, v).reshape(*own.shape[:2], -1))
        return latents + self.fc2(exact_gelu(self.fc1(self.norm(latents))))


class Resampler(nnx.Module):
    """plus: T learned latents read the tower's states [N, L, V] -> tokens [N, T, E]."""

    def __init__(self, config: IPAdapterConfig, keys: Keys):
        w, E = config.width, config.unet.context_dim
        self.latents = nnx.Param(w**-0.5 * normal(keys.params(), (config.tokens, w)))
        self.proj_in, self.proj_out = linear(config.image_dim, w, keys), linear(w, E, keys)
        self.layers = nnx.List([Reading(w, w // HEAD, keys) for _ in range(config.depth)])
        self.norm_out = layer_norm(E, keys)

    def __call__(self, seen: Array) -> Array:
        states = self.proj_in(seen)
        latents = jnp.broadcast_to(self.latents[...], (len(seen), *self.latents.shape))
        for layer in self.layers:
            latents = layer(latents, states)
        return self.norm_out(self.proj_out(latents))


PROJECTIONS = {"base": Project, "plus": Resampler, "full": Full, "face": Face}


# ---------------------------------------------------------------------------------------------------------------------
# The adapter


class IPAdapter(nnx.Module):
    """Computes in the dtype of its weights."""

    def __init__(self, config: IPAdapterConfig, keys: Keys):
        self.config, E = config, config.unet.context_dim
        self.projection = PROJECTIONS[config.kind](config, keys)
        widths = [width for width, _ in sites(config.unet).values()]
        self.k = nnx.List([linear(E, width, keys, bias=False) for width in widths])
        self.v = nnx.List([linear(E, width, keys, bias=False) for width in widths])

    def see(self, seen: Array) -> Array:
        """What a tower says of N pictures, [N, V] or [N, L, V] -> the tokens of the image prompt [N, T, E]."""
        return self.projection(seen.astype(self.k[0].kernel.dtype))

    def pairs(self, tokens: Array) -> "Pairs":
        """K' and V' of tokens [B, T, E] at every site; the same at every step of a run."""
        tokens = tokens.astype(self.k[0].kernel.dtype)
        own = zip(sites(self.config.unet).items(), self.k, self.v, strict=True)
        return {site: (split(k(tokens), heads), split(v(tokens), heads)) for (site, (_, heads)), k, v in own}


Pairs = Mapping[str, tuple[Array, Array]]  # site -> K', V' [B, T, H, D]


def split(y: Array, heads: int) -> Array:
    """[B, T, H * D] -> [B, T, H, D]."""
    return y.reshape(*y.shape[:2], heads, -1)


def with_pairs(
    pairs: Pairs, scale: Mapping[str, Array | float], hooks: Hooks = Hooks(), second: Attend = fused_attention
) -> Hooks:
    """Hooks that do what ``hooks`` do, and add ``scale`` [] of a site times its ``second`` attention: eq. (5).

    At scale 0 the U-Net is what it was, to the bit. Several image prompts are hooks around hooks.
    """

    def attend(site: str, q: Array, k: Array, v: Array) -> Array:
        text = hooks.attend(site, q, k, v)
        if site not in pairs:
            return text
        return text + (scale[site] * second(site, q, *pairs[site])).astype(text.dtype)

    return hooks._replace(attend=attend)
