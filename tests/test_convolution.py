"""Every form of the 3x3 convolution is the same function, and so are its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm import convolution
from ldm.convolution import conv3x3, direct, gathered, transforms, winograd

FORMS = {"gathered": gathered, "winograd 2": lambda x, k: winograd(x, k, 2), "winograd 4": winograd}


def case(*shape: int, out: int = 5, dtype: str = "float64") -> tuple[jax.Array, jax.Array]:
    """Numbers of unit size, and a kernel that keeps it."""
    x, kernel = (np.random.default_rng(i).standard_normal(s) for i, s in enumerate((shape, (3, 3, shape[3], out))))
    return jnp.asarray(x, dtype), jnp.asarray(kernel / np.sqrt(9 * shape[3]), dtype)


def error(a: jax.Array, b: jax.Array) -> float:
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@given(shape=st.tuples(st.integers(1, 2), st.integers(1, 13), st.integers(1, 13), st.integers(1, 4)))
@settings(max_examples=8, deadline=None)
def test_forms_are_one_function_in_float64(form, shape):
    """Any size, multiples of the tile or not: nothing but rounding, of float64, is between them."""
    with jax.enable_x64(True):
        x, kernel = case(*shape)
        assert form(x, kernel).shape == (*shape[:3], 5)
        assert error(form(x, kernel), direct(x, kernel)) < 1e-13


@pytest.mark.parametrize("m", [2, 4])
def test_one_dimension_by_hand(m):
    """A^T [(G g) * (B^T d)] is the convolution of d with g, which the function np.correlate knows."""
    A, G, B = transforms(m)
    d, g = np.random.default_rng(0).standard_normal(m + 2), np.array([0.3, -1.2, 0.7])
    np.testing.assert_allclose(A @ ((G @ g) * (B @ d)), np.correlate(d, g), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("m", "limit"), [(2, 1e-6), (4, 4e-6)])
def test_rounding_in_float32(m, limit):
    """At SD 1.5's width: tiles of 4 round about 3 times as much as the sum as written, which is at 5e-7."""
    x, kernel = case(1, 16, 16, 320, out=64, dtype="float32")
    exact = direct(x.astype(jnp.float32), kernel)
    assert error(winograd(x, kernel, m), exact) < limit


def test_strips_are_the_whole(monkeypatch):
    """A large picture is taken a strip at a time; the strips share their borders, and the last may be short."""
    x, kernel = case(2, 37, 10, 8, dtype="float32")
    whole = winograd(x, kernel)
    monkeypatch.setattr(convolution, "AT_ONCE", 2 * 3 * 36 * 8 * 3)  # three rows of tiles
    strips = winograd(x, kernel)
    assert "length=4" in str(jax.make_jaxpr(winograd)(x, kernel)), "10 rows of tiles, 3 in a strip"
    np.testing.assert_allclose(strips, whole, rtol=0, atol=2e-6)


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_derivatives_are_those_of_the_plain_convolution(mode, monkeypatch):
    """Forward and backward, by the picture and by the kernel."""
    monkeypatch.setattr(convolution, "CHANNELS", 1)
    monkeypatch.setattr(convolution, "FEW_PIXELS", 0)
    x, kernel = case(1, 5, 4, 2, out=2, dtype="float32")
    y = jnp.cos(jnp.arange(40.0).reshape(1, 5, 4, 2))
    loss = lambda f: lambda x, kernel: (y * f(x, kernel)).sum()
    for i in (0, 1):
        ours, plain = (mode(loss(f), argnums=i)(x, kernel) for f in (conv3x3, direct))
        np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("varies", "convolutions"), [((0,), 1), ((1,), 1), ((0, 1), 2)])
def test_what_is_frozen_costs_no_derivative(varies, convolutions):
    """A frozen network's kernels have no gradient to compute: training a ControlNet must not pay for them."""
    x, kernel = case(1, 16, 16, 64, out=64, dtype="float32")
    program = str(jax.make_jaxpr(jax.grad(lambda x, k: conv3x3(x, k).sum(), argnums=varies))(x, kernel))
    assert program.count("conv_general_dilated") == convolutions


def form_of(*shape: int, out: int, dtype: str = "float32") -> str:
    """Which form conv3x3 takes for a shape, by the operations in its program."""
    kernel = jax.ShapeDtypeStruct((3, 3, shape[3], out), dtype)
    program = str(jax.make_jaxpr(conv3x3)(jax.ShapeDtypeStruct(shape, dtype), kernel))
    products = {36: "winograd 4", 16: "winograd 2"}
    found = [name for n, name in products.items() if f"f32[{n},{shape[3]},{out}]" in program]
    return found[0] if found else "direct" if "conv_general_dilated" in program else "gathered"


@pytest.mark.parametrize(
    ("shape", "out", "dtype", "form"),
    [
        ((2, 64, 64, 320), 320, "float32", "winograd 4"),
        ((2, 32, 32, 640), 640, "float32", "winograd 4"),
        ((1, 32, 32, 640), 640, "float32", "winograd 2"),
        ((2, 16, 16, 1280), 1280, "float32", "gathered"),
        ((2, 64, 64, 320), 4, "float32", "direct"),
        ((2, 64, 64, 320), 320, "bfloat16", "direct"),
    ],
)
def test_the_form_suits_the_shape(shape, out, dtype, form):
    """On a CPU, in float32; everything else is left to XLA."""
    assert form_of(*shape, out=out, dtype=dtype) == form
