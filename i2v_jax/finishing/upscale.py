"""Larger frames: by an upscaler of the community, in tiles, or by Lanczos where that is asked for by name."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from i2v_jax.errors import InputError
from i2v_jax.finishing import tiles
from i2v_jax.media import Picture, fit_picture
from i2v_jax.models import upscaler
from i2v_jax.models.kernels.choice import choose
from i2v_jax.models.upscaler import UpscalerConfig
from i2v_jax.weights.whole import load_network

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
    tiles.check("upscale", tile, overlap)
    chosen = choose(jax.devices()[0], dtype)
    config, parameters = load_network("upscaler", by, dtype=dtype, convolution=chosen["convolution"])
    if config.channels != 3:
        raise InputError(f"{by} enlarges pictures of {config.channels} channels, 3 (RGB) are wanted.")
    if config.scale < 2:
        raise InputError(f"{by} does not enlarge pictures (its factor is {config.scale}). Wanted an upscaler.")
    return config.scale, lambda frame: in_tiles(config, parameters, frame, tile, overlap)


def in_tiles(config: UpscalerConfig, parameters: Any, frame: Picture, tile: int, overlap: int) -> Picture:
    """Returns a frame enlarged by a network, tile by tile, see `tiles.in_tiles`."""
    run = functools.partial(upscaler.upscale, config, parameters)
    return next(tiles.in_tiles(run, [np.float32(frame) / 255], config.scale, tile, overlap))
