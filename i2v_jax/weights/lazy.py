"""What is done to tensors on their way from file to file, one by one as they are read: checked to be finite, cast."""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from i2v_jax.errors import InputError
from i2v_jax.weights.tensors import Entry, Tensors

BLOCK = 1 << 16  # elements looked at together: they stay in the cache


def check_finite(tensors: Tensors, names: Mapping[str, str] | None = None) -> Tensors:
    """Returns the same tensors; reading one that holds NaN or infinity raises InputError, with file, name and place.

    Args:
        tensors: what to check, each as it is read.
        names: what they are called in the file, where that differs.
    """
    names = names or {}

    def read(name: str, entry: Entry) -> np.ndarray:
        array = entry.read()
        if not _all_finite(array):
            wrong = _non_finite(array)
            first = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise InputError(
                f"{entry.file or tensors.source}: {names.get(name, name)!r} holds {wrong.sum()} NaN or infinite "
                f"values, first {array[first]} at {list(first)}. Fetch the file again, or one that was trained well."
            )
        return array

    return tensors.holding(
        {
            name: dataclasses.replace(entry, read=functools.partial(read, name, entry))
            for name, entry in tensors.entries.items()
        }
    )


def cast(tensors: Tensors, dtype: np.dtype) -> Tensors:
    """Returns the tensors with every one of floating point in `dtype`; the others as they are.

    Reading one with a finite value that becomes infinite in `dtype` raises InputError, with its name and that value.
    """
    dtype = np.dtype(dtype)

    def read(name: str, entry: Entry) -> np.ndarray:
        array = entry.read()
        with np.errstate(over="ignore"):
            result = array.astype(dtype)
        if not _all_finite(result):
            overflown = _non_finite(result) & ~_non_finite(array)
            if overflown.any():
                raise InputError(
                    f"{entry.file or tensors.source}: {name!r} reaches {np.abs(array[overflown]).max():.4g}, "
                    f"which {dtype} cannot hold. Choose bfloat16 or float32."
                )
        return result

    return tensors.holding(
        {
            name: dataclasses.replace(entry, dtype=dtype, read=functools.partial(read, name, entry))
            if _is_float(entry.dtype) and entry.dtype != dtype
            else entry
            for name, entry in tensors.entries.items()
        }
    )


def _is_float(dtype: np.dtype) -> bool:
    return "float" in dtype.name  # bfloat16 and the 8-bit ones, too, which NumPy has no kind for


def _non_finite(array: np.ndarray) -> np.ndarray:
    """Where an array holds NaN or infinity: where every bit of the exponent is set."""
    if not _is_float(array.dtype):
        return np.zeros(array.shape, bool)
    bits, exponent = _bits_and_exponent(array)
    return bits & exponent == exponent


def _all_finite(array: np.ndarray) -> bool:
    if not _is_float(array.dtype):
        return True
    bits, exponent = _bits_and_exponent(array.ravel(order="K"))
    return all((bits[i : i + BLOCK] & exponent).max() < exponent for i in range(0, bits.size, BLOCK))


def _bits_and_exponent(array: np.ndarray) -> tuple[np.ndarray, np.unsignedinteger]:
    """The array as integers, and infinity as one: of float8_e4m3fn, which has no infinity, NaN."""
    unsigned = f"u{array.itemsize}"
    return array.view(unsigned), np.full((), np.inf, array.dtype).view(unsigned)[()]
