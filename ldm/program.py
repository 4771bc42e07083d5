"""The compiled programs between token ids and pixels.

Shapes: N pictures, H W picture size, h w latent size, Z latent channels; V texts that follow one another during a run,
K chunks of a text, L tokens of a chunk, S = K L tokens of a text, E width of the context.

Source: "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv:2112.10752), figure 3:

    text -> context;  noise, and a picture's latent -> sampler(guided U-Net) -> latent -> decoder -> picture

Three programs, one for each part of the model, follow one another: :func:`begin` (text tower), :func:`advance` (U-Net)
and :func:`finish` (autoencoder). So a part's memory can be given back before the next one needs its own, a bar can be
moved between steps, and what does not change (another sampler's text, another text's picture) compiles once.

Only shapes, the sampler's name, the way to draw noise and the model's configuration are compiled in. All that
:class:`Inputs` holds are run-time values: changing them compiles nothing.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh

from ldm.acceleration.int8 import tied
from ldm.acceleration.shortcuts import NO_SHORTCUTS, Shortcuts
from ldm.adapters.control import steered
from ldm.adapters.image_prompt import shown
from ldm.bundle import Configs, module
from ldm.conditioning import Conditioning
from ldm.denoiser import Denoiser, from_network, to_variance_preserving
from ldm.devices import CUT, WHOLE, over
from ldm.guidance import cfg, keep_known, needs_negative, paired
from ldm.hooks import Hooks
from ldm.models.autoencoder import to_uint8
from ldm.models.layers import dtype_of
from ldm.models.taesd import TinyVAEConfig
from ldm.progress import watched
from ldm.prompts import joined, weigh
from ldm.ready import Program, call, register
from ldm.request import CUT_INPUTS, CUT_START, CUT_STATE, CUT_TEXTS, Inputs, Start, Texts
from ldm.samplers import (
    SAMPLERS,
    START,
    NoiseAt,
    Plan,
    Remembering,
    State,
    brownian_noise,
    image_keys,
    initial,
    noise_per_step,
    proceed,
    unit_noise,
)
from ldm.samplers.multistep import History

NOISES: dict[str, Callable[[Array, tuple[int, ...], Plan], NoiseAt]] = {
    "steps": lambda keys, shape, plan: noise_per_step(keys, shape),
    "brownian": lambda keys, shape, plan: brownian_noise(keys, shape, jnp.asarray(plan.levels)[plan.first]),
}
IN_TURN = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
"""For the compiler: on a CPU, the order of work that keeps least in memory. Other backends do not look at it. Without
it, what depends on weights alone is done first, all of it: 1.5 GB in place of 0.35 for the U-Net of SD 1.5."""
Wrap = Callable[[Denoiser, Any], Denoiser]  # (the guided denoiser, the caller's run-time values) -> another


def encode_text(configs: Configs, params: Any, ids: Array, skip: Array) -> Array:
    """Token ids [B, L] -> the text tower's states [B, L, E], ``skip`` [] or [B] layers left out."""
    return module(configs, params, "text")(ids, skip).context


