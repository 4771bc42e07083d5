"""LoRA and its kin: the algebra, scales, folding, sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lora_files import OUT_NAMES, QUERY, RANK, W, numbers, relative, small_lora

import ldm
from ldm import program
from ldm.adapters import lora as loras
from ldm.bundle import Bundle

DRAW = {"steps": 2, "output": "latents", "progress": False}


@pytest.fixture(scope="module")
def lora() -> dict:
    """A LoRA of both parts."""
    return small_lora()


def test_a_new_one_and_scale_zero_change_nothing_to_the_bit(least, lora):
    fresh = {"unet": loras.changes_of(loras.fresh({OUT_NAMES[QUERY]: (W, W)}, 4, jax.random.key(0)), 8.0)}
    base = ldm.generate(least, "a", **DRAW)
    for model in (
        ldm.with_lora(least, fresh),
        ldm.with_lora(least, lora, 0.0),
        ldm.with_lora(least, lora, 0, folded=True),
    ):
        assert np.array_equal(ldm.generate(model, "a", **DRAW), base)
    assert relative(ldm.generate(ldm.with_lora(least, lora), "a", **DRAW), base) > 0.01


def test_folded_equals_run_time_and_undone_is_the_base_itself(least, lora):
    model = ldm.with_lora(least, lora, 0.7)
    folded = ldm.with_lora(least, lora, 0.7, folded=True)
    assert relative(ldm.generate(model, "a", **DRAW), ldm.generate(folded, "a", **DRAW)) < 1e-5
    back = ldm.without_lora(model)
    for part, params in least.params.items():
        assert all(back.params[part][name] is array for name, array in params.items())


def test_rank_and_number_of_parameters():
    """Claims 10 and 11: rank at most r by SVD, r (d + o) numbers in place of d o."""
    forms = loras.fresh({"a.kernel": (40, 24)}, RANK, jax.random.key(0))
    forms = {name: form._replace(up=jnp.asarray(numbers(1, *form.up.shape))) for name, form in forms.items()}
    delta = np.asarray(forms["a.kernel"].whole())
    values = np.linalg.svd(delta, compute_uv=False)
    assert values[RANK - 1] > 1e-3 and values[RANK] < 1e-5
    assert loras.parameters({"unet": loras.changes_of(forms, 1.0)}) == RANK * (40 + 24)


def test_scales_compile_nothing_and_orders_do_not_matter(least, lora):
    other = {"unet": loras.changes_of({OUT_NAMES[QUERY]: loras.LowRank(numbers(3, W, 2), numbers(4, 2, W))}, 1.0)}
    one = ldm.with_lora(ldm.with_lora(least, lora, 0.5), other, 0.25)
    first = ldm.generate(one, "a", **DRAW)
    before = program.advance._cache_size(), program.begin._cache_size()
    ldm.generate(ldm.with_lora(ldm.with_lora(least, lora, 0.9), other, -1.0), "a", **DRAW)
    assert (program.advance._cache_size(), program.begin._cache_size()) == before
    two = ldm.with_lora(ldm.with_lora(least, other, 0.25), lora, 0.5)
    assert relative(ldm.generate(two, "a", **DRAW), first) < 1e-5


def test_parts_have_their_own_scales(least, lora):
    model = ldm.with_lora(least, lora, {"unet": 0.5, "text": 0.0}, folded=True)
    assert np.array_equal(
        model.params["text"]["layers.1.attn.v.kernel"], least.params["text"]["layers.1.attn.v.kernel"]
    )
    half = loras.merge(least.params["unet"], lora["unet"], 0.5)
    np.testing.assert_allclose(model.params["unet"][OUT_NAMES[QUERY]], half[OUT_NAMES[QUERY]], rtol=1e-6)


@pytest.mark.parametrize("axis", ["outputs", "inputs"])
def test_dora_by_hand(axis):
    """The magnitude is of each output (PEFT, today's LyCORIS) or of each input (older files)."""
    kernel, (down, up) = numbers(0, 3, 3, 8, 6), (numbers(1, 3, 3, 8, 2), numbers(2, 2, 6))
    m = np.abs(numbers(3, 6 if axis == "outputs" else 8)) + 0.5
    change = loras.Change(loras.LowRank(down, up), np.float32(0.5), m if axis == "outputs" else m[:, None])
    whole = kernel + 0.5 * np.einsum("hwdr,ro->hwdo", down, up)
    axes, shape = ((0, 1, 2), (1, 1, 1, 6)) if axis == "outputs" else ((0, 1, 3), (1, 1, 8, 1))
    wanted = m.reshape(shape) * whole / np.sqrt((whole**2).sum(axes, keepdims=True))
    assert relative(loras.merge({"k": kernel}, {"k": change})["k"], wanted) < 1e-6
    assert np.array_equal(loras.merge({"k": kernel}, {"k": change}, 0.0)["k"], kernel)


def test_gradients_pass_through_the_merge():
    kernel, form = numbers(0, 8, 6), loras.LowRank(numbers(1, 8, 2), numbers(2, 2, 6))
    loss = lambda form: (loras.merge({"k": kernel}, loras.changes_of({"k": form}, 4.0))["k"] ** 2).sum()
    found = jax.grad(loss)(form)
    whole = kernel + 2.0 * form.down @ form.up
    assert relative(found.up, 2.0 * form.down.T @ (2 * whole)) < 1e-5
    assert relative(found.down, 2.0 * (2 * whole) @ form.up.T) < 1e-5


def test_a_scale_must_be_a_number(least, lora):
    for scale in (float("nan"), "much", None):
        with pytest.raises(ValueError, match="the scale of a LoRA must be a finite number"):
            ldm.with_lora(least, lora, scale)
    with pytest.raises(ValueError, match=r"this model has no nothing\.kernel"):
        loras.merge(least.params["unet"], {"nothing.kernel": None})
    with pytest.raises(ValueError, match="unet is needed too"):
        ldm.with_lora(Bundle(least.configs, {"text": least.params["text"]}), lora)
