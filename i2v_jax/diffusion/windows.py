"""Context windows: a video of any length, of which a network sees a few frames at a time, and averages what it says.

Predictions of overlapping windows are averaged at each step, as AnimateDiff's users do; or, in FreeNoise (Qiu et al.
2024), the motion modules' attentions are. Tables of NumPy, which programs take as arrays.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from i2v_jax.errors import InputError, nearest

SCHEDULES = ("standard", "shifted", "looped")
WEIGHTINGS = ("pyramid", "flat", "overlap_linear", "delayed_reverse_sawtooth")
AVERAGES = ("predictions", "attention")
NOISES = ("random", "shuffle", "repeat")


class Cut(NamedTuple):
    """Windows of one step. The first of them has the video's frame 1 among its frames.

    Attributes:
        frames: numbers of the frames in each window, in their order, counted from 0.
        weights: of each frame in each window; of each frame of the video they sum to 1 over all windows.
        first: where frame 1 stands in the first window.
    """

    frames: Int32[np.ndarray, "n l"]
    weights: Float32[np.ndarray, "n l"]
    first: int


@dataclass(frozen=True)
class Windows:
    """Settings of context windows; hashable.

    Attributes:
        length: frames that the network sees at a time; 0: all of them, without windows.
        overlap: frames that a window has in common with the next, less than `length`.
        schedule: "standard", windows in a row, the same at each step; "shifted", so that their ends lie elsewhere at
            each step; "looped", around the end of the video too, so that it goes on with its first frame.
        weighting: what a frame counts in a window, see `weights_of`.
        average: "predictions" of the network at each step; or "attention" of the motion modules, which is FreeNoise:
            all else sees the whole video.
        noise: "random"; "shuffle", that of the first window in another order again and again, as FreeNoise has it; or
            "repeat", in its order.
        batch: windows of each video that a device runs at a time.

    Raises:
        InputError: an unknown name, or a number out of range.
    """

    length: int = 0
    overlap: int = 4
    schedule: str = "standard"
    weighting: str = "pyramid"
    average: str = "predictions"
    noise: str = "random"
    batch: int = 1

    def __post_init__(self):
        known = dict(schedule=SCHEDULES, weighting=WEIGHTINGS, average=AVERAGES, noise=NOISES)
        for name, values in known.items():
            if (given := getattr(self, name)) not in values:
                raise InputError(f"windows.{name}={given!r}; known: {', '.join(values)}.{nearest(given, values)}")
        for name, least in (("length", 0), ("overlap", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise InputError(f"windows.{name}={getattr(self, name)}: wanted {least} or more.")
        if self.length and self.overlap >= self.length:
            raise InputError(
                f"windows.overlap={self.overlap}, and windows.length={self.length}: wanted an overlap of 0 to "
                f"{self.length - 1}, as a window has to bring new frames."
            )
        if self.average == "attention" and self.schedule != "standard":
            raise InputError(
                f"windows.schedule={self.schedule!r} with windows.average='attention' (FreeNoise): its windows are "
                "'standard'. Give that schedule, or windows.average='predictions'."
            )

    @property
    def averages_predictions(self) -> bool:
        """Whether the network runs on windows."""
        return self.length > 0 and self.average == "predictions"

    @property
    def averages_attention(self) -> bool:
        """Whether the motion modules' attentions run on windows (FreeNoise)."""
        return self.length > 0 and self.average == "attention"

    @property
    def stride(self) -> int:
        """Frames from the beginning of a window to that of the next."""
        return self.length - self.overlap


def weights_of(weighting: str, length: int, overlap: int) -> np.ndarray:
    """Returns what each frame of a window counts, before frames' sums are made 1; float64.

    Args:
        weighting: "flat": all the same; "pyramid": 1, 2, 3, 2, 1; "overlap_linear": less towards both ends, over the
            frames that windows have in common; "delayed_reverse_sawtooth": all but nothing up to the middle, then 3, 2,
            1. All but "overlap_linear" are diffusers' (whose sawtooth of an odd length has one frame too many).
        length: of the window.
        overlap: of windows.
    """
    place = np.arange(length)
    to_end = np.minimum(place, length - 1 - place) + 1.0
    if weighting == "flat":
        return np.ones(length)
    if weighting == "pyramid":
        return to_end
    if weighting == "overlap_linear":
        return np.minimum(1, to_end / (overlap + 1))
    middle = (length + 1) // 2
    return np.where(place < middle - 1, 0.01, np.minimum(length - place, middle))