def contexts(configs: Configs, params: Any, texts: Texts) -> Array:
    """[V, 2N, S, E], all texts of a run. Negative prompts keep every layer of the text tower."""
    if texts.context is not None:
        return texts.context
    V, rows, K, L = texts.ids.shape
    skip = jnp.where(jnp.arange(rows) < rows // 2, 0, texts.clip_skip)
    skips = jnp.broadcast_to(skip[None, :, None], (V, rows, K)).reshape(-1)
    states = joined(encode_text(configs, params, texts.ids.reshape(-1, L), skips), K)
    if texts.weights is not None:
        states = weigh(states, texts.weights.reshape(V * rows, K * L))
    return states.reshape(V, rows, *states.shape[1:])


@functools.partial(jax.jit, static_argnames="configs")
def contexts_alone(params: Any, texts: Texts, *, configs: Configs) -> Array:
    """:func:`contexts`, compiled."""
    return contexts(configs, params, texts)


def in_force(contexts: Array, below: Array, sigma: Array) -> Array:
    """The context of each row at a noise level: contexts [V, B, S, E], below [V, B], sigma [] -> [B, S, E]."""
    if len(contexts) == 1:
        return contexts[0]
    turn = (sigma <= below).sum(axis=0) - 1
    return contexts[turn, jnp.arange(contexts.shape[1])]


def denoiser_of(
    configs: Configs,
    params: Any,
    inputs: Inputs,
    wrap: Wrap | None = None,
    shortcuts: Shortcuts = NO_SHORTCUTS,
    nets: tuple[Any, ...] = (),
    adapters: tuple[Any, ...] = (),
) -> Denoiser | Remembering:
    """The guided denoiser of one call, wrapped by the caller, and told what is known; where shortcuts keep a memory,
    one with a memory. A network that is told its guidance answers for the prompts alone.

    nets, adapters: the configurations of controls and of image prompts; ``params`` has theirs by the same names.
    """
    schedule, g, dtype = configs.schedule, inputs.guidance, dtype_of(params["unet"])
    said, start = contexts(configs, params, inputs.texts), inputs.start
    concat = None if start.concat is None else jnp.concatenate([start.concat, start.concat])
    told = configs.unet.guidance_dim > 0
    steer = steered(nets, params.get("nets", ()), inputs.hints, inputs.steering)
    show = shown(adapters, params.get("adapters", ()), inputs.tokens, inputs.showing)

    def condition(context: Array, rows: slice) -> Conditioning:
        return Conditioning(context[rows], None, None if concat is None else concat[rows], g.scale if told else None)

    def remembering(x: Array, sigma: Array, step: Array, memory: Any) -> tuple[Array, Any]:
        kept = [memory]  # what one trace of `network` leaves for the next

        def denoise(x: Array, sigma: Array) -> Array:
            context, needed = in_force(said, inputs.texts.below, sigma), None if told else needs_negative(g, sigma)

            def network(x: Array, t: Array) -> Array:
                unet = module(configs, tied(params, x), "unet")

                def call(x: Array, hooks: Hooks) -> Array:
                    own = condition(context, slice(-len(x), None))
                    control, hooks = steer(x, t, sigma, own.context, show(len(x), sigma, hooks))
                    return unet(x, t, own, control=control, hooks=hooks)

                y, kept[0] = shortcuts.run(call, configs.unet, x, step, kept[0], needed)
                return y

            return from_network(network, schedule, dtype)(x, sigma)

        guided = denoise if told else cfg(paired(denoise), g, schedule.prediction)
        wrapped = guided if wrap is None else wrap(guided, inputs.extra)
        return keep_known(wrapped, start.known, start.mask)(x, sigma), kept[0]

    return remembering if shortcuts.every > 1 else lambda x, sigma: remembering(x, sigma, 0, None)[0]


# ---------------------------------------------------------------------------------------------------------------------
# The three programs of a picture, one for each part of the model


@functools.partial(jax.jit, static_argnames=("configs", "mesh"))
def begin(params: Any, inputs: Inputs, *, configs: Configs, mesh: Mesh | None = None) -> tuple[Texts, State]:
    """The text tower's program -> the texts with their context in place of ids, and the noise that a run begins at."""

    def one(params: Any, inputs: Inputs) -> tuple[Texts, State]:
        said, start = inputs.texts, inputs.start
        said = said._replace(ids=None, weights=None, context=contexts(configs, params, said))
        fresh = unit_noise(image_keys(inputs.seed, inputs.indices), START, start.latents.shape[1:])
        first = jnp.where(start.given, start.latents, fresh)
        return said, initial(start.origin + inputs.plan.scale * first)

    return over(mesh, one, (WHOLE, CUT_INPUTS), (CUT_TEXTS, CUT_STATE))(params, inputs)


@functools.partial(
    jax.jit,
    static_argnames=("configs", "sampler", "noise", "wrap", "shortcuts", "mesh", "nets", "adapters"),
    donate_argnames=("state",),
    compiler_options=IN_TURN,
)
def advance(
    params: Any,
    inputs: Inputs,
    state: State,
    first: Array,
    stop: Array,
    *,
    configs: Configs,
    sampler: str,
    noise: str,
    wrap: Wrap | None = None,
    shortcuts: Shortcuts = NO_SHORTCUTS,
    mesh: Mesh | None = None,
    nets: tuple[Any, ...] = (),
    adapters: tuple[Any, ...] = (),
) -> tuple[State, Array]:
    """The U-Net's program: steps first .. stop - 1 -> the state after them, and ``stop``, which is there when it is."""

    def one(params: Any, inputs: Inputs, state: State, first: Array, stop: Array) -> tuple[State, Array]:
        keys = image_keys(inputs.seed, inputs.indices)
        noise_at = NOISES[noise](keys, state.x.shape[1:], inputs.plan)
        denoise = denoiser_of(configs, params, inputs, wrap, shortcuts, nets, adapters)
        return proceed(SAMPLERS[sampler], denoise, state, inputs.plan, noise_at, first, stop), stop

    cut = CUT_STATE if state.memory is None else CUT_STATE._replace(memory=CUT)
    return over(mesh, one, (WHOLE, CUT_INPUTS, cut, WHOLE, WHOLE), (cut, WHOLE))(params, inputs, state, first, stop)


@functools.partial(jax.jit, static_argnames=("configs", "output", "mesh"), compiler_options=IN_TURN)
def finish(
    params: Any, start: Start, plan: Plan, x: Array, *, configs: Configs, output: str, mesh: Mesh | None = None
) -> tuple[Array, Array, Array]:
    """The autoencoder's program -> what :func:`draw` returns."""

    def one(params: Any, start: Start, plan: Plan, x: Array) -> tuple[Array, Array, Array]:
        x = to_variance_preserving(x, jnp.asarray(plan.levels)[plan.steps])
        x = start.mask * x + (1 - start.mask) * start.known  # a run may end a little above sigma 0
        result = x if output == "latents" else decode_latents(configs, params, x)
        finite = jnp.isfinite(result).all(axis=(1, 2, 3))
        return (result if output == "latents" else to_uint8(result)), x, finite

    return over(mesh, one, (WHOLE, CUT_START, WHOLE, CUT), (CUT, CUT, CUT))(params, start, plan, x)


BEGIN, FINISH = Program(begin), Program(finish, (), IN_TURN)
ADVANCE = Program(advance, (2,), IN_TURN)
register(Texts, State, History)


def draw(
    params: Any,
    inputs: Inputs,
    *,
    configs: Configs,
    sampler: str,
    output: str,
    noise: str,
    wrap: Wrap | None = None,
    shortcuts: Shortcuts = NO_SHORTCUTS,
    progress: bool = False,
    release: bool = False,
    mesh: Mesh | None = None,
    nets: tuple[Any, ...] = (),
    adapters: tuple[Any, ...] = (),
) -> tuple[Array, Array, Array]:
    """A whole run -> (pictures [N, H, W, 3] uint8 or latents [N, h, w, Z], latents, whether each is finite [N]).

    release: the arrays of the text tower, the U-Net, nets and adapters are deleted once they have done their work.
    """
    part = lambda name, needed: {name: params[name]} if needed else {}
    text = part("text", inputs.texts.context is None)
    unet = part("unet", True) | part("nets", nets) | part("adapters", adapters)
    alone = inputs._replace(hints=(), steering=(), tokens=(), showing=())
    said, state = call(BEGIN, text, alone, configs=configs, mesh=mesh)
    rows = len(state.x) * (1 if configs.unet.guidance_dim else 2)
    memory = shortcuts.memory(configs.unet, rows, state.x.shape[1:3], dtype_of(params["unet"]))
    state = state._replace(memory=memory)
    inputs, plan = inputs._replace(texts=said), inputs.plan
    if release:
        delete(params.get("text"))
    settings = {"configs": configs, "sampler": sampler, "noise": noise, "wrap": wrap, "mesh": mesh}
    settings |= {"shortcuts": shortcuts, "nets": nets, "adapters": adapters}
    go = lambda state, first, stop: call(ADVANCE, unet, inputs, state, first, stop, **settings)
    state = watched(go, state, plan.first, plan.steps, progress)
    if release:
        delete(unet)
    vae = part("vae", output != "latents")
    return call(FINISH, vae, inputs.start, plan, state.x, configs=configs, output=output, mesh=mesh)


def delete(params: Any) -> None:
    """Gives the memory of arrays back, whoever still holds them."""
    for array in jax.tree.leaves(params):
        if isinstance(array, jax.Array) and not array.is_deleted():
            array.delete()


def decode_latents(configs: Configs, params: Any, z: Array) -> Array:
    """Latents of the diffusion process [N, h, w, Z] -> pictures [N, H, W, 3] about [-1, 1], one after another."""
    vae = module(configs, params, "vae")
    scale = 1.0 if isinstance(configs.vae, TinyVAEConfig) else configs.vae.scale
    return lax.map(lambda one: vae.decode(one[None])[0].astype(jnp.float32), z / scale)


@functools.partial(jax.jit, static_argnames="configs", compiler_options=IN_TURN)
def decoded(params: Any, z: Array, *, configs: Configs) -> Array:
    """:func:`decode_latents`, compiled."""
    return decode_latents(configs, params, z)


@functools.partial(jax.jit, static_argnames="configs", compiler_options=IN_TURN)
def encoded(params: Any, pictures: Array, *, configs: Configs) -> Array:
    """Pictures [N, H, W, 3] in [-1, 1] -> latents of the diffusion process [N, h, w, Z], one after another.

    The mean of the autoencoder's posterior: no noise, and the same latent every time.
    """
    vae = module(configs, params, "vae")
    tiny = isinstance(configs.vae, TinyVAEConfig)

    def one(picture: Array) -> Array:
        found = vae.encode(picture[None].astype(dtype_of(params["vae"])))
        return (found if tiny else found[0] * configs.vae.scale)[0].astype(jnp.float32)

    return lax.map(one, pictures)
