"""What a pipeline is given from Python: pictures as paths, images or arrays, prompts and seeds, one or many of each."""

import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from i2v_jax.encoders import text
from i2v_jax.errors import InputError
from i2v_jax.media import Picture, load_picture, to_picture
from i2v_jax.sampling.going_on import load_start

MAX_SEED = 2**32 - 1
AnyPicture = str | Path | Image.Image | np.ndarray
"""A file; an image of Pillow's; or an array [h, w], [h, w, 3] or [h, w, 4], of uint8 or of numbers from 0 to 1."""


def batch_of(
    pictures: AnyPicture | Sequence[AnyPicture],
    prompts: str | Sequence[str],
    seeds: int | Sequence[int] | None,
    **texts: str | Sequence[str] | None,
) -> tuple[list[Picture], list[int], dict[str, list[str]]]:
    """Returns pictures, seeds and texts, as many of each; what is given once is for all videos.

    Args:
      pictures: one or many; an array of four axes is many.
      prompts: one or many.
      seeds: one or many; None: 0, 1, 2 ...
      texts: negative prompts, and those of a second text encoder, one or many; None: left out.

    Raises:
      InputError: a picture that is none, a seed out of range, a text that is none, or lists of different lengths.
    """
    given = {"pictures": _many(pictures), "prompts": _many(prompts), "seeds": _many(seeds)}
    given |= {name: _many(value) for name, value in texts.items()}
    lists = {name: value for name, value in given.items() if isinstance(value, list)}
    count = len(next(iter(lists.values()))) if lists else 1
    for name, value in lists.items():
        if len(value) != count:
            counts = ", ".join(f"{len(value)} {name}" for name, value in lists.items())
            raise InputError(f"{counts}: wanted as many of {name} as of the others, or one for all.")
    if not count:
        raise InputError("No pictures; wanted one or more.")
    every = {name: value if isinstance(value, list) else [value] * count for name, value in given.items()}
    if seeds is None:
        every["seeds"] = list(range(count))
    found = {name: every[name] for name in ("prompts", *texts) if given[name] is not None}
    _check_texts(found)
    return _pictures(every["pictures"]), [_seed(seed) for seed in every["seeds"]], found


def as_picture(given: AnyPicture) -> Picture:
    """Returns a picture, uint8 RGB [height, width, 3].

    Raises:
      InputError: a file that cannot be read, or an array of another kind.
    """
    if isinstance(given, str | os.PathLike):
        return load_picture(given)
    if isinstance(given, Image.Image):
        try:
            return to_picture(given)
        except OSError as error:  # Pillow reads a file when its pixels are asked for
            raise InputError(f"The picture is truncated or broken ({error}).") from error
    array = np.asarray(given)
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] == 3:
        return array
    sound = array.size and (array.ndim == 2 or array.ndim == 3 and array.shape[-1] in (3, 4))
    if sound and np.issubdtype(array.dtype, np.floating) and 0 <= array.min() and array.max() <= 1:
        array = np.round(array.astype(np.float32) * 255).astype(np.uint8)
    if not sound or array.dtype != np.uint8:
        raise InputError(
            f"A picture is {array.dtype} {array.shape}; wanted uint8 RGB [height, width, 3], numbers from 0 to 1 of "
            "that shape, an image of Pillow's, or a path."
        )
    return to_picture(Image.fromarray(array))


def _many(given: Any) -> Any:
    """A list where many are given, else what is given."""
    if isinstance(given, str | os.PathLike | Image.Image | Mapping) or not hasattr(given, "__len__"):
        return given
    if hasattr(given, "ndim") and hasattr(given, "shape"):  # an array of NumPy's, JAX's or PyTorch's
        array = np.asarray(given)
        return list(array) if array.ndim in (1, 4) else given
    return list(given)


def _pictures(given: list[AnyPicture]) -> list[Picture]:
    read = {}  # one picture of many videos is read once
    return [read[id(item)] if id(item) in read else read.setdefault(id(item), _start(item)) for item in given]


def _start(given: AnyPicture) -> Picture:
    is_path = isinstance(given, str | os.PathLike)
    return load_start(given) if is_path else as_picture(given)


def _seed(given: Any) -> int:
    try:
        seed = None if isinstance(given, bool) else operator.index(given)
    except TypeError:
        seed = None
    if seed is None:
        raise InputError(f"seed={given!r}: a whole number from 0 to {MAX_SEED} is wanted.")
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed={seed}: wanted 0 to {MAX_SEED}.")
    return seed


def _check_texts(texts: Mapping[str, list[Any]]) -> None:
    for name, values in texts.items():
        for value in values:
            if not isinstance(value, str):
                raise InputError(f"{name}: {value!r} is no text.")


def sides_of(prompts, negative_prompts, prompts_2, negative_prompts_2, settings) -> list[text.Side]:
    """The prompts of the conditional side of guidance and, where there is one, of the other."""
    if not settings.guided:
        return [(prompts, prompts_2)]
    negative_prompts = [""] * len(prompts) if negative_prompts is None else negative_prompts
    return [(prompts, prompts_2), (negative_prompts, negative_prompts_2)]
