"""Tensors on disk, one read at a time: safetensors (single, sharded), Flax checkpoints, PyTorch pickles, hub ids.

Whatever the file, the caller sees a lazy mapping of names to tensors; headers are checked before memory is taken.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import itertools
import json
import math
import os
import re
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from i2v_jax.errors import InputError
from i2v_jax.hub import fetch, local

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format
MAX_RANK = 32
MAX_NAME = 1000  # characters
READ_AHEAD = 2  # tensors read and transposed, each in a thread, while one is written
TILE, TILE_COLUMNS = 32768, 64  # elements

MODEL_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "diffusion_flax_model", "flax_model")
LORA_STEMS = ("pytorch_lora_weights", "adapter_model")
WEIGHTS = MODEL_STEMS + LORA_STEMS
"""File stems of diffusers, transformers and PEFT."""
SUFFIXES = ("safetensors", "bin", "msgpack")  # in the order of preference
PICKLE_SUFFIXES = (".ckpt", ".pth", ".pt", ".bin")
WEIGHT_SUFFIXES = (".safetensors", ".msgpack", *PICKLE_SUFFIXES)
PICKLE_STARTS = (b"PK\x03\x04", b"\x80")  # in a zip archive, bare
ORBAX_METADATA = "_METADATA"  # the file that makes a folder an orbax checkpoint
MSGPACK_STARTS = tuple(bytes([byte]) for byte in (*range(0x81, 0x90), 0xDE, 0xDF))  # a map that is not empty
PREFIXES = ("module.", "params.")  # of PyTorch's data-parallel training, of Flax's variable collections
NO_TORCH = "is a PyTorch pickle, which only PyTorch reads safely: `pip install torch`, or use safetensors."


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor that is not read yet: its shape, dtype and file are known; `read()` returns it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    file: Path | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.size * self.dtype.itemsize

    @classmethod
    def of(cls, array) -> "Entry":
        """Wraps an array that is in memory (NumPy or JAX)."""
        return cls(tuple(array.shape), np.dtype(array.dtype), lambda: np.asarray(array))


@dataclasses.dataclass(frozen=True)
class Tensors(Mapping[str, np.ndarray]):
    """Named tensors of one component, read when they are asked for.

    Attributes:
        entries: name -> what is known before reading.
        source: what the user named, for messages.
        metadata: the `__metadata__` of a safetensors file.
        config: the `config.json` that lies beside the weights, None where there is none.
        prefix: which of `PREFIXES` stood before every name in the file, stripped here.
    """

    entries: dict[str, Entry]
    source: str
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    config: dict | None = None
    prefix: str = ""

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], source: str = "arrays in memory") -> "Tensors":
        """Wraps arrays that are in memory."""
        return cls({name: Entry.of(array) for name, array in arrays.items()}, source)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.entries[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def nbytes(self) -> int:
        """Number of bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries.values())

    def files(self) -> list[Path]:
        """Returns the files that hold the tensors."""
        return sorted({entry.file for entry in self.entries.values() if entry.file})

    def holding(self, entries: dict[str, Entry]) -> "Tensors":
        """Returns other tensors of the same source."""
        return dataclasses.replace(self, entries=entries)

    def select(self, pattern: str) -> "Tensors":
        """Returns the tensors whose whole name matches the regular expression."""
        return self.holding({name: entry for name, entry in self.entries.items() if re.fullmatch(pattern, name)})


def open_tensors(source: "str | Path | Tensors", folder: str = "", variant: str | None = None) -> Tensors:
    """Opens weights wherever they are, without reading a tensor.

    Args:
        source: a file, that is safetensors, a Flax checkpoint (`.msgpack`) or a pickle (`.ckpt`, `.pth`, `.pt`,
            `.bin`); a folder of diffusers or transformers (`config.json` beside the weights, sharded or not); a
            pipeline's folder, with the component in `folder`; an orbax checkpoint; a hub id `owner/name`, or
            `owner/name/path/to/file.safetensors`; tensors already open are returned as they are.
        folder: the component's folder within a pipeline, such as `unet`.
        variant: which precision of several, such as `fp16`; by default the full one, or fp16 where it is alone.

    Raises:
        InputError: nothing is there, or it is damaged, or it is no format we know.
    """
    if isinstance(source, Tensors):
        return source
    path = local(source)
    if path is None:
        tensors = _open_hub(source, folder, variant)
    elif path.is_dir():
        tensors = _open_folder(path, folder, variant)
    else:
        tensors = _open_file(path)
    return _without_prefix(dataclasses.replace(tensors, source=str(source)))


