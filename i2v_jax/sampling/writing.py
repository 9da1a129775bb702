"""Writes the files of a video; of a long one as its frames come, so that memory does not grow with their number.

Its frames go straight into the mp4, and uncompressed into a file without a name, from which the GIF is written when the
colours of all of them are known.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from i2v_jax import media
from i2v_jax.errors import InputError

HELD = 64
"""Frames of a video that are held in memory; longer ones are written as they come."""
SHOWN = 24  # frames on a contact sheet


def write(
    stem: Path,
    suffixes: Sequence[str],
    picture: media.Picture,
    frames: Iterable[media.Picture],
    count: int,
    fps: float,
    run: Mapping[str, Any],
) -> Path:
    """Writes mp4, GIF, contact sheet and record of a video, or none; returns their path without suffixes.

    Args:
      stem: of their path; numbered where another run has taken it meanwhile.
      suffixes: of the four files, in that order.
      picture: that the video is of.
      frames: one by one.
      count: how many there are.
      fps: frames a second.
      run: the record.

    Raises:
      InputError: no space, a folder that cannot be written, or fewer frames than `count`.
    """
    if count <= HELD:
        return _write_held(stem, suffixes, picture, np.stack(list(frames)), fps, run)
    with _folder_beside(stem) as folder:
        paths = [folder / f"video{suffix}" for suffix in suffixes]
        with tempfile.TemporaryFile(dir=folder) as kept:
            palette, shown, shape = _write_video(paths[0], kept, frames, count, fps)
            with open(paths[1], "wb") as file, media.gif_encoder(file, count, *shape[:2], palette, fps) as add:
                kept.seek(0)
                for _ in range(count):
                    add(np.frombuffer(kept.read(int(np.prod(shape))), np.uint8).reshape(shape))
        paths[2].write_bytes(media.encode_png(media.contact_sheet(picture, shown, SHOWN)))
        paths[3].write_bytes(_json(run))
        for path in paths:
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        stem = media.free_stem(stem.parent, stem.name, tuple(suffixes))
        for path, suffix in zip(paths, suffixes):
            os.replace(path, f"{stem}{suffix}")
    return stem


def _write_held(stem, suffixes, picture, frames, fps, run) -> Path:
    sheet = media.contact_sheet(picture, frames)
    contents = media.encode_video(frames, fps), media.encode_gif(frames, fps), media.encode_png(sheet), _json(run)
    stem = media.free_stem(stem.parent, stem.name, tuple(suffixes))  # another run may have taken it meanwhile
    media.write_files({f"{stem}{suffix}": content for suffix, content in zip(suffixes, contents)})
    return stem


def _json(run: Mapping[str, Any]) -> bytes:
    return (json.dumps(run, indent=1) + "\n").encode()


def _write_video(path, kept, frames, count, fps) -> tuple[Any, media.Frames, tuple[int, ...]]:
    """Writes the mp4, and frames as they are; returns a palette for all, those of the sheet, and the shape of each."""
    chosen = set(np.unique(np.linspace(0, count - 1, min(count, SHOWN)).round().astype(int)).tolist())
    shown, sample, frames = [], [], iter(frames)
    first = next(frames)
    step = media.palette_step(count, *first.shape[:2])
    with open(path, "wb") as file, media.video_encoder(file, count, *first.shape[:2], fps) as add:
        number = -1
        for number, frame in enumerate(_with(first, frames)):
            add(frame)
            kept.write(np.ascontiguousarray(frame))
            sample.append(frame[::step, ::step].copy())
            if number in chosen:
                shown.append(frame.copy())
    if number + 1 != count:
        raise InputError(f"{number + 1} frames were made of a video of {count}.")
    return media.gif_palette(np.stack(sample)), np.stack(shown), first.shape


def _with(first: Any, others: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from others


@contextlib.contextmanager
def _folder_beside(stem: Path) -> Iterator[Path]:
    """A folder that is gone when all is written, or nothing is; with it what had to be made for it."""
    made = [folder for folder in (stem.parent, *stem.parent.parents) if not folder.exists()]
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{stem.name}-", dir=stem.parent) as folder:
            yield Path(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise media.writing_failed(stem.parent, error) from error
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise
