"""Precisions of exported weights: how a parameter is stored, and how a network has it back as float32.

int8: each output channel of a kernel, and each row of a table of embeddings, times a scale of its own (symmetric, no
zero point); biases and norms stay float32. Activations are float32 whatever the weights are.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int8

from i2v_jax.weights.lazy import cast, check_finite
from i2v_jax.weights.tensors import Entry, Tensors

CHANNEL_AXIS = {"kernel": -1, "embedding": 0}
"""Leaf of a parameter's path -> the axis along which int8 has scales."""
SCALE = ".scale"
"""What stands behind a parameter's path for its scales, float32 [channels]."""


def channel_axis(path: str, rank: int) -> int | None:
    """Returns the axis of a parameter's scales in int8, None where it stays float32."""
    axis = CHANNEL_AXIS.get(path.rpartition("/")[2])
    return None if axis is None or rank < 2 else axis % rank


def stored(tensors: Tensors, precision: str) -> Tensors:
    """Returns parameters as a file has them, each made when it is read.

    Reading raises InputError where one is not finite, or its numbers are too large for float16.
    """
    tensors = check_finite(tensors)
    if precision != "int8":
        return cast(tensors, np.dtype(precision))
    found = {}
    for path, entry in cast(tensors, np.dtype(np.float32)).entries.items():
        axis = channel_axis(path, len(entry.shape))
        if axis is None:
            found[path] = entry
            continue
        found[path] = dataclasses.replace(entry, dtype=np.dtype(np.int8), read=functools.partial(_rounded, entry, axis))
        scales = functools.partial(_scales_of, entry, axis)
        found[path + SCALE] = Entry((entry.shape[axis],), np.dtype(np.float32), scales)
    return tensors.holding(found)


def restored(weights: Mapping[str, Any], path: str) -> Float32[Array, "..."]:
    """Returns a parameter of stored ones as the network has it."""
    array = jnp.asarray(weights[path], jnp.float32)
    if path + SCALE not in weights:
        return array
    return array * along(weights[path + SCALE], channel_axis(path, array.ndim), array.ndim)


def scales(array: Float[np.ndarray, "..."], axis: int) -> Float32[np.ndarray, " channels"]:
    """Returns the scale of each channel, with which its largest number becomes 127; 1 where all are 0."""
    others = tuple(i for i in range(array.ndim) if i != axis)
    largest = np.abs(array).max(axis=others).astype(np.float32)
    return np.where(largest > 0, largest / 127, 1).astype(np.float32)


def quantised(array: Float[np.ndarray, "..."], axis: int) -> Int8[np.ndarray, "..."]:
    """Returns whole numbers -127..127 that times `scales` are nearest to the array."""
    return np.rint(array / along(scales(array, axis), axis, array.ndim)).astype(np.int8)


def along(vector: Any, axis: int, rank: int) -> Any:
    """Returns a vector that broadcasts along one axis of an array of so many."""
    return vector.reshape([-1 if i == axis else 1 for i in range(rank)])


def _rounded(entry: Entry, axis: int) -> Int8[np.ndarray, "..."]:
    return quantised(entry.read(), axis)


def _scales_of(entry: Entry, axis: int) -> Float32[np.ndarray, " channels"]:
    return scales(entry.read(), axis)
