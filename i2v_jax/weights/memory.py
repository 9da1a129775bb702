"""Memory for tensors that come and go: fresh pages, which the system clears, take longer than reading into them."""

import math
import threading
import weakref

import numpy as np

_thread = threading.local()


def reuse() -> None:
    """From here on, `empty` of this thread gives memory again that no array looks into any more."""
    _thread.blocks = []


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an array of any contents: `numpy.empty`; in threads that `reuse` was called in, of memory used before.

    The smallest free block that is large enough is taken. Where there is none, free ones are given back for a new one,
    so that a thread holds about as much as it ever used at once.
    """
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    blocks = getattr(_thread, "blocks", None)
    if blocks is None or not nbytes:
        return np.empty(shape, dtype)
    free = [block for block, user in blocks if user() is None]
    fitting = [block for block in free if block.nbytes >= nbytes]
    block = min(fitting, key=lambda it: it.nbytes) if fitting else np.empty(nbytes, np.uint8)
    # what looks into an array refers to the first one over memory that is no array's: to this one
    array = np.frombuffer(memoryview(block), np.uint8, nbytes)
    kept = [(it, user) for it, user in blocks if it is not block and (fitting or user() is not None)]
    _thread.blocks = [*kept, (block, weakref.ref(array))]
    return array.view(dtype).reshape(shape)
