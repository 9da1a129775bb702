"""What every kind of file needs: an array read at its offset, a file replaced only once it is complete, JSON."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from i2v_jax.errors import InputError
from i2v_jax.hub import read_text
from i2v_jax.weights import memory

ORBAX_METADATA = "_METADATA"
"""The file that makes a folder an orbax checkpoint."""


def reader(path: Path, name: str, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> Callable[[], np.ndarray]:
    """Returns what reads an array that lies row-major in a file, `offset` bytes from its start."""

    # Plain reads, not a memory map: pages that were read and converted must not stay in this process.
    def read() -> np.ndarray:
        array = memory.empty(shape, dtype)
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            view, done = memoryview(array.reshape(-1).view(np.uint8)), 0
            while done < len(view):
                count = file.readinto(view[done:])
                if not count:
                    raise InputError(f"{path} was cut short while {name!r} was read.")
                done += count
        return array

    return read


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Gives a file to write beside `path`, renamed into it once the block ends well, removed where it does not.

    Raises:
        InputError: the file cannot be written (no such folder, no space, no permission).
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(unfinished, "wb") as file:
            yield file
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        if unfinished.exists():  # on a disk that may only be read, to remove what is not there is an error
            unfinished.unlink()


def read_json(path: Path) -> dict:
    """Returns the object of a JSON file; InputError for anything else."""
    try:
        value = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__}; wanted an object.")
    return value
