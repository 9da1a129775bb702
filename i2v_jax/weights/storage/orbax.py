"""Orbax checkpoints of nested dictionaries, such as the tree {component: {...}} of training, array by array.

A folder as `orbax.checkpoint` writes it: arrays in Zarr within OCDBT, the tree and our metadata in `_METADATA`.
"""

import functools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from i2v_jax.errors import InputError
from i2v_jax.tree import unflatten
from i2v_jax.weights.storage.files import ORBAX_METADATA, read_json
from i2v_jax.weights.tensors import OWN_FORMAT, OWN_VERSION, Entry, Tensors, contents

EMPTY = "empty"
"""Key of our metadata: names, dtypes and shapes of the tensors without elements, which orbax cannot keep."""
BATCH = 1 << 27  # bytes written at once
MAX_COMPRESSION = 1 << 16  # an array larger than so many times its folder is refused: its size was not meant


def save_orbax(
    path: str | Path,
    tensors: Tensors,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> None:
    """Writes an orbax checkpoint: `StandardCheckpointer().restore(path)` gives the nested dictionaries.

    Args:
        path: the folder, which is not there yet; it appears once it is complete.
        tensors: what to write; the slashes of names part the keys.
        metadata: text to keep beside the tree.
        progress: called with the bytes of each few arrays once they are written.

    Raises:
        InputError: the folder is there already, or cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise InputError(f"{path} is there already. Remove it, or choose another name.")
    empty = {name: entry for name, entry in tensors.entries.items() if not entry.size}
    custom = dict(metadata or {})
    custom[EMPTY] = json.dumps({name: [entry.dtype.name, entry.shape] for name, entry in empty.items()})
    tree = unflatten({name: entry for name, entry in tensors.entries.items() if name not in empty})
    registry = ocp.type_handlers.create_type_handler_registry(
        (Entry, _EntryHandler(progress)),
        (jax.Array, ocp.type_handlers.get_type_handler(jax.Array)),  # orbax warns where it is missing
    )
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_compression=False)
    try:
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            with ocp.Checkpointer(handler) as checkpointer:
                checkpointer.save(beside.absolute() / "tree", ocp.args.PyTreeSave(tree, custom_metadata=custom))
            os.rename(beside / "tree", path)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error
    except ValueError as error:  # of TensorStore, where the system refused to write
        if not (code := re.search(r"os_error_code='(\d+)'", str(error))):
            raise
        raise InputError(f"Cannot write {path}: {os.strerror(int(code[1]))}.") from error


class _EntryHandler(ocp.type_handlers.NumpyHandler):
    """Lets orbax write tensors that are not read yet, a few at a time, as the NumPy arrays that they will be."""

    def __init__(self, progress: Callable[[int], object]):
        super().__init__(deepcopy_host_arrays=False)
        self.progress = progress
        self.failure: Exception | None = None

    async def serialize(self, values: Sequence[Entry], infos: Sequence, args: Sequence | None = None) -> list:
        arrays = contents((info.name, entry) for entry, info in zip(values, infos))
        for batch in _batches(values):
            part = [next(arrays).view(values[i].dtype).reshape(values[i].shape) for i in batch]
            for future in await super().serialize(part, [infos[i] for i in batch], args and [args[i] for i in batch]):
                future.result()
            if self.failure:
                raise self.failure
            self.progress(sum(array.nbytes for array in part))
        return []

    async def _open_and_write(self, *arguments) -> None:
        """As orbax does, but a failure waits for the arrays beside it: none is still being written once it is told."""
        try:
            await super()._open_and_write(*arguments)
        except (OSError, ValueError) as error:
            self.failure = self.failure or error


def _batches(entries: Sequence[Entry]) -> Iterator[list[int]]:
    """Indices in order, each batch of at most `BATCH` bytes or of one tensor."""
    batch, held = [], 0
    for i, entry in enumerate(entries):
        if batch and held + entry.nbytes > BATCH:
            yield batch
            batch, held = [], 0
        batch.append(i)
        held += entry.nbytes
    if batch:
        yield batch


def open_orbax(path: Path) -> Tensors:
    """Opens an orbax checkpoint of nested dictionaries without reading an array; names are `component/path`.

    One that says nothing of its format, such as a training's own, is taken for our tree.

    Raises:
        InputError: the folder is damaged, or its tree holds something else than arrays.
    """
    listing = read_json(path / ORBAX_METADATA)
    try:
        custom = {"format": OWN_FORMAT, "version": OWN_VERSION} | (listing.get("custom_metadata") or {})
        empty = {
            name: (np.dtype(dtype), tuple(shape))
            for name, (dtype, shape) in json.loads(custom.pop(EMPTY, "{}")).items()
        }
        if any(np.broadcast_to(np.empty((), dtype), shape).size for dtype, shape in empty.values()):
            raise ValueError(f"not all that it calls empty are so: {empty}")
        keys = [[key["key"] for key in leaf["key_metadata"]] for leaf in listing["tree_metadata"].values()]
        opening = {"/".join(names): ts.open(_spec(path, listing, ".".join(names))) for names in keys}
        arrays = {name: future.result() for name, future in opening.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged, or no orbax checkpoint of nested arrays: {_short(error)}.") from error
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())

    def read(name: str) -> np.ndarray:
        try:
            return arrays[name].read().result()
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is damaged: {name!r} cannot be read ({_short(error)}).") from error

    file = path / ("manifest.ocdbt" if listing.get("use_ocdbt") else ORBAX_METADATA)  # changes with what is in the tree
    entries = {}
    for name, array in arrays.items():
        entry = Entry(array.shape, array.dtype.numpy_dtype, functools.partial(read, name), file)
        if entry.nbytes > MAX_COMPRESSION * size:
            raise InputError(
                f"{path} is damaged: {name!r} is declared {entry.dtype} {entry.shape} in a folder of {size} bytes."
            )
        entries[name] = entry
    for name, (dtype, shape) in empty.items():
        entries[name] = Entry(shape, dtype, functools.partial(np.empty, shape, dtype), file)
    return Tensors(entries, str(path), {key: value for key, value in custom.items() if isinstance(value, str)})


def _spec(path: Path, listing: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Where orbax keeps an array, for TensorStore; its absence is an error, not an array of zeros."""
    folder = {"driver": "file", "path": f"{path.absolute()}/"}
    store = {"driver": "ocdbt", "base": folder, "path": ""} if listing.get("use_ocdbt") else folder
    driver = "zarr3" if listing.get("use_zarr3") else "zarr"
    return {"driver": driver, "kvstore": store | {"path": f"{store['path']}{name}/"}, "fill_missing_data_reads": False}


def _short(error: Exception) -> str:
    """The first line of a message, which may be long."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
