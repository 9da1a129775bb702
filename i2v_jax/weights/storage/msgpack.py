"""Flax checkpoints (`*.msgpack`): nested maps of arrays in MessagePack, as `flax.serialization` writes them.

A walk over the file notes where each array lies and checks every declared size; arrays are read when asked for.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from i2v_jax.errors import InputError
from i2v_jax.tree import Tree, flatten, unflatten
from i2v_jax.weights.storage.files import reader, replacing
from i2v_jax.weights.tensors import DTYPES, MAX_NAME, MAX_RANK, Entry, Tensors, contents

ARRAY, SCALAR = 1, 3
"""Flax's extension types; both hold the list [shape, dtype name, bytes]."""
CHUNKED = "__msgpack_chunked_array__"
"""Flax's mark of a map that stands for one array, cut into flat `chunks` because it is longer than `MAX_CHUNK`."""
MAX_CHUNK = 2**30  # bytes
MAX_DEPTH = 32
MAX_VALUES = 100_000
MSGPACK_STARTS = tuple(bytes([byte]) for byte in (*range(0x81, 0x90), 0xDE, 0xDF))  # a map that is not empty

DTYPES_BY_NAME = {dtype.name: dtype for dtype in DTYPES.values()}

# First byte of a value -> its kind, and the width in bytes of the length (or number) that follows. Smaller lengths
# and numbers are part of the first byte.
_KINDS: dict[int, tuple[str, int]] = {
    0xC0: ("nil", 0),
    0xC2: ("boolean", 0),
    0xC3: ("boolean", 0),
    **{0xC4 + i: ("bytes", 1 << i) for i in range(3)},
    **{0xC7 + i: ("extension", 1 << i) for i in range(3)},
    **{0xCA + i: ("float", 4 << i) for i in range(2)},
    **{0xCC + i: ("integer", 1 << i) for i in range(4)},
    **{0xD0 + i: ("negative integer", 1 << i) for i in range(4)},
    **{0xD9 + i: ("text", 1 << i) for i in range(3)},
    **{0xDC + i: ("list", 2 << i) for i in range(2)},
    **{0xDE + i: ("map", 2 << i) for i in range(2)},
}

Place = tuple[str, ...]
"""The keys from the root to a value."""


def open_msgpack(path: Path) -> Tensors:
    """Opens a Flax checkpoint without reading an array; names are the keys from the root, joined by dots.

    Values that are no arrays (step counts and the like) are passed over.

    Raises:
        InputError: the file is cut short or damaged, or holds something else than nested maps of arrays.
    """
    try:
        with open(path, "rb") as file:
            values = _Walk(file, path).values()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    chunks = {(*place[:-1], "chunks") for place in values if place[-1] == CHUNKED}
    arrays = {}
    for place, value in values.items():
        if place[-1] == CHUNKED:
            arrays[place[:-1]] = _joined(path, place[:-1], values)
        elif isinstance(value, Entry) and place[:-1] not in chunks:
            arrays[place] = value
    entries = {".".join(place): entry for place, entry in arrays.items()}
    if len(entries) < len(arrays):
        raise InputError(f"{path} is damaged: two of its arrays have the same name.")
    if not entries:
        raise InputError(f"{path} holds no arrays, only {['.'.join(place) for place in values][:8]}.")
    return Tensors(entries, str(path))


def save_msgpack(path: str | Path, tensors: Tensors, progress: Callable[[int], object] = lambda count: None) -> None:
    """Writes a Flax checkpoint, one tensor at a time, beside its place and then renamed into it.

    Args:
        path: the file; one that is there is replaced, only once the new one is complete.
        tensors: what to write, `tensors.prefix` put back before every name; the dots of names part the keys.
        progress: called with the bytes of each array, or piece of one, once they are written.

    Raises:
        InputError: the file cannot be written (no such folder, no space, no permission).
    """
    tree = unflatten({f"{tensors.prefix}{name}".replace(".", "/"): entry for name, entry in tensors.entries.items()})
    with replacing(path) as file:
        for piece in _packed(tree, contents(flatten(tree).items())):
            file.write(piece)
            progress(0 if isinstance(piece, bytes) else piece.nbytes)


