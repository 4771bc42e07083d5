"""The 3x3 convolution, and which form of it to use where.

Shapes: B batch, H W height and width, C channels in, O channels out; T tiles, m side of a tile of the output,
n = m + 2 side of the window of the input that it depends on.

Winograd's algorithm computes an m x m tile of the output with n^2 products for each pair of channels in place of 9 m^2:
2.25 times fewer for m = 2, and 4 times for m = 4. For one tile d of one channel and one kernel g

    Y = A^T [ (G g G^T) * (B^T d B) ] A                                                    eq. (1)

and summed over channels, the elementwise product becomes a matrix product for each of the n^2 places of a window. What
it costs is accuracy: about 3 times the rounding of the sum as written for m = 4, and none to speak of for m = 2.

Sources: "Fast Algorithms for Convolutional Neural Networks" (arXiv:1509.09308), section 4, eq. (8) for eq. (1); "Error
Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks" (arXiv:1803.10986), section 5, for
what the choice of points does to rounding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 0.75, -0.75, 1.5, -1.5)}  # among many sets tried, these round least
CHANNELS = 64  # below, the transforms cost more than the products they save
FEW_PIXELS = 512  # up to here the windows are gathered into one matrix: reading the kernel is what takes time
TILES = 128  # rows of a matrix product that make it worth while to transform the kernel to n = 6
AT_ONCE = 1 << 22  # numbers of transformed input that may exist at once: 16 MiB stays near the cache


def direct(x: Array, kernel: Array) -> Array:
    """The convolution as XLA knows it: x [B,H,W,C], kernel [3,3,C,O], a pixel of zeros all around -> [B,H,W,O]."""
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def gathered(x: Array, kernel: Array) -> Array:
    """:func:`direct` as ONE matrix product: each pixel's window becomes a row of 9 C numbers."""
    _, H, W, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = jnp.concatenate([x[:, i : i + H, j : j + W] for i in range(3) for j in range(3)], axis=-1)
    return windows @ kernel.reshape(-1, kernel.shape[-1])


@functools.cache
def transforms(m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A^T [m, n], G [n, 3] and B^T [n, n] of eq. (1), float64, for m 2 or 4.

    Multiplying polynomials is multiplying their values at n - 1 points and at infinity; a convolution is the transpose
    of that (Toom and Cook).
    """
    points = np.array(POINTS[m])
    away = points[:, None] - points[None] + np.eye(len(points))  # [n-1, n-1] differences, 1 on the diagonal
    powers = lambda count: np.vstack([points[:, None] ** np.arange(count), np.eye(count)[-1]])  # [n, count]
    others = [np.append(np.poly(np.delete(points, i))[::-1], 0.0) for i in range(len(points))]
    return powers(m).T, powers(3) / np.append(away.prod(1), 1.0)[:, None], np.vstack([*others, np.poly(points)[::-1]])


def _mixed(matrix: np.ndarray, parts: list[Array]) -> Array:
    """matrix [r, c] times a column of c arrays: [r, ...], made in one pass over them."""
    column = lambda j: jnp.asarray(matrix[:, j], parts[0].dtype).reshape(-1, *[1] * parts[0].ndim)
    return sum(column(j) * part for j, part in enumerate(parts))


def _both(matrix: np.ndarray, parts: Array) -> Array:
    """matrix [r, c] times parts [c, c, ...] times matrix^T -> [r r, ...], as one matrix product."""
    r, c = matrix.shape
    mixed = jnp.asarray(np.kron(matrix, matrix), parts.dtype) @ parts.reshape(c * c, -1)
    return mixed.reshape(r * r, *parts.shape[2:])


def _tiles(x: Array, kernels: Array, m: int) -> Array:
    """Eq. (1) for all tiles of x [B, m h + 2, m w + 2, C], its border included -> [B, m h, m w, O].

    kernels [n n, C, O] are G g G^T.
    """
    (A, _, B), n = transforms(m), m + 2
    batch, h, w, C = x.shape[0], (x.shape[1] - 2) // m, (x.shape[2] - 2) // m, x.shape[3]
    x = jnp.pad(x, ((0, 0), (0, m - 2), (0, m - 2), (0, 0))).reshape(batch, h + 1, m, w + 1, m, C)
    columns = _mixed(B, [x[:, :, :, j // m : j // m + w, j % m] for j in range(n)])  # [n, B, h + 1, m, w, C]
    windows = _mixed(B, [columns[:, :, i // m : i // m + h, i % m] for i in range(n)])  # [n, n, B, h, w, C]
    products = jnp.einsum("ptc,pco->pto", windows.reshape(n * n, -1, C), kernels)
    tiles = _both(A, products.reshape(n, n, -1)).reshape(m, m, batch, h, w, -1)
    return tiles.transpose(2, 3, 0, 4, 1, 5).reshape(batch, m * h, m * w, -1)


def winograd(x: Array, kernel: Array, m: int = 4) -> Array:
    """:func:`direct` by eq. (1) with tiles of m x m (2 or 4), a strip of the picture at a time where it is large."""
    B, H, W, _ = x.shape
    h, w = -(-H // m), -(-W // m)
    x, kernel = lax.optimization_barrier((x, kernel))  # else a loop over steps keeps all transformed kernels: 1.3 GB
    kernels = _both(transforms(m)[1], kernel)
    x = jnp.pad(x, ((0, 0), (1, m * h - H + 1), (1, m * w - W + 1), (0, 0)))
    strips = -(-(B * h * w * (m + 2) ** 2 * max(kernel.shape[2:])) // AT_ONCE)
    if strips == 1:
        return _tiles(x, kernels, m)[:, :H, :W]
    high = -(-h // strips)  # rows of tiles in a strip
    strips = -(-h // high)
    x = jnp.pad(x, ((0, 0), (0, m * (high * strips - h)), (0, 0), (0, 0)))
    part = lambda i: _tiles(lax.dynamic_slice_in_dim(x, m * high * i, m * high + 2, axis=1), kernels, m)
    y = jnp.moveaxis(lax.map(part, jnp.arange(strips)), 0, 1)  # [B, strips, m high, m w, O]
    return y.reshape(B, -1, *y.shape[3:])[:, :H, :W]


@jax.custom_jvp
def conv3x3(x: Array, kernel: Array) -> Array:
    """x [B,H,W,C], kernel [3,3,C,O] -> [B,H,W,O], padded by a pixel of zeros, in the form that suits shape and backend.

    Accelerators have fast convolutions of their own. Choosing happens while tracing. Derivatives are those of
    :func:`direct`.
    """
    B, H, W, _ = x.shape
    if jax.default_backend() != "cpu" or x.dtype != jnp.float32 or min(kernel.shape[2:]) < CHANNELS:
        return direct(x, kernel)
    if B * H * W <= FEW_PIXELS:
        return gathered(x, kernel)
    return winograd(x, kernel, 4 if B * -(-H // 4) * -(-W // 4) >= TILES else 2)


def _derivative(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """The two terms of the product rule; what does not vary, such as a frozen kernel, costs nothing."""
    (x, kernel), (dx, dkernel) = primals, tangents
    still = lambda tangent: isinstance(tangent, SymbolicZero)
    terms = [*([] if still(dx) else [direct(dx, kernel)]), *([] if still(dkernel) else [direct(x, dkernel)])]
    return conv3x3(x, kernel), sum(terms)


conv3x3.defjvp(_derivative, symbolic_zeros=True)
