"""Sparse differences of weights: which elements differ, a bit each, and by how much; 0 everywhere else.

A file of ours keeps them beside layers as other changes are kept (`weights.changes`), so that it is given as a LoRA is.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from i2v_jax.errors import InputError
from i2v_jax.weights.tensors import Entry

BITS, VALUES = "sparse_bits", "sparse_values"
LEAF = re.compile(r"(?P<layer>.*)/(?P<leaf>kernel|scale|bias)")
OF_LEAF = {"kernel": (BITS, VALUES), "scale": (BITS, VALUES), "bias": ("diff_b",)}
"""Parameter of a layer -> what is kept of its change."""


def pack(change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which elements of a change are not 0, uint8 [size / 8] in C order, and these [n]."""
    flat = np.ascontiguousarray(change).reshape(-1)
    return np.packbits(flat != 0), flat[flat != 0]


def unpack(bits: np.ndarray, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the change; the inverse of `pack`."""
    change = np.zeros(int(np.prod(shape)), values.dtype)
    change[np.unpackbits(bits.astype(np.uint8), count=change.size).astype(bool)] = values
    return change.reshape(shape)


def differences(
    first: Mapping[str, Entry], results: Mapping[str, Entry], progress: Callable[[int], object]
) -> Iterator[tuple[str, Entry]]:
    """Yields (path, tensor) of what a file of differences holds; each result is computed once for its size, then again.

    Args:
        first: path -> tensor of the model that differences are from.
        results: path -> tensor of another, of floating point.
        progress: called with the bytes of each result once its size is known.

    Raises:
        InputError: a tensor differs that is of no layer, or that only one of them has.
    """
    if strange := sorted(first.keys() ^ results.keys()):
        raise InputError(
            f"{strange[0]!r} is not in both models: a file of differences holds changes alone. Write whole weights."
        )
    for path, result in results.items():
        count = int(np.count_nonzero(_change(first[path], result)))
        progress(result.nbytes)
        if not count:
            continue
        match = LEAF.fullmatch(path)
        if not match:
            raise InputError(
                f"{path!r} differs, and files of differences hold kernels, scales and biases of layers alone. Write "
                "whole weights, or have a rule leave it as it is."
            )
        size = (-(-result.size // 8), count)
        for leaf in OF_LEAF[match["leaf"]]:
            shape = {BITS: size[:1], VALUES: size[1:]}.get(leaf, result.shape)
            read = functools.partial(_read, leaf, first[path], result)
            dtype = np.dtype(np.uint8 if leaf == BITS else np.float32)
            yield f"{match['layer']}/lora/{leaf}", Entry(shape, dtype, read)


def _change(first: Entry, result: Entry) -> np.ndarray:
    return result.read().astype(np.float32) - first.read().astype(np.float32)


def _read(leaf: str, first: Entry, result: Entry) -> np.ndarray:
    change = _change(first, result)
    return {BITS: lambda: pack(change)[0], VALUES: lambda: pack(change)[1]}.get(leaf, lambda: change)()