class _Walk:
    """A way through a file, value by value; no size is believed that the rest of the file cannot hold."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path, self.place = file, path, ()
        self.size = file.seek(0, 2)
        file.seek(0)

    def values(self) -> dict[Place, Entry | int | None]:
        """Returns what the maps hold: arrays, unread, and integers; None for anything else."""
        values: dict[Place, Entry | int | None] = {}
        left = [((), self.length("map", 2))]
        for number in itertools.count():
            while left and not left[-1][1]:
                left.pop()
            if not left:
                break
            above, count = left.pop()
            left.append((above, count - 1))
            self.place = (*above, self.text())
            if number == MAX_VALUES or len(left) > MAX_DEPTH or sum(map(len, self.place)) > MAX_NAME:
                raise self.damage("is one value, one level or one letter more than any network has")
            if self.place in values:
                raise self.damage("is there twice")
            kind, size = self.head()
            if kind == "map":
                left.append((self.place, self.checked(size, 2)))
            elif kind == "list":
                raise self.damage("is a list; wanted maps and arrays")
            else:
                values[self.place] = self.value(kind, size)
        if self.file.tell() != self.size:
            raise self.damage(f"is the last value, but {self.size - self.file.tell()} bytes follow")
        return values

    def value(self, kind: str, size: int) -> Entry | int | None:
        if kind == "extension":
            return self.array(size)
        if kind in ("text", "bytes"):
            self.file.seek(self.checked(size), 1)
        return size if kind == "integer" else None

    def array(self, size: int) -> Entry:
        """The array in an extension of `size` bytes, whose type comes next."""
        kind = self.take(1)[0]
        if kind not in (ARRAY, SCALAR):
            raise self.damage(f"is of extension type {kind}; wanted {ARRAY}, an array")
        end = self.file.tell() + self.checked(size)
        if self.length("list") != 3:
            raise self.damage("is no array: wanted its shape, dtype and bytes")
        rank = self.length("list")
        if rank > MAX_RANK:
            raise self.damage(f"has {rank} axes; wanted at most {MAX_RANK}")
        shape = tuple(self.length("integer", 0) for _ in range(rank))
        dtype_name = self.text()
        dtype = DTYPES_BY_NAME.get(dtype_name)
        if dtype is None:
            raise self.damage(f"is {dtype_name} {shape}; known dtypes are {', '.join(DTYPES_BY_NAME)}")
        count, begin = self.length("bytes"), self.file.tell()
        if math.prod(shape) * dtype.itemsize != count or max(shape, default=0) > self.size or begin + count != end:
            raise self.damage(f"is declared {dtype} {shape} in {count} bytes, {end - begin} are set aside for it")
        self.file.seek(end)
        return Entry(shape, dtype, reader(self.path, ".".join(self.place), begin, shape, dtype), self.path)

    def head(self) -> tuple[str, int]:
        """The kind of the next value and its length, or what it is if it is a number."""
        first = self.take(1)[0]
        if first < 0x80:
            return "integer", first
        if first < 0x90:
            return "map", first & 0x0F
        if first < 0xA0:
            return "list", first & 0x0F
        if first < 0xC0:
            return "text", first & 0x1F
        if first >= 0xE0:
            return "negative integer", first - 0x100
        if 0xD4 <= first <= 0xD8:
            return "extension", 1 << (first - 0xD4)
        if first not in _KINDS:
            raise self.damage(f"starts with the byte {first:#x}, which means nothing")
        kind, width = _KINDS[first]
        return kind, int.from_bytes(self.take(width), "big")

    def length(self, wanted: str, least: int = 1) -> int:
        """Takes the head of a value that must be of that kind; its elements take at least so many bytes each."""
        kind, size = self.head()
        if kind != wanted:
            raise self.damage(f"has a {kind} where a {wanted} should be")
        return self.checked(size, least)

    def text(self) -> str:
        """Takes a text, such as a key."""
        size = self.length("text")
        if size > MAX_NAME:
            raise self.damage(f"has a key of {size} bytes")
        try:
            return self.take(size).decode()
        except UnicodeDecodeError as error:
            raise self.damage("has a key that is no UTF-8") from error

    def take(self, count: int) -> bytes:
        taken = self.file.read(count)
        if len(taken) < count:
            raise self.damage(f"is cut short at byte {self.size}")
        return taken

    def checked(self, size: int, least: int = 1) -> int:
        """`size` elements of at least `least` bytes each, if the file can hold them."""
        if size * least > self.size - self.file.tell():
            raise self.damage(f"wants {size} more bytes or values; the file ends after {self.size}")
        return size

    def damage(self, what: str) -> InputError:
        where = repr(".".join(self.place)) if self.place else "its root"
        return InputError(f"{self.path} is cut short or damaged: {where} {what}. Fetch it again.")


def _joined(path: Path, place: Place, values: Mapping[Place, Any]) -> Entry:
    """An array that is stored in chunks, as one."""

    def listed(part: str) -> list[Any]:
        """What flax writes of a list: a map of its indices."""
        found = (values.get((*place, part, str(i))) for i in itertools.count())
        return list(itertools.takewhile(lambda value: value is not None, found))

    shape, chunks, name = tuple(listed("shape")), listed("chunks"), ".".join(place)
    sound = all(isinstance(n, int) for n in shape) and all(
        isinstance(chunk, Entry) and len(chunk.shape) == 1 for chunk in chunks
    )
    if not sound or not chunks or math.prod(shape) != sum(chunk.shape[0] for chunk in chunks):
        described = [getattr(chunk, "shape", chunk) for chunk in chunks][:4]
        raise InputError(f"{path} is damaged: {name!r} is declared {shape} in chunks of {described}. Fetch it again.")
    dtype = chunks[0].dtype
    if any(chunk.dtype != dtype for chunk in chunks):
        raise InputError(f"{path} is damaged: {name!r} has chunks of different dtypes. Fetch it again.")

    def read() -> np.ndarray:
        array, begin = np.empty(shape, dtype), 0
        for chunk in chunks:
            array.reshape(-1)[begin : begin + chunk.shape[0]] = chunk.read()
            begin += chunk.shape[0]
        return array

    return Entry(shape, dtype, read, path)


def _packed(tree: Tree, data: Iterator[np.ndarray]) -> Iterator[bytes | np.ndarray]:
    """A tree of entries in MessagePack, piece by piece; `data` yields their bytes in the tree's order."""
    yield _map(len(tree))
    for key, value in tree.items():
        yield _text(key)
        if not isinstance(value, Entry):
            yield from _packed(value, data)
        elif (array := next(data)).nbytes <= MAX_CHUNK:
            yield from _array(value.shape, value.dtype, array)
        else:
            yield from _chunks(value, array)