def check_reader(source: str | Path, folder: str = "") -> None:
    """Raises InputError for a pickle where PyTorch, which alone reads pickles safely, is not installed.

    Nothing is fetched for it: files on the hub are judged by their names. Arguments are those of `open_tensors`.
    """
    path = local(source)
    if path and path.is_dir():
        path = _find_weights(path, folder, None)
        is_pickle = path is not None and ".bin" in path.suffixes
    else:
        is_pickle = _start(path).startswith(PICKLE_STARTS) if path else _hub_suffix(source) in PICKLE_SUFFIXES
    if is_pickle and not _has_torch():
        raise InputError(f"{path or source} {NO_TORCH}")


def holds_weights(folder: Path) -> bool:
    """Whether weights lie in this very folder, under a name that diffusers or transformers gives them."""
    return folder.is_dir() and _find_weights(folder, "", None) is not None


def sha256(path: str | Path) -> str:
    """Returns the SHA-256 of a file as hexadecimal digits, reading it in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(
    path: str | Path,
    tensors: Tensors,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> None:
    """Writes a safetensors file, a few tensors at a time, beside its place and then renamed into it.

    Args:
        path: the file; one that is there is replaced, only once the new one is complete.
        tensors: what to write; each is read just before it is written.
        metadata: text kept in the file's header.
        progress: called with the bytes of each tensor once they are written.

    Raises:
        InputError: the file cannot be written (no such folder, no space, no permission).
    """
    header, end = {"__metadata__": dict(metadata)} if metadata else {}, 0
    order = sorted(tensors.entries.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))  # keeps data aligned
    for name, entry in order:
        begin, end = end, end + entry.nbytes
        header[name] = {
            "dtype": DTYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for data in contents(order):
            file.write(data)
            progress(data.nbytes)


def save_pickle(
    path: str | Path, tensors: Tensors, nesting: str | None, progress: Callable[[int], object] = lambda count: None
) -> None:
    """Writes a PyTorch pickle, beside its place and then renamed into it. All of it is in memory before.

    Args:
        path: the file.
        tensors: what to write.
        nesting: the one name that all tensors are put below, such as `state_dict`; None: the first part of each name is
            a dictionary of its own, as in IP-Adapter files.
        progress: called with the bytes of each tensor once they are read.

    Raises:
        InputError: PyTorch is not installed, or the file cannot be written.
    """
    if not _has_torch():
        raise InputError(f"{path} would be a PyTorch pickle, which takes `pip install torch`; or write safetensors.")
    import torch

    state: dict = {}
    for name, entry in tensors.entries.items():
        array = np.array(entry.read(), order="C")
        dtype = getattr(torch, entry.dtype.name)  # by bytes: torch does not take NumPy's bfloat16
        tensor = torch.from_numpy(array.reshape(-1).view(np.uint8)).view(dtype).reshape(array.shape)
        outer, inner = (nesting, name) if nesting else name.split(".", 1)
        state.setdefault(outer, {})[inner] = tensor
        progress(entry.nbytes)
    with replacing(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # the write that failed
                raise error.__context__ from None
            raise


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


def contents(items: Iterable[tuple[str, Entry]]) -> Iterator[np.ndarray]:
    """Yields what to write of each tensor, its bytes in C order as uint8 [bytes]; a few are read ahead."""

    def read(name: str, entry: Entry) -> np.ndarray:
        array = contiguous(entry.read())
        if (array.shape, array.dtype) != (entry.shape, entry.dtype):
            raise ValueError(f"{name}: {array.shape} {array.dtype} was declared {entry.shape} {entry.dtype}")
        return array.reshape(-1).view(np.uint8)

    ahead: deque[Future] = deque()
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        for item in items:
            ahead.append(pool.submit(read, *item))
            if len(ahead) > READ_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def contiguous(array: np.ndarray) -> np.ndarray:
    """Returns the array in C order: as it is, or copied in tiles.

    A plain copy of a transposed array jumps through memory with every element, on one side or the other; tiles stay in
    the cache on both, which makes it 2 to 6 times as fast.
    """
    if array.flags.c_contiguous or array.ndim < 2:
        return np.asarray(array, order="C")
    copy = np.empty(array.shape, array.dtype)
    rows, columns = sorted(np.argsort(array.shape)[-2:])  # the two longest axes
    width = TILE_COLUMNS
    height = max(1, TILE // (width * (array.size // (array.shape[rows] * array.shape[columns]))))
    # as integers: types that are not NumPy's own, such as bfloat16, it copies one element at a time
    source, target = (np.moveaxis(it.view(f"u{it.itemsize}"), (rows, columns), (0, 1)) for it in (array, copy))
    for row, column in itertools.product(range(0, array.shape[rows], height), range(0, array.shape[columns], width)):
        tile = np.s_[row : row + height, column : column + width]
        target[tile] = source[tile]
    return copy


def _open_file(path: Path) -> Tensors:
    start = _start(path)
    config = read_json(path.parent / "config.json") if (path.parent / "config.json").is_file() else None
    if start[8:9] == b"{":
        tensors = _open_safetensors(path)
    elif start.startswith(PICKLE_STARTS):
        tensors = _open_pickle(path)
    elif start.startswith(MSGPACK_STARTS):
        from i2v_jax.weights.msgpack import open_msgpack

        tensors = open_msgpack(path)
    elif start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer, not the weights. Fetch them with `git lfs pull`.")
    else:
        raise InputError(
            f"{path} ({path.stat().st_size} bytes) is neither safetensors nor a PyTorch pickle nor a Flax checkpoint."
        )
    return dataclasses.replace(tensors, config=config)


def _start(path: Path) -> bytes:
    if not path.is_file():  # a pipe or a device might never end
        raise InputError(f"{path} is no file.")
    try:
        with open(path, "rb") as file:
            return file.read(64)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error


def _open_folder(path: Path, folder: str, variant: str | None) -> Tensors:
    if found := _find_weights(path, folder, variant):
        return _open_shards(found) if found.suffix == ".json" else _open_file(found)
    if (path / ORBAX_METADATA).is_file():
        from i2v_jax.weights.orbax import open_orbax

        return open_orbax(path)
    place = path / folder if (path / folder).is_dir() else path
    held = ", ".join(sorted(os.listdir(place))[:8]) or "nothing"
    wanted = " or ".join(f"{stem}{f'.{variant}' if variant else ''}.safetensors" for stem in WEIGHTS[:2])
    raise InputError(f"No weights in {place}: it holds {held}. Wanted: {wanted}.")


def _find_weights(path: Path, folder: str, variant: str | None) -> Path | None:
    places = [place for place in (path / folder, path) if place.is_dir()]
    for place, stems in itertools.product(places, (MODEL_STEMS, LORA_STEMS)):
        for suffix, middle, stem in itertools.product(SUFFIXES, _variants(variant), stems):
            names = (
                f"{stem}.{suffix}.index{middle}.json",
                f"{stem}{middle}.{suffix}.index.json",
                f"{stem}{middle}.{suffix}",
            )
            for name in names:
                if (place / name).is_file():
                    return place / name
    return None


def _variants(variant: str | None) -> list[str]:
    return [f".{variant}"] if variant else ["", ".fp16"]


def _open_shards(index: Path) -> Tensors:
    listing = read_json(index)
    places = listing.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise InputError(f"{index} has no 'weight_map' of tensor names to files.")
    if ".msgpack" in index.suffixes:  # transformers joins the names of Flax parameters by slashes there
        places = {name.replace("/", "."): place for name, place in places.items()}
    shards = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise InputError(f"{index} names {name[:200]!r}: a shard lies beside its index.")
        if name not in os.listdir(index.parent):
            raise InputError(f"{index} names {name[:200]}, which is not there. Fetch it, or fetch the model again.")
        shards[name] = _open_file(index.parent / name)
    missing = [f"{name} ({place})" for name, place in places.items() if name not in shards[place]]
    if missing:
        raise InputError(f"{index} promises tensors that their files lack: {', '.join(missing[:3])}.")
    entries = {name: shards[place].entries[name] for name, place in places.items()}
    first = next(iter(shards.values()))
    return dataclasses.replace(first, entries=entries)


def _open_hub(source: str | Path, folder: str, variant: str | None) -> Tensors:
    """Fetches only the wanted component."""
    check_reader(source)
    if _hub_suffix(source) in WEIGHT_SUFFIXES:
        path = fetch(source, [".", "../config.json", "../adapter_config.json"])
        if not path.is_file():
            raise InputError(f"{source} does not exist, on this machine or on the hub. Check the name.")
        return _open_file(path)
    suffixes = [suffix for suffix in SUFFIXES if suffix != "bin" or _has_torch()]
    for suffix, middle in itertools.product(suffixes, _variants(variant)):
        names = ["config.json", "adapter_config.json"]
        for stem in WEIGHTS:
            names += [f"{stem}{middle}.{suffix}", f"{stem}*-of-*{suffix}", f"{stem}*{suffix}.index*.json"]
        path = fetch(source, [str(place / name) for place in (Path(), Path(folder)) for name in names])
        if _find_weights(path, folder, variant):
            return _open_folder(path, folder, variant)
    known = "weights" if _has_torch() else "safetensors (a PyTorch pickle would take `pip install torch`)"
    raise InputError(f"{source} on the hub has no {known} in {folder or 'its root'}.")


def _hub_suffix(source: str | Path) -> str:
    """Suffix of the file in a hub id `owner/name/inside`; "" for a whole model, whose name may have a dot in it."""
    return Path(*Path(source).parts[2:]).suffix


def _open_safetensors(path: Path) -> Tensors:
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
    for key, it in pairs:
        if key in value:
            raise ValueError(f"{key!r} stands in it twice")
        value[key] = it
    return value


def reader(path: Path, name: str, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> Callable[[], np.ndarray]:
    """Returns what reads an array that lies row-major in a file, `offset` bytes from its start."""

    # Plain reads, not a memory map: pages that were read and converted must not stay in this process.
    def read() -> np.ndarray:
        array = np.empty(shape, dtype)
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


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _open_pickle(path: Path) -> Tensors:
    if not _has_torch():
        raise InputError(f"{path} {NO_TORCH}")
    import torch

    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                claimed = sum(member.file_size for member in archive.infolist())
            if claimed > path.stat().st_size:
                raise InputError(f"{path} is damaged: it claims {claimed} bytes in a file of {path.stat().st_size}.")
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except InputError:
        raise
    except Exception as error:  # damaged and malicious pickles fail in more ways than can be listed
        # PyTorch's own advice, to switch the protection off, is not passed on.
        reasons = [line.strip() for line in str(error).splitlines() if "WeightsUnpickler error" in line]
        reason = reasons[0] if reasons else type(error).__name__
        raise InputError(
            f"{path} is damaged, or holds more than tensors and was refused (nothing in it was run): {reason[:200]}"
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict):
        raise InputError(f"{path} holds a {type(loaded).__name__}; wanted named tensors.")
    entries = {}
    for name, entry in _walk(path, loaded):
        if name in entries:
            raise InputError(f"{path} holds two tensors of the name {name!r}.")
        entries[name] = entry
    if not entries:
        raise InputError(f"{path} holds no tensors, only {[str(key) for key in loaded][:8]}.")
    return Tensors(entries, str(path))


def _walk(path: Path, loaded: dict) -> Iterator[tuple[str, Entry]]:
    """The tensors of nested dictionaries, names joined by dots. Step counts and the like are passed over."""
    import torch

    queue, seen = [("", loaded)], {id(loaded)}
    for prefix, node in queue:  # grows while it is read
        for key, value in node.items():
            name = f"{prefix}{key}"
            if isinstance(value, torch.Tensor):
                yield name, _torch_entry(path, name, value)
            elif isinstance(value, dict):
                if id(value) in seen or len(name) > MAX_NAME:
                    raise InputError(f"{path}: {name[:80]!r} holds itself, stands twice or is nested too deep.")
                seen.add(id(value))
                queue.append((f"{name}.", value))


def _torch_entry(path: Path, name: str, tensor) -> Entry:
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or not any(dtype == known.name for known in DTYPE_NAMES):
        raise InputError(f"{path}: {name!r} is {dtype} {tensor.layout} on {tensor.device}; wanted a dense tensor.")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() or tensor.ndim > MAX_RANK:
        raise InputError(f"{path}: {name!r} claims shape {tuple(tensor.shape)}, more than the file stores for it.")

    def read() -> np.ndarray:
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        return flat.copy().view(np.dtype(dtype)).reshape(tensor.shape)  # a copy: the file is mapped and may change

    return Entry(tuple(tensor.shape), np.dtype(dtype), read, path)


def read_json(path: Path) -> dict:
    """Returns the object of a JSON file; InputError for anything else."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__}; wanted an object.")
    return value


def _without_prefix(tensors: Tensors) -> Tensors:
    without = {prefix: [name for name in tensors if not name.startswith(prefix)] for prefix in PREFIXES}
    prefix = min(PREFIXES, key=lambda it: len(without[it]))
    if len(without[prefix]) > len(tensors) / 2 or not tensors:
        return tensors
    if strange := without[prefix]:
        raise InputError(f"{tensors.source}: {strange[0]!r} does not start with {prefix!r}, as most of its names do.")
    entries = {name.removeprefix(prefix): entry for name, entry in tensors.entries.items()}
    return dataclasses.replace(tensors, entries=entries, prefix=prefix)
