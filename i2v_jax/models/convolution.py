"""3x3 convolution, one entry point with a choice of implementation.

`xla`: the compiler's own; best on TPUs and GPUs. `winograd`: Winograd's minimal filtering F(2x2, 3x3) (Lavin & Gray
2016) as sixteen matrix products, with im2col for pictures too small for it; on CPUs faster than XLA's convolution, but
of large pictures of few channels, where the transforms cost more than they save: there it is XLA's too.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from i2v_jax.errors import check_known

IMPLEMENTATIONS = ("xla", "winograd")


def conv3x3(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "3 3 i o"],
    stride: int = 1,
    padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1)),
    implementation: str = "xla",
) -> Float[Array, "n h2 w2 o"]:
    """Convolves (cross-correlates, as all networks do) `x` with `kernel`, zeros outside.

    The choice of implementation changes rounding (about 1e-6 relative in float32), nothing else.

    Raises:
      InputError: unknown implementation.
    """
    check_known("Unknown convolution implementation ", implementation, IMPLEMENTATIONS)
    fewest = min(kernel.shape[2:])
    plain = stride == 1 and padding == ((1, 1), (1, 1)) and fewest >= 16
    large = x.shape[1] * x.shape[2] >= 128 * 128 and fewest <= 64  # its tiles would not stay in the cache
    if implementation == "winograd" and plain and not large:
        if min(x.shape[1:3]) < 8:
            return _im2col(x, kernel)
        tiles = [_transform_kernel(row) for row in _transform_kernel(kernel)]
        if x.shape[1] * x.shape[2] >= 1024 and single_device():  # a picture at a time stays in the cache
            return lax.map(lambda picture: _winograd(picture[None], tiles)[0], x)
        return _winograd(x, tiles)
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def single_device() -> bool:
    """Whether the program is for one device, so that a loop over an axis does not cut across devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def _im2col(x, kernel):
    n, h, w, c = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = jnp.concatenate([padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], -1)
    return (patches.reshape(-1, 9 * c) @ kernel.reshape(9 * c, -1)).reshape(n, h, w, -1)


# The three transforms of F(2, 3), along the first axis of a list: Y = A^T [(G g) * (B^T d)].
def _transform_kernel(g):
    even = 0.5 * (g[0] + g[2])
    return g[0], even + 0.5 * g[1], even - 0.5 * g[1], g[2]


def _transform_input(d):
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _transform_output(m):
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _winograd(x, kernel):
    n, h, w, c = x.shape
    out = kernel[0][0].shape[-1]
    rows, columns = -(-h // 2), -(-w // 2)  # tiles of 2x2 outputs; each reads 4x4 inputs
    padded = jnp.pad(x, ((0, 0), (1, 2 * rows + 1 - h), (1, 2 * columns + 1 - w), (0, 0)))
    phases = padded.reshape(n, rows + 1, 2, columns + 1, 2, c)  # input 2 * tile + i is phases[tile + i // 2][i % 2]

    products = []
    for i, row in enumerate(_transform_input([phases[:, k // 2 : k // 2 + rows, k % 2] for k in range(4)])):
        tiles = _transform_input([row[:, :, k // 2 : k // 2 + columns, k % 2] for k in range(4)])
        products.append(_transform_output([tile.reshape(-1, c) @ kernel[i][j] for j, tile in enumerate(tiles)]))
    quadrants = [_transform_output([row[j] for row in products]) for j in range(2)]  # [column parity][row parity]

    tiles = jnp.stack([jnp.stack([quadrants[j][i] for j in range(2)], 1) for i in range(2)], 1)
    picture = tiles.reshape(n, rows, columns, 2, 2, out).transpose(0, 1, 3, 2, 4, 5)
    return picture.reshape(n, 2 * rows, 2 * columns, out)[:, :h, :w]
