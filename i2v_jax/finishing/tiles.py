"""Pictures through a network in bounded memory: in tiles of one size, which several devices share."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from i2v_jax.devices.mesh import batch_sharding, make_mesh
from i2v_jax.errors import InputError
from i2v_jax.media import Picture

Run = Callable[[Float32[np.ndarray, "n h w c"]], Float32[Any, "n H W 3"]]
"""A network on pictures of one size; gives RGB of 0 to 1."""


def check(name: str, tile: int, overlap: int) -> None:
    """Raises InputError for tiles that cannot be; `name` is of their settings."""
    if overlap < 0 or tile <= 2 * overlap or tile < 16:
        raise InputError(
            f"{name}.tile={tile}, {name}.overlap={overlap}: wanted a tile of 16 pixels or more, more than twice the "
            "overlap."
        )


def in_tiles(
    run: Run, pictures: Iterable[Float32[np.ndarray, "h w c"]], scale: int, tile: int, overlap: int
) -> Iterator[Picture]:
    """Returns what a network makes of each picture, tile by tile; tiles are of one size, and lie the same in all.

    Where tiles overlap they are blended from one to the other. A picture no larger than a tile is taken whole.

    Args:
      run: the network.
      pictures: of one size.
      scale: by how much the network makes their sides longer.
      tile, overlap: sides of the tiles, and what neighbours have in common at least, in pixels of the pictures.
    """
    pictures = iter(pictures)
    first = next(pictures)
    height, width = first.shape[:2]
    sides = min(tile, height), min(tile, width)
    places = [*itertools.product(starts(height, sides[0], overlap), starts(width, sides[1], overlap))]
    weight = _weight(*(side * scale for side in sides), overlap * scale)
    whole = itertools.chain([first], pictures)
    made = in_batches(run, (one[top : top + sides[0], left : left + sides[1]] for one in whole for top, left in places))
    while pieces := [*itertools.islice(made, len(places))]:
        sums = np.zeros((height * scale, width * scale, 3), np.float32)
        shares = np.zeros((height * scale, width * scale, 1), np.float32)
        for (top, left), piece in zip(places, pieces):
            area = slice(top * scale, (top + sides[0]) * scale), slice(left * scale, (left + sides[1]) * scale)
            sums[area] += weight * piece
            shares[area] += weight
        yield np.round(255 * sums / shares).astype(np.uint8)


def in_batches(run: Run, pieces: Iterable[np.ndarray]) -> Iterator[Float32[np.ndarray, "H W 3"]]:
    """Returns what a network makes of each piece, as many at a time as there are devices."""
    mesh, pieces = make_mesh({"data": -1}), iter(pieces)
    while some := [*itertools.islice(pieces, mesh.size)]:
        batch = np.stack([*some, *[some[-1]] * (mesh.size - len(some))])
        given = jax.device_put(batch, batch_sharding(mesh)) if mesh.size > 1 else batch
        yield from np.asarray(run(given))[: len(some)]


def starts(length: int, side: int, overlap: int) -> list[int]:
    """Where tiles begin along an axis: evenly, with at least the overlap, the last at the end."""
    count = 1 if length <= side else math.ceil((length - overlap) / (side - overlap))
    return [round(number * (length - side) / max(1, count - 1)) for number in range(count)]


def _weight(height: int, width: int, overlap: int) -> Float32[np.ndarray, "h w 1"]:
    """A tile's share: rising over the overlap from its edges."""

    def along(length):
        rising = (np.minimum(np.arange(length), np.arange(length)[::-1]) + 1) / (overlap + 1)
        return np.minimum(1, rising).astype(np.float32)

    return (along(height)[:, None] * along(width))[..., None]
