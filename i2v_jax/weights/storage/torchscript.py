"""TorchScript archives (`i3d_torchscript.pt`): the tensors of a network saved with its program, which is not run.

The archive's `data.pkl` is a tree of modules whose attributes are modules, tensors and settings. It is read here by a
pickle reader that knows those alone; PyTorch would load the program too.
"""

import collections
import math
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from i2v_jax.errors import InputError
from i2v_jax.weights.storage.pickled import MAX_PICKLE
from i2v_jax.weights.tensors import DTYPES, MAX_NAME, MAX_RANK, Entry, Tensors

STORAGES = {
    "FloatStorage": DTYPES["F32"],
    "HalfStorage": DTYPES["F16"],
    "BFloat16Storage": DTYPES["BF16"],
    "DoubleStorage": DTYPES["F64"],
    "LongStorage": DTYPES["I64"],
    "IntStorage": DTYPES["I32"],
    "ShortStorage": DTYPES["I16"],
    "CharStorage": DTYPES["I8"],
    "ByteStorage": DTYPES["U8"],
    "BoolStorage": DTYPES["BOOL"],
}
"""PyTorch's name of a kind of storage -> the dtype."""


class Module:
    """A module of the program, of any class: its attributes alone."""


class Storage(NamedTuple):
    """Where numbers lie: a member of the archive, and how many."""

    dtype: np.dtype
    member: str
    count: int


class View(NamedTuple):
    """A tensor: a storage, where in it the first number is, shape and strides, in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, not a pickle of tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except Exception:  # no archive, or damaged in one of many ways: what reads pickles says so
        return False
    return "constants.pkl" in names and any(name.startswith("code/") for name in names)


def open_torchscript(path: Path) -> Tensors:
    """Opens an archive; names are those of the network's state dict.

    Raises:
      InputError: it is damaged, holds something else than modules, tensors and settings, or no tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = archive.namelist()[0].partition("/")[0]
            if archive.getinfo(f"{root}/data.pkl").file_size > MAX_PICKLE:
                raise pickle.UnpicklingError("a tree of modules of that size")
            with archive.open(f"{root}/data.pkl") as file:
                network = _Reader(file, root).load()
            sizes = {member.filename: member.file_size for member in archive.infolist()}
            found = dict(_walk(network))
            entries = {name: _entry(path, name, view, sizes) for name, view in found.items()}
    except InputError:
        raise
    except Exception as error:  # damaged and malicious pickles fail in more ways than can be listed
        raise InputError(
            f"{path} is a damaged TorchScript archive, or holds more than a network ({type(error).__name__}; nothing "
            "in it was run). Fetch it again."
        ) from error
    if not entries:
        raise InputError(f"{path} is a TorchScript archive without tensors: a program alone.")
    return Tensors(entries, str(path))


class _Reader(pickle.Unpickler):
    """Reads modules, tensors and lists of numbers; every other name is refused."""

    def __init__(self, file, root: str):
        super().__init__(file)
        self.root = root

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "__torch__":
            return Module
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _view,
            **{("torch.jit._pickle", f"build_{kind}list"): list for kind in ("int", "double", "bool", "tensor")},
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        _, dtype, key, _, count = pid
        return Storage(np.dtype(dtype), f"{self.root}/data/{key}", int(count))


def _view(storage: Storage, offset: int, shape: Any, strides: Any, *_: Any) -> View:
    return View(storage, offset, tuple(shape), tuple(strides))


def _walk(network: Any) -> Iterator[tuple[str, View]]:
    """The tensors of a tree of modules, names joined by dots."""
    queue, seen = [("", network)], {id(network)}
    for prefix, module in queue:  # grows while it is read
        for key, value in vars(module).items():
            name = f"{prefix}{key}"
            if isinstance(value, View):
                yield name, value
            elif isinstance(value, Module):
                if id(value) in seen or len(name) > MAX_NAME:
                    raise pickle.UnpicklingError(name[:80])
                seen.add(id(value))
                queue.append((f"{name}.", value))


def _entry(path: Path, name: str, view: View, sizes: dict[str, int]) -> Entry:
    storage, shape = view.storage, view.shape
    last = view.offset + sum((side - 1) * stride for side, stride in zip(shape, view.strides))
    whole = len(shape) == len(view.strides) <= MAX_RANK and min((*shape, *view.strides, view.offset, 0)) == 0
    nbytes = storage.count * storage.dtype.itemsize
    if not whole or (math.prod(shape) and last >= storage.count) or sizes.get(storage.member, 0) != nbytes:
        raise InputError(f"{path}: {name!r} claims shape {shape}, which is not what the file stores for it.")

    def read() -> np.ndarray:
        try:
            with zipfile.ZipFile(path) as archive:
                flat = np.frombuffer(archive.read(storage.member), storage.dtype)
        except Exception as error:  # damaged in more ways than can be listed
            raise InputError(f"{path}: {name!r} cannot be read ({type(error).__name__}). Fetch it again.") from error
        strides = [stride * storage.dtype.itemsize for stride in view.strides]
        return np.lib.stride_tricks.as_strided(flat[view.offset :], shape, strides, writeable=False).copy()

    return Entry(shape, storage.dtype, read, path)
