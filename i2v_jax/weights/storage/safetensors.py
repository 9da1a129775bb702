"""safetensors: a header of names, dtypes, shapes and offsets, checked before memory is taken, then the arrays."""

import itertools
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from i2v_jax.errors import InputError
from i2v_jax.weights.storage.files import reader, replacing
from i2v_jax.weights.tensors import DTYPE_NAMES, DTYPES, MAX_NAME, MAX_RANK, Entry, Tensors, ahead, data_of

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format


def open_safetensors(path: Path) -> Tensors:
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise InputError(f"{path} is cut short or damaged: a header of {length} bytes in a file of {size}.")
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_without_twins)
        metadata = header.pop("__metadata__", None) or {}
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is damaged: its header is not a JSON object ({error}).") from error
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise InputError(f"{path} is damaged: its '__metadata__' is no object of texts: {str(metadata)[:200]}.")
    start, entries, spans = 8 + length, {}, []
    for name, fields in header.items():
        if len(name) > MAX_NAME:
            raise InputError(f"{path} is damaged: it has a name of {len(name)} characters, {name[:80]!r}...")
        try:
            dtype, shape, (begin, end) = DTYPES[fields["dtype"]], tuple(fields["shape"]), fields["data_offsets"]
            sound = all(type(n) is int and 0 <= n <= size for n in (*shape, begin, end)) and len(shape) <= MAX_RANK
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged: {name!r} is described as {str(fields)[:200]}.") from error
        if not sound or math.prod(shape) * dtype.itemsize != end - begin or start + end > size:
            raise InputError(
                f"{path} is cut short or damaged: {name!r} is declared {dtype} {shape} in bytes {begin} to {end} "
                f"of {size - start}. Fetch it again."
            )
        spans.append((begin, end, name))
        entries[name] = Entry(shape, dtype, reader(path, name, start + begin, shape, dtype), path)
    spans = [(0, 0, "the header"), *sorted(spans), (size - start, size - start, "the end")]
    for (_, end, first), (begin, _, second) in itertools.pairwise(spans):
        if begin != end:
            fault = (
                f"overlap by {end - begin}" if begin < end else f"have {begin - end} between them that no tensor has"
            )
            raise InputError(f"{path} is damaged: {first!r} and {second!r} {fault} bytes. Fetch it again.")
    return Tensors(entries, str(path), metadata)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, each of whose keys stands in it once."""
    value = {}
    for key, field in pairs:
        if key in value:
            raise ValueError(f"{key!r} stands in it twice")
        value[key] = field
    return value


def save_tensors(
    path: str | Path,
    tensors: Tensors,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int], object] = lambda count: None,
    ahead_bytes: float = math.inf,
) -> None:
    """Writes a safetensors file, a few tensors at a time, beside its place and then renamed into it.

    The thread that reads a tensor writes it too: what another core has in its cache is slow to come by.

    Args:
        path: the file; one that is there is replaced, only once the new one is complete.
        tensors: what to write; each is read just before it is written.
        metadata: text kept in the file's header.
        progress: called with the bytes of each tensor once they are written.
        ahead_bytes: how many bytes of tensors may wait to be written, see `tensors.ahead`.

    Raises:
        InputError: the file cannot be written (no such folder, no space, no permission).
    """
    header, begins, end = {"__metadata__": dict(metadata)} if metadata else {}, {}, 0
    order = sorted(tensors.entries.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))  # keeps data aligned
    for name, entry in order:
        begins[name], end = end, end + entry.nbytes
        header[name] = {
            "dtype": DTYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [begins[name], end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()

        def write(name: str, entry: Entry) -> int:
            data, at = memoryview(data_of(name, entry)), 8 + len(text) + begins[name]
            while data:
                count = os.pwrite(file.fileno(), data, at)
                data, at = data[count:], at + count
            return entry.nbytes

        for count in ahead(order, write, ahead_bytes):
            progress(count)
