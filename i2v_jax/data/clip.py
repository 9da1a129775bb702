"""What a source of clips gives: a video with its caption, by number."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from i2v_jax.data.decoding import Cut, Frames

VIDEO_SUFFIX, CAPTION_SUFFIX = ".mp4", ".txt"  # of a clip that is two files


class Clip(NamedTuple):
    """A video with its caption, as the source has it: neither need be usable.

    Attributes:
      video: a file, a file's bytes, or what makes the frames of a cut as `data.decoding.read_clip` reads them.
    """

    id: str
    caption: str
    video: Path | bytes | Callable[[Cut, np.random.Generator], Frames]


class Source(Protocol):
    """Clips by number; those that are stored encoded are mappings of arrays, see `data.stored`."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Clip | Mapping[str, Any]: ...
