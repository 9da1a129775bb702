"""Correlations of all pairs of two maps' pixels, in a pyramid (RAFT, Teed and Deng 2020, section 3.2)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def correlation_pyramid(
    first: Float[Array, "n h w c"], second: Float[Array, "n h w c"], levels: int, radius: int
) -> list[Float[Array, "p _H _W"]]:
    """Returns dot products of all pixels of the first features with all of the second, over sqrt(channels).

    A level is half as high and wide as the one before (means of 2x2), with a border of zeros for what is looked up
    outside of the picture. Pixels of the first features, of all pictures, are the first axis.
    """
    n, height, width, channels = first.shape
    flat = (second.reshape(n, -1, channels), first.reshape(n, -1, channels))
    products = jnp.einsum("nqc,npc->npq", *flat) / np.sqrt(channels).astype(np.float32)
    level, border, pyramid = products.reshape(-1, height, width), 2 * radius + 2, []
    for _ in range(levels):
        pyramid.append(jnp.pad(level, ((0, 0), (border, border), (border, border))))
        level = halved(level)
    return pyramid


def halved(x: Float[Array, "p h w"]) -> Float[Array, "p h2 w2"]:
    """Returns means of squares of 2x2; an odd last row or column is dropped."""
    rows, columns = (side // 2 for side in x.shape[1:])
    return x[:, : 2 * rows, : 2 * columns].reshape(len(x), rows, 2, columns, 2).mean((2, 4))


def look_up(
    pyramid: Sequence[Float[Array, "p _H _W"]], positions: Float[Array, "p 2"], radius: int
) -> Float[Array, "p k"]:
    """Returns correlations around positions (x, y) in the second features, bilinear, zero outside of the picture.

    Channels: level, then the step in x, then the step in y, each from -radius to radius.
    """
    side = 2 * radius + 2
    found = []
    for number, level in enumerate(pyramid):
        place = positions / 2**number
        whole = jnp.floor(place)
        right, down = jnp.moveaxis(place - whole, -1, 0)[..., None, None]
        # all samples have the same fractions, so that one square of whole pixels serves for all
        starts = jnp.asarray(jnp.clip(whole, -1e6, 1e6), jnp.int32) + radius + 2
        square = jax.vmap(lambda image, start: jax.lax.dynamic_slice(image, (start[1], start[0]), (side, side)))(
            level, starts
        )
        rows = square[:, :-1] * (1 - down) + square[:, 1:] * down
        samples = rows[:, :, :-1] * (1 - right) + rows[:, :, 1:] * right
        found.append(samples.transpose(0, 2, 1).reshape(len(samples), (2 * radius + 1) ** 2))
    return jnp.concatenate(found, -1)
