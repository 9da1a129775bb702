"""Files of face embeddings for an IP-Adapter FaceID: one ArcFace vector, or several, as insightface's
`normed_embedding` gives them; .npy, .npz, .safetensors, or a PyTorch pickle, of which only tensors are read."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from i2v_jax.errors import InputError, nearest
from i2v_jax.weights.storage.pickle import NO_TORCH, PICKLE_SUFFIXES, has_torch
from i2v_jax.weights.storage.pickled import why_refused
from i2v_jax.weights.storage.safetensors import open_safetensors

LENGTH_TOLERANCE = 0.05  # of embeddings in half precision, which are of length 1


def read(path: str | Path) -> Float32[np.ndarray, "n e"]:
    """Reads the face embeddings of a file: all that it holds, in its order, each a row.

    Raises:
      InputError: no such file, of another kind, damaged, no numbers, vectors of several widths, or not finite.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"No face embedding at {str(path)!r}. Check the path.")
    if path.suffix.lower() not in READERS:
        hint = nearest(path.suffix, READERS)
        raise InputError(f"{str(path)!r} is no file of face embeddings; known: {', '.join(READERS)}.{hint}")
    try:
        held = READERS[path.suffix.lower()](path)
    except InputError:
        raise
    except Exception as error:  # damaged files fail in more ways than can be listed
        raise InputError(f"{str(path)!r} cannot be read as a face embedding ({type(error).__name__}).") from error
    return rows(held, repr(str(path)))


def rows(arrays: list[Any], source: str) -> Float32[np.ndarray, "n e"]:
    """Returns arrays [e], [n, e] or [1, n, e] as rows; `source` is for messages. Raises InputError as `read`."""
    arrays = [np.asarray(array) for array in arrays]
    numbers = [array for array in arrays if np.issubdtype(array.dtype, np.number) and 1 <= array.ndim <= 3]
    vectors = [array.reshape(-1, array.shape[-1]) for array in numbers if array.size]
    widths = {array.shape[-1] for array in vectors}
    if len(vectors) != len(arrays) or len(widths) != 1:
        shapes = ", ".join(f"{array.dtype} {list(array.shape)}" for array in arrays[:3]) or "nothing"
        raise InputError(f"{source} holds {shapes}; wanted face embeddings, one vector or several of one width.")
    found = np.concatenate(vectors).astype(np.float32)
    if not np.isfinite(found).all():
        raise InputError(f"{source} holds a face embedding with NaN or infinite numbers. Make it anew.")
    lengths = np.linalg.norm(found, axis=1)
    if (abs(lengths - 1) > LENGTH_TOLERANCE).any():
        warnings.warn(
            f"{source}: the face embedding has length {lengths[0]:.3g}; FaceIDs were trained on those of length 1 "
            "(insightface: face.normed_embedding, not face.embedding).",
            stacklevel=2,
        )
    return found


def _of_npz(path: Path) -> list[np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return [archive[name] for name in archive.files]


def _of_safetensors(path: Path) -> list[np.ndarray]:
    return [np.asarray(entry.read(), np.float32) for entry in open_safetensors(path).entries.values()]


def _of_torch(path: Path) -> list[np.ndarray]:
    if not has_torch():
        raise InputError(f"{path} {NO_TORCH}")
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's own words are not passed on
        raise InputError(why_refused(path, error)) from error
    held = loaded.values() if isinstance(loaded, Mapping) else loaded if isinstance(loaded, list) else [loaded]
    return [tensor.detach().float().numpy() for tensor in held]


READERS: Mapping[str, Callable[[Path], list[np.ndarray]]] = {
    ".npy": lambda path: [np.load(path, allow_pickle=False)],
    ".npz": _of_npz,
    ".safetensors": _of_safetensors,
    **dict.fromkeys(PICKLE_SUFFIXES, _of_torch),
}
