"""PyTorch pickles (`.ckpt`, `.pth`, `.pt`, `.bin`), read by PyTorch alone, as tensors only: nothing in them is run."""

import importlib.util
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from i2v_jax.errors import InputError
from i2v_jax.weights.storage.files import replacing
from i2v_jax.weights.storage.pickled import no_tensors, why_refused
from i2v_jax.weights.tensors import DTYPE_NAMES, MAX_NAME, MAX_RANK, Entry, Tensors

PICKLE_SUFFIXES = (".ckpt", ".pth", ".pt", ".bin", ".pkl")
PICKLE_STARTS = (b"PK\x03\x04", b"\x80")  # in a zip archive, bare
NO_TORCH = "is a PyTorch pickle, which only PyTorch reads safely: `pip install torch`, or use safetensors."


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def open_pickle(path: Path) -> Tensors:
    if not has_torch():
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
        raise InputError(why_refused(path, error)) from error  # PyTorch's own words are not passed on
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    elif isinstance(loaded, dict) and _is_deepspeed(loaded.get("module")):
        loaded = loaded["module"]
    if not isinstance(loaded, dict):
        raise InputError(f"{path} holds a {type(loaded).__name__}; wanted named tensors.")
    entries = {}
    for name, entry in _walk(path, loaded):
        if name in entries:
            raise InputError(f"{path} holds two tensors of the name {name!r}.")
        entries[name] = entry
    if not entries:
        raise InputError(f"{path} {no_tensors(loaded)}")
    return Tensors(entries, str(path))


def _is_deepspeed(module: Any) -> bool:
    """Whether these are the weights of a training state that Lightning wrote with DeepSpeed."""
    return isinstance(module, dict) and any(str(name).startswith("_forward_module.") for name in module)


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


def save_pickle(
    path: str | Path,
    tensors: Tensors,
    nesting: str | None,
    progress: Callable[[int], object] = lambda count: None,
    beside: Mapping[str, Any] | None = None,
) -> None:
    """Writes a PyTorch pickle, beside its place and then renamed into it. All of it is in memory before.

    Args:
        path: the file.
        tensors: what to write.
        nesting: the one name that all tensors are put below, such as `state_dict`; None: the first part of each name is
            a dictionary of its own, as in IP-Adapter files; "": they stand side by side.
        progress: called with the bytes of each tensor once they are read.
        beside: plain values to keep beside the tensors.

    Raises:
        InputError: PyTorch is not installed, or the file cannot be written.
    """
    if not has_torch():
        raise InputError(f"{path} would be a PyTorch pickle, which takes `pip install torch`; or write safetensors.")
    import torch

    state: dict = dict(beside or {})
    for name, entry in tensors.entries.items():
        array = np.array(entry.read(), order="C")
        dtype = getattr(torch, entry.dtype.name)  # by bytes: torch does not take NumPy's bfloat16
        tensor = torch.from_numpy(array.reshape(-1).view(np.uint8)).view(dtype).reshape(array.shape)
        if nesting == "":
            state[name] = tensor
        else:
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
