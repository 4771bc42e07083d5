"""The samplers by name, the plan of a run, and the one loop that drives them all.

Shape letters: B batch, H W latent, C channels, M most steps that the compiled program can take.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ldm.denoiser import Denoiser, to_variance_preserving
from ldm.samplers.multistep import (
    History,
    dpmpp_2m_step,
    dpmpp_3m_sde_step,
    lms_step,
    no_history,
    plms_step,
    remember,
    unipc_correct,
)
from ldm.samplers.noise import NoiseAt
from ldm.samplers.one_step import (
    ancestral_step,
    ddim_step,
    ddpm_step,
    dpm2_step,
    dpmpp_2s_step,
    dpmpp_sde_step,
    euler_step,
    heun_step,
    lcm_step,
)
from ldm.schedule import NoiseSchedule, check_name
from ldm.spacing import initial_scale, levels

Remembering = Callable[[Array, Array, Array, Any], tuple[Array, Any]]
"""A denoiser with a memory, a pytree of arrays: (x, sigma, step [] int32 of the run, memory) -> (x0, the next memory).

Where a sampler asks more than once in a step, the later answers are made from the memory that the first one left."""


class Step(NamedTuple):
    """All that a sampler may look at in one step."""

    denoise: Denoiser
    x: Array
    x0: Array
    sigma: Array
    sigma_next: Array
    past: History
    noise_at: Callable[[int, Array, Array], Array]  # (part, start, stop)
    eta: Array

    @property
    def here(self) -> tuple[Array, Array, Array, Array]:
        """x, x0, sigma, sigma_next."""
        return self.x, self.x0, self.sigma, self.sigma_next

    @property
    def noise(self) -> Array:
        """Fresh unit noise of the whole step."""
        return self.noise_at(0, self.sigma, self.sigma_next)

    def ancestral(self, go: Callable[[Array], Array]) -> Array:
        """go(down), then fresh noise."""
        return ancestral_step(go, self.sigma, self.sigma_next, lambda: self.noise, self.eta)


class Sampler(NamedTuple):
    """A sampler: its step; its eta where it has one (None: no such knob); network calls a step.

    correct: mends x once its own prediction is known, before the step (the corrector of a predictor-corrector pair).
    """

    advance: Callable[[Step], Array]
    eta: float | None = None
    calls: int = 1
    correct: Callable[[Step], Array] | None = None


SAMPLERS = {
    "ddim": Sampler(lambda s: ddim_step(*s.here, s.noise, s.eta), eta=0.0),
    "ddpm": Sampler(lambda s: ddpm_step(*s.here, s.noise)),
    "euler": Sampler(lambda s: euler_step(*s.here)),
    "euler_a": Sampler(lambda s: s.ancestral(lambda down: euler_step(s.x, s.x0, s.sigma, down)), eta=1.0),
    "heun": Sampler(lambda s: heun_step(s.denoise, *s.here), calls=2),
    "dpm2": Sampler(lambda s: dpm2_step(s.denoise, *s.here), calls=2),
    "dpm2_a": Sampler(
        lambda s: s.ancestral(lambda down: dpm2_step(s.denoise, s.x, s.x0, s.sigma, down)), eta=1.0, calls=2
    ),
    "dpmpp_2s_a": Sampler(
        lambda s: s.ancestral(lambda down: dpmpp_2s_step(s.denoise, s.x, s.x0, s.sigma, down)), eta=1.0, calls=2
    ),
    "dpmpp_2m": Sampler(lambda s: dpmpp_2m_step(*s.here, s.past)),
    "dpmpp_sde": Sampler(lambda s: dpmpp_sde_step(s.denoise, *s.here, s.noise_at, s.eta), eta=1.0, calls=2),
    "dpmpp_2m_sde": Sampler(lambda s: dpmpp_2m_step(*s.here, s.past, s.noise, s.eta), eta=1.0),
    "dpmpp_3m_sde": Sampler(lambda s: dpmpp_3m_sde_step(*s.here, s.past, s.noise, s.eta), eta=1.0),
    "lms": Sampler(lambda s: lms_step(*s.here, s.past)),
    "plms": Sampler(lambda s: plms_step(s.denoise, *s.here, s.past)),
    "unipc": Sampler(
        lambda s: dpmpp_2m_step(*s.here, s.past), correct=lambda s: unipc_correct(s.x, s.x0, s.sigma, s.past)
    ),
    "lcm": Sampler(lambda s: lcm_step(s.x0, s.sigma_next, s.noise)),
}


class Plan(NamedTuple):
    """The run-time numbers of one sampling run, a pytree: none of them is compiled in."""

    levels: Array  # [M+1] float32, falling; those after `steps` are not visited
    steps: Array  # [] int32, 1..M: the run ends at levels[steps]
    eta: Array  # [] float32, 0..1
    scale: Array  # [] float32: x starts as scale * unit noise, beside the picture that it starts from, if any
    first: Array = np.int32(0)  # [] int32, 0..steps: the run begins at levels[first]


class State(NamedTuple):
    """Where a run is, in sigma space: x [B,H,W,C], what its last steps saw, what its denoiser remembers, if it does."""

    x: Array
    past: History
    memory: Any = None


class Path(NamedTuple):
    """Every state of a run, in sigma space; entries outside its steps are 0."""

    x: Array  # [M+1,B,H,W,C], x[k] at levels[k]
    x0: Array  # [M,B,H,W,C], the prediction made at levels[k]


def make_plan(
    schedule: NoiseSchedule,
    sampler: str,
    spacing: str,
    steps: int,
    eta: float | None = None,
    most: int | None = None,
    strength: float | None = None,
) -> Plan:
    """The plan of a run of `steps` steps, room for `most` (default: steps). Host side. eta None: the sampler's own.

    strength: for a run that starts from a picture, the share of the steps that are made, rounded down; it starts with
    noise of the level there on the picture (SDEdit, Meng et al. 2022, arXiv:2108.01073). 0 makes none.

    Raises ValueError: names unknown, steps not in 1..min(T, most), eta outside 0..1 or given to a sampler without one,
    strength outside 0..1.
    """
    own_eta = SAMPLERS[check_name("sampler", sampler, SAMPLERS)].eta
    if eta is not None and (own_eta is None or not 0 <= eta <= 1):
        reason = f"sampler {sampler!r} has no eta" if own_eta is None else "eta must be between 0 and 1"
        raise ValueError(f"{reason}, got {eta}")
    if strength is not None and not 0 <= strength <= 1:
        raise ValueError(f"strength must be between 0 (the picture itself) and 1 (all steps), got {strength}")
    visited = levels(schedule, sampler, spacing, steps)
    room = steps if most is None else most
    if steps > room:
        raise ValueError(f"steps must be at most {room}, got {steps}")
    first = 0 if strength is None else steps - min(int(steps * strength), steps)
    if first == steps:
        visited = np.zeros_like(visited)  # nothing is done, exactly
    scale = initial_scale(sampler, spacing, float(visited[0])) if strength is None else visited[first]
    return Plan(
        levels=np.pad(visited, (0, room - steps)),
        steps=np.int32(steps),
        eta=np.float32(own_eta or 0.0 if eta is None else eta),
        scale=np.float32(scale),
        first=np.int32(first),
    )


def _advance(sampler: Sampler, denoise: Denoiser | Remembering, plan: Plan, noise_at: NoiseAt) -> Callable:
    """(i, state) -> the state one step later: the body of the loops below."""
    visited = jnp.asarray(plan.levels)

    def advance(i: Array, state: State) -> State:
        x, past, memory = state
        sigma, sigma_next = visited[i], visited[i + 1]
        noise = lambda part, start, stop: noise_at(i, part, start, stop)
        if memory is None:
            again, x0 = denoise, denoise(x, sigma)
        else:
            x0, memory = denoise(x, sigma, i - plan.first, memory)
            again = lambda x, sigma: denoise(x, sigma, i - plan.first, memory)[0]
        step = Step(again, x, x0, sigma, sigma_next, past, noise, plan.eta)
        if sampler.correct is not None:
            step = step._replace(x=sampler.correct(step))
        x = sampler.advance(step)
        return State(x, remember(past, step.x, step.x0, sigma), memory)

    return advance


def initial(x: Array, memory: Any = None) -> State:
    """The state of a run that begins at x; memory: what a `Remembering` denoiser is given in its first step."""
    return State(jnp.asarray(x), no_history(jnp.asarray(x)), memory)


def proceed(
    sampler: Sampler, denoise: Denoiser, state: State, plan: Plan, noise_at: NoiseAt, first: Array, stop: Array
) -> State:
    """Steps first .. stop - 1 of a run. Several such parts, one after another, are the run itself to the last bit."""
    return jax.lax.fori_loop(first, stop, _advance(sampler, denoise, plan, noise_at), state)


def sample(sampler: Sampler, denoise: Denoiser, x: Array, plan: Plan, noise_at: NoiseAt) -> Array:
    """Runs a sampler. Call it inside jit; a change of plan (at equal M), seed or conditions recompiles nothing.

    x [B,H,W,C] float32 (float64 where JAX allows it): plan.scale * unit noise, and the picture it starts from, if any.
    noise_at(i, part, start, stop): fresh unit noise [B,H,W,C] for step i of 0..steps-1, see ``ldm.samplers.noise``.
    Returns [B,H,W,C] in the VP form, x / sqrt(1 + sigma_end^2): x itself when the last level is 0.
    """
    end = proceed(sampler, denoise, initial(x), plan, noise_at, plan.first, plan.steps)
    return to_variance_preserving(end.x, jnp.asarray(plan.levels)[plan.steps])


def sample_path(sampler: Sampler, denoise: Denoiser, x: Array, plan: Plan, noise_at: NoiseAt) -> tuple[Array, Path]:
    """As `sample`, and also returns every state and prediction on the way."""
    body = _advance(sampler, denoise, plan, noise_at)

    def record(i: Array, carry: tuple) -> tuple:
        state, path = carry
        state = body(i, state)
        return state, Path(path.x.at[i + 1].set(state.x), path.x0.at[i].set(state.past.x0[0]))

    x = jnp.asarray(x)
    empty = jnp.zeros((len(plan.levels), *x.shape), x.dtype)
    start = initial(x), Path(empty.at[plan.first].set(x), empty[:-1])
    end, path = jax.lax.fori_loop(plan.first, plan.steps, record, start)
    return to_variance_preserving(end.x, jnp.asarray(plan.levels)[plan.steps]), path