def count(settings: Windows, frames: int) -> int:
    """Returns how many windows there are at each step.

    Args:
        settings: of windows, with a length.
        frames: of the video.
    """
    left = max(0, frames - settings.length)
    if settings.schedule == "looped":
        return math.ceil(frames / _stride(settings, frames))
    return math.ceil(left / settings.stride) + 1 + (settings.schedule == "shifted" and left > 0)


def cut(settings: Windows, frames: int, step: int = 0) -> Cut:
    """Returns the windows of a step; as many at each.

    Args:
        settings: of windows, with a length; a video of fewer frames has one window of all of them.
        frames: of the video.
        step: of the run, counted from 0.
    """
    length, number = min(settings.length, frames), np.arange(count(settings, frames))
    if settings.schedule == "looped":
        apart = frames / len(number)  # at most the stride
        starts = np.floor((number + bit_reversed(step)) * apart).astype(int)
        chosen = (starts[:, None] + np.arange(length)) % frames
        first, place = np.argwhere(chosen == 0)[0]
        chosen = np.roll(chosen, -first, axis=0)
    else:
        offset = round(settings.stride * bit_reversed(step)) if settings.schedule == "shifted" else 0
        starts = np.clip(number * settings.stride - offset, 0, frames - length)
        chosen, place = starts[:, None] + np.arange(length), 0
    counts = np.broadcast_to(weights_of(settings.weighting, length, settings.overlap), chosen.shape)
    return Cut(chosen.astype(np.int32), normalised(chosen, counts, frames), int(place))


def free_noise_cut(settings: Windows, frames: int) -> Cut:
    """Returns FreeNoise's windows: those that fit in a row, then one of the last frames for what these leave over.

    Of that last one only the frames that no other window has count, as in diffusers. (There, where a pyramid or
    sawtooth is cut so, those frames' weights do not sum to 1; here they do.)

    Args:
        settings: of windows.
        frames: of the video.
    """
    length = min(settings.length, frames)
    starts = list(range(0, frames - length + 1, _stride(settings, frames)))
    weights = [weights_of(settings.weighting, length, settings.overlap)] * len(starts)
    if left := frames - starts[-1] - length:
        starts.append(frames - length)
        weights.append(np.where(np.arange(length) < length - left, 0, weights[0]))
    chosen = np.array(starts)[:, None] + np.arange(length)
    return Cut(chosen.astype(np.int32), normalised(chosen, np.array(weights), frames), 0)


def normalised(chosen: np.ndarray, counts: np.ndarray, frames: int) -> Float32[np.ndarray, "n l"]:
    """Returns weights that sum to 1 for each frame.

    Args:
        chosen: frames of each window.
        counts: what each counts there.
        frames: of the video.
    """
    sums = np.bincount(chosen.ravel(), counts.ravel(), frames)
    return (counts / sums[chosen]).astype(np.float32)


def bit_reversed(step: int) -> float:
    """Returns a number in [0, 1) that is far from those of the steps before: the digits of `step` to base 2, reversed
    behind the point (van der Corput's sequence)."""
    found, share = 0.0, 0.5
    while step:
        found, step, share = found + share * (step % 2), step // 2, share / 2
    return found


def noise_order(settings: Windows, frames: int, random: np.random.Generator) -> Int32[np.ndarray, "f"]:
    """Returns which frame's noise each frame of a video gets (FreeNoise, equation 8).

    Args:
        settings: of windows; "shuffle" gives every `stride` frames beyond the first window, in another order, the
            noise of those a window's length before.
        frames: of the video.
        random: of the video.
    """
    order = np.arange(frames)
    if settings.noise == "repeat":
        return (order % settings.length).astype(np.int32)
    for begin in range(settings.length, frames, settings.stride) if settings.noise == "shuffle" else ():
        before = random.permutation(order[begin - settings.length :][: settings.stride])
        order[begin : begin + settings.stride] = before[: frames - begin]
    return order.astype(np.int32)


def chunked(windows: Cut, size: int) -> tuple[Int32[np.ndarray, "c k l"], Float32[np.ndarray, "c k l"]]:
    """Returns frames and weights in chunks of windows that run together; the last is filled up by weights of 0.

    Args:
        windows: of a step.
        size: of a chunk.
    """
    rows = np.arange(len(windows.frames) + -len(windows.frames) % size)
    surplus = rows >= len(windows.frames)
    rows = np.minimum(rows, len(windows.frames) - 1)
    weights = np.where(surplus[:, None], np.float32(0), windows.weights[rows])
    return windows.frames[rows].reshape(-1, size, windows.frames.shape[1]), weights.reshape(-1, size, weights.shape[1])


def _stride(settings: Windows, frames: int) -> int:
    """Of a video shorter than a window, what leaves the overlap as it is."""
    return max(1, min(settings.length, frames) - settings.overlap)
