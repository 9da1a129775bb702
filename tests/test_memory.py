"""Memory that is used again: only once nothing looks into it any more, and only where that was asked for."""

from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np

from i2v_jax.weights import memory


def in_thread(work):
    """What `work` returns in a thread that uses memory again."""
    with ThreadPoolExecutor(1, initializer=memory.reuse) as pool:
        return pool.submit(work).result()


def address(array) -> int:
    return array.__array_interface__["data"][0]


def test_freed_memory_is_used_again():
    def work():
        places = []
        for shape, dtype in (((100, 3), "f4"), ((7, 5, 2), "f8"), ((), "u1"), ((300,), ml_dtypes.bfloat16)):
            array = memory.empty(shape, dtype)
            assert (array.shape, array.dtype) == (shape, np.dtype(dtype)) and array.flags.writeable
            places.append(address(array))
            del array
        return places

    assert len(set(in_thread(work))) == 1


def test_what_is_looked_into_stays_as_it_is():
    """Through any view, after the array itself is gone; of several free blocks the smallest that fits is taken."""

    def work():
        views = [memory.empty((50, 20), np.float32).T[1:] for _ in range(3)]
        for number, view in enumerate(views):
            view[:] = number
        kept = memory.empty((4, 4), np.float32)
        kept[:] = 9
        assert all((view == number).all() for number, view in enumerate(views))
        large, small = memory.empty((3000,), "u1"), memory.empty((1000,), "u1")
        wanted = address(small)
        del large, small
        again = memory.empty((900,), "u1")
        assert address(again) == wanted and (kept == 9).all()
        return views

    views = in_thread(work)  # and after their thread has ended
    assert all((view == number).all() for number, view in enumerate(views))


def test_elsewhere_every_array_is_new():
    first = memory.empty((1000,), np.float32)
    place = address(first)
    assert memory.empty((0, 3), "f4").shape == (0, 3) and first.base is None
    in_thread(lambda: memory.empty((10,), "u1"))
    assert address(first) == place and memory.empty((10,), "u1").base is None
