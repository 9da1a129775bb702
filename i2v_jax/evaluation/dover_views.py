"""What DOVER sees of a video: which frames, and of them fragments at full sharpness, or the whole picture made small.

As the published code does it (settings of `dover.yml`), its quirks included; they are said where they stand.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Num, UInt8

Video = UInt8[np.ndarray, "f h w 3"]
Draw = Callable[[int, tuple[int, ...]], Int[np.ndarray, "..."]]
"""From a number n and a shape to random whole numbers from 0 to n - 1."""


class Sampling(NamedTuple):
    """Which frames a branch sees.

    Attributes:
      segments: equal parts of the video, of each of which some frames are taken.
      frames: of a segment.
      interval: from one of these to the next.
      repeats: how often all of this, each time moved at random anew.
    """

    segments: int
    frames: int
    interval: int = 2
    repeats: int = 1


class Fragments(NamedTuple):
    """How pictures are cut into fragments: `grid` a side, `size` pixels each, moved every `aligned` frames."""

    grid: int = 7
    size: int = 32
    aligned: int = 32


TECHNICAL = Sampling(segments=3, frames=32)
"""Three clips, each of a third of the video."""
AESTHETIC = Sampling(segments=32, frames=1)
"""One clip all over the video. Of fewer than 32 frames that is the first one, 32 times: a quirk."""
CLIP = 32
"""Frames of a clip."""
SIDE = 224
"""Of the aesthetic view, in pixels."""


def choose_frames(count: int, sampling: Sampling, draw: Draw) -> Int[np.ndarray, " n"]:
    """Returns the numbers of the frames that a branch sees of a video of `count`; beyond its end it begins again."""
    length = count // sampling.segments
    span = sampling.frames * sampling.interval
    starts = length * np.arange(sampling.segments)
    chosen = []
    for _ in range(sampling.repeats):
        moved = draw(length - span, (sampling.segments,)) if length > span else 0
        chosen.append((starts + moved)[:, None] + sampling.interval * np.arange(sampling.frames))
    return np.concatenate(chosen).ravel() % count


def fragments(video: Video, chosen: Int[np.ndarray, " f"], cut: Fragments, draw: Draw) -> UInt8[np.ndarray, "f s s 3"]:
    """Returns fragments of frames side by side, each at full sharpness.

    Frames that are smaller than the result are enlarged first. Where they are cut is told by their size before that, so
    that of small videos the upper left part alone is seen: a quirk.

    Args:
      chosen: numbers of the frames of all clips, a multiple of `cut.aligned`.
      draw: moves fragments within cells of the grid that are larger than they.
    """
    count, (height, width) = len(chosen), video.shape[1:3]
    grid, size = cut.grid, cut.size
    side = grid * size
    numbers, where = np.unique(chosen, return_inverse=True)
    frames = enlarged(video[numbers], side)
    clips = count // cut.aligned
    shape = (grid, grid, clips)
    down, right = (
        draw(cell - size, shape) if (cell := length // grid) > size else np.zeros(shape, int)
        for length in (height, width)
    )
    out = np.zeros((count, side, side, 3), np.uint8)
    for i, j, clip in np.ndindex(shape):
        top = max(0, min(i * (height // grid), height - size)) + down[i, j, clip]
        left = max(0, min(j * (width // grid), width - size)) + right[i, j, clip]
        there = np.s_[clip * cut.aligned : (clip + 1) * cut.aligned]
        piece = frames[where[there], top : top + size, left : left + size]
        out[there, i * size : (i + 1) * size, j * size : (j + 1) * size] = piece
    return out


def enlarged(frames: Video, side: int) -> Video:
    """Returns frames whose shorter side is `side` pixels or more: as they are, or enlarged bilinearly and cut off."""
    height, width = frames.shape[1:3]
    ratio = min(height / side, width / side)
    if ratio >= 1:
        return frames
    # the size is rounded down, and the step between pixels is the ratio all the same
    rows, columns = (bilinear(length, int(np.floor(length / ratio)), ratio) for length in (height, width))
    shares = (mixed(frame / np.float32(255), rows, columns) for frame in frames)
    return np.stack([(share * np.float32(255)).astype(np.uint8) for share in shares])


def small(frames: Video, height: int, width: int, antialias: bool = False) -> Video:
    """Returns whole frames resized bilinearly to height x width, whatever their aspect, as torchvision does.

    Args:
      antialias: as torchvision does by default from 0.17 on; DOVER's and EvalCrafter's environments have an older one.
    """
    if frames.shape[1:3] == (height, width):
        return frames
    filters = triangle if antialias else bilinear
    rows, columns = (filters(old, new, old / new) for old, new in zip(frames.shape[1:3], (height, width)))
    return np.stack([np.round(mixed(frame, rows, columns)).astype(np.uint8) for frame in frames])


def bilinear(count: int, wanted: int, step: float) -> Float32[np.ndarray, "wanted count"]:
    """Returns the matrix of linear interpolation at (i + 0.5) step - 0.5, from the end pixels where that is outside."""
    places = np.maximum((np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * np.float32(step) - np.float32(0.5), 0)
    first = np.minimum(places.astype(int), count - 1)
    share = (places - first).astype(np.float32)
    matrix = np.zeros((wanted, count), np.float32)
    np.add.at(matrix, (np.arange(wanted), first), 1 - share)
    np.add.at(matrix, (np.arange(wanted), np.minimum(first + 1, count - 1)), share)
    return matrix


def triangle(count: int, wanted: int, step: float) -> Float32[np.ndarray, "wanted count"]:
    """Returns the matrix of a triangle filter, widened by the step where that shrinks, its weights' sum 1."""
    width = max(step, 1.0)
    middles = (np.arange(wanted) + 0.5) * step
    apart = np.abs(np.arange(count) + 0.5 - middles[:, None]) / width
    weights = np.maximum(0, 1 - apart)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def resampled(
    frames: Num[np.ndarray, "f h w 3"], rows: Float32[np.ndarray, "H h"], columns: Float32[np.ndarray, "W w"]
) -> Float32[np.ndarray, "f H W 3"]:
    """Returns each frame with its rows and columns mixed by matrices."""
    return np.stack([mixed(frame, rows, columns) for frame in frames])


def mixed(
    frame: Num[np.ndarray, "h w 3"], rows: Float32[np.ndarray, "H h"], columns: Float32[np.ndarray, "W w"]
) -> Float32[np.ndarray, "H W 3"]:
    """Returns a frame with its rows and columns mixed by matrices."""
    return columns @ np.tensordot(rows, np.float32(frame), 1)


class Views(NamedTuple):
    """What the two branches see of a video, pixels of 0 to 255."""

    technical: UInt8[np.ndarray, "clips f h w 3"]
    aesthetic: UInt8[np.ndarray, "clips f h w 3"]


def views(video: Video, rng: np.random.Generator, antialias: bool = False) -> Views:
    """Returns what DOVER sees of a video at its published settings.

    Args:
      video: of any size and length.
      rng: draws which frames and fragments; the published code draws them unseeded.
      antialias: see `small`.
    """

    def draw(below, shape):
        return rng.integers(below, size=shape)

    chosen = choose_frames(len(video), TECHNICAL, draw)
    technical = fragments(video, chosen, Fragments(), draw)
    chosen, where = np.unique(choose_frames(len(video), AESTHETIC, draw), return_inverse=True)
    aesthetic = small(video[chosen], SIDE, SIDE, antialias)[where]
    return Views(*(view.reshape(-1, CLIP, *view.shape[1:]) for view in (technical, aesthetic)))
