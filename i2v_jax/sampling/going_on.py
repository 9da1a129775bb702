"""Going on from a video: its last frame is the picture that is animated."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from i2v_jax.data.clip import VIDEO_SUFFIXES
from i2v_jax.data.decoding import CAUSES, BadClip, read_frames
from i2v_jax.errors import InputError
from i2v_jax.hub import check_no_address
from i2v_jax.media import Frames, Picture, fit_picture, load_picture

SUFFIXES = tuple(suffix for suffix in VIDEO_SUFFIXES if suffix != ".gif")
"""Of files that are videos; GIFs are pictures, of which one is wanted."""
AT_ONCE = 32
"""Frames of a video that are read at a time."""


def is_video(path: str | Path) -> bool:
    """Whether a path is that of a video, by its name."""
    return Path(path).suffix.lower() in SUFFIXES


def load_start(path: str | Path) -> Picture:
    """Reads the picture that a video begins with: a picture's file, or the last frame of a video's.

    Raises:
      InputError: it cannot be read.
    """
    if not is_video(path):
        return load_picture(path)
    return _read(path, lambda count: [count - 1])[0]


def length(path: str | Path) -> int:
    """Returns how many frames a video has."""
    counted = []
    _read(path, lambda count: [counted.append(count) or 0])
    return counted[0]


def frames_of(path: str | Path, height: int, width: int, fit: str) -> Iterator[Picture]:
    """Returns the frames of a video one by one, brought to a size as pictures are, see `media.fit_picture`."""
    count = length(path)
    for first in range(0, count, AT_ONCE):
        numbers = range(first, min(count, first + AT_ONCE))
        for frame in _read(path, lambda _, numbers=numbers: numbers):
            yield fit_picture(frame, height, width, fit)


def joined(path: str | Path, frames: Iterable[Picture], settings: Any) -> tuple[Iterator[Picture], int]:
    """Returns the frames of a video and those that go on from its last one, and how many these are together.

    Args:
      path: of the video.
      frames: of the run, the first of which is the video's last.
      settings: of the run.
    """
    before = frames_of(path, settings.height, settings.width, settings.fit)
    return itertools.chain(before, itertools.islice(frames, 1, None)), length(path) + settings.frames - 1


def check(path: str | Path, join: bool) -> None:
    """Raises InputError where a video is to be joined, and a picture is given."""
    if join and not is_video(path):
        raise InputError(
            f"join=True, and {str(path)!r} is no video ({', '.join(SUFFIXES)}): no frames to stand before "
            "the new ones. Give one as --config.image, or --config.join=False."
        )


def _read(path, choose) -> Frames:
    check_no_address(path)
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"No video at {str(path)!r}. Check the path.")
    try:
        return read_frames(path, choose)
    except BadClip as error:
        raise InputError(
            f"{str(path)!r} cannot be gone on from: {error.detail or CAUSES[error.cause]}. Give its last frame as a "
            "picture, or another copy of it."
        ) from None
