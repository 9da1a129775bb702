"""What a source of clips gives: a video with its caption, by number."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from i2v_jax.data.decoding import BadClip, Cut, Frames

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")  # in any case; of two, the first is taken
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")  # likewise
CAPTION_SUFFIX = ".txt"


class Clip(NamedTuple):
    """A video with its caption, as the source has it: neither need be usable.

    Attributes:
      video: a file, a file's bytes, or what makes the frames of a cut as `data.decoding.read_clip` reads them.
      unreadable: why the caption's bytes are no text; the caption is empty then.
    """

    id: str
    caption: str
    video: Path | bytes | Callable[[Cut, np.random.Generator], Frames]
    unreadable: str = ""


def check_caption(clip: Clip) -> None:
    """Raises BadClip for a clip without a caption."""
    if clip.unreadable:
        raise BadClip("caption is no text", clip.unreadable)
    if not clip.caption:
        raise BadClip("no caption")


class Source(Protocol):
    """Clips by number; those that are stored encoded are mappings of arrays, see `data.stored`.

    A source that knows a clip's id without reading its video also has `id_of(number) -> str`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Clip | Mapping[str, Any]: ...
