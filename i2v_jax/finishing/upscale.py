"""Larger frames: by an upscaler of the community, in tiles, or by Lanczos where that is asked for by name."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from i2v_jax.devices.mesh import batch_sharding, make_mesh
from i2v_jax.errors import InputError
from i2v_jax.media import Picture, fit_picture
from i2v_jax.models import upscaler
from i2v_jax.models.kernels.choice import choose
from i2v_jax.models.upscaler import UpscalerConfig
from i2v_jax.weights.upscalers import load_upscaler

LANCZOS = "lanczos"
FACTORS = (2, 3, 4, 8)  # of Lanczos

Enlarge = Callable[[Picture], Picture]


def of_name(by: str, tile: int, overlap: int, factor: int, dtype: Any = jnp.float32) -> tuple[int, Enlarge]:
    """Returns by how much sides become longer, and what enlarges a frame.

    Args:
      by: "lanczos", or weights of an upscaler: a file or a hub id.
      tile: side of the pieces of a frame that are enlarged at a time, in pixels; bounds memory.
      overlap: pixels of a piece that its neighbour has too; there they are blended.
      factor: of Lanczos; weights have their own.
      dtype: of an upscaler's weights and activations.

    Raises:
      InputError: a number out of range, weights that are not there, or no upscaler's.
    """
    if by == LANCZOS:
        if factor not in FACTORS:
            raise InputError(f"upscale.factor={factor}: wanted one of {', '.join(map(str, FACTORS))}.")
        return factor, lambda frame: fit_picture(frame, *(factor * side for side in frame.shape[:2]), "stretch")
    if overlap < 0 or tile <= 2 * overlap or tile < 16:
        raise InputError(
            f"upscale.tile={tile}, upscale.overlap={overlap}: wanted a tile of 16 pixels or more, more than twice the "
            "overlap."
        )
    chosen = choose(jax.devices()[0], dtype)
    config, parameters = load_upscaler(by, dtype=dtype, convolution=chosen["convolution"])
    if config.channels != 3:
        raise InputError(f"{by} enlarges pictures of {config.channels} channels, 3 (RGB) are wanted.")
    if config.scale < 2:
        raise InputError(f"{by} does not enlarge pictures (its factor is {config.scale}). Wanted an upscaler.")
    return config.scale, lambda frame: in_tiles(config, parameters, frame, tile, overlap)


def in_tiles(config: UpscalerConfig, parameters: Any, frame: Picture, tile: int, overlap: int) -> Picture:
    """Returns a frame enlarged by a network, tile by tile; all tiles are of one size, and lie the same in all frames.

    Where tiles overlap they are blended from one to the other. A frame no larger than a tile is enlarged whole. Several
    devices each take tiles.
    """
    height, width = frame.shape[:2]
    sides = min(tile, height), min(tile, width)
    places = [*itertools.product(_starts(height, sides[0], overlap), _starts(width, sides[1], overlap))]
    pictures = np.float32(frame) / 255
    scale = config.scale
    sums = np.zeros((height * scale, width * scale, 3), np.float32)
    shares = np.zeros((height * scale, width * scale, 1), np.float32)
    weight = _weight(*(side * scale for side in sides), overlap * scale)
    pieces = [pictures[top : top + sides[0], left : left + sides[1]] for top, left in places]
    for (top, left), made in zip(places, _enlarged(config, parameters, pieces)):
        area = slice(top * scale, (top + sides[0]) * scale), slice(left * scale, (left + sides[1]) * scale)
        sums[area] += weight * made
        shares[area] += weight
    return np.round(255 * sums / shares).astype(np.uint8)


def _enlarged(config, parameters, pieces: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Each piece by the network, as many at a time as there are devices."""
    mesh = make_mesh({"data": -1})
    for first in range(0, len(pieces), mesh.size):
        some = pieces[first : first + mesh.size]
        batch = np.stack([*some, *[some[-1]] * (mesh.size - len(some))])
        given = jax.device_put(batch, batch_sharding(mesh)) if mesh.size > 1 else batch
        yield from np.asarray(upscaler.upscale(config, parameters, given))[: len(some)]


def _starts(length: int, side: int, overlap: int) -> list[int]:
    """Where tiles begin along an axis: evenly, with at least the overlap, the last at the end."""
    count = 1 if length <= side else math.ceil((length - overlap) / (side - overlap))
    return [round(number * (length - side) / max(1, count - 1)) for number in range(count)]


def _weight(height: int, width: int, overlap: int) -> Float32[np.ndarray, "h w 1"]:
    """A tile's share: rising over the overlap from its edges."""

    def along(length):
        rising = (np.minimum(np.arange(length), np.arange(length)[::-1]) + 1) / (overlap + 1)
        return np.minimum(1, rising).astype(np.float32)

    return (along(height)[:, None] * along(width))[..., None]