def _chunks(entry: Entry, data: np.ndarray) -> Iterator[bytes | np.ndarray]:
    yield _map(3) + _text(CHUNKED) + b"\xc3" + _text("shape") + _map(len(entry.shape))
    yield from (_text(str(i)) + _integer(size) for i, size in enumerate(entry.shape))
    size = entry.dtype.itemsize
    step = max(1, MAX_CHUNK // size) * size
    chunks = [data[begin : begin + step] for begin in range(0, data.nbytes, step)]
    yield _text("chunks") + _map(len(chunks))
    for i, chunk in enumerate(chunks):
        yield _text(str(i))
        yield from _array((chunk.nbytes // size,), entry.dtype, chunk)


def _array(shape: tuple[int, ...], dtype: np.dtype, data: np.ndarray) -> Iterator[bytes | np.ndarray]:
    payload = b"\x93" + _head(len(shape), 0x90, 16, (None, 0xDC, 0xDD)) + b"".join(map(_integer, shape))
    payload += _text(dtype.name) + _head(data.nbytes, 0, 0, (0xC4, 0xC5, 0xC6))
    size = len(payload) + data.nbytes
    if size in (1, 2, 4, 8, 16):
        yield bytes([0xD4 + size.bit_length() - 1, ARRAY]) + payload
    else:
        yield _head(size, 0, 0, (0xC7, 0xC8, 0xC9)) + bytes([ARRAY]) + payload
    yield data


def _map(size: int) -> bytes:
    return _head(size, 0x80, 16, (None, 0xDE, 0xDF))


def _text(text: str) -> bytes:
    data = text.encode()
    return _head(len(data), 0xA0, 32, (0xD9, 0xDA, 0xDB)) + data


def _integer(number: int) -> bytes:
    return _head(number, 0, 0x80, (0xCC, 0xCD, 0xCE, 0xCF))


def _head(size: int, small: int, limit: int, codes: tuple[int | None, ...]) -> bytes:
    """The shortest head for a length: within the byte `small`, or after one of `codes`, in 1, 2, 4, 8 bytes."""
    if size < limit:
        return bytes([small + size])
    for i, code in enumerate(codes):
        if code is not None and size < 1 << (8 << i):
            return bytes([code]) + size.to_bytes(1 << i, "big")
    raise ValueError(f"{size} is more than MessagePack can hold.")
