"""Preprocessors: what makes a control picture of a picture, without weights, by OpenCV.

A preprocessor is a function of pictures, uint8 RGB [n, h, w, 3], to as many of them; its settings are keyword
arguments. `PROCESSES` has them by name. As text: "canny", or with settings "canny:low=50,high=150".
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable

import cv2
import numpy as np
from jaxtyping import UInt8

from i2v_jax.errors import InputError, nearest

Picture = UInt8[np.ndarray, "h w 3"]
Pictures = UInt8[np.ndarray, "n h w 3"]
Process = Callable[[Pictures], Pictures]


DIFFERENCE = 1 / 3  # variance, in pixels, of what a central difference adds to a Gaussian
REFERENCE = 512  # pixels of the shorter side at which widths of lines are read; other sizes scale them


def none(pictures: Pictures) -> Pictures:
    """As they are: ready-made control pictures."""
    return pictures


def picture(pictures: Pictures) -> Pictures:
    """As they are, for networks that look at colours (tile, SparseCtrl RGB): masks are refused."""
    return pictures


def invert(pictures: Pictures) -> Pictures:
    """Black lines on white become white lines on black, as control networks learned them."""
    return 255 - pictures


def canny(pictures: Pictures, *, low: float = 100, high: float = 200) -> Pictures:
    """White edges on black (Canny 1986), by OpenCV, one pixel wide.

    Args:
      low, high: of the gradient, 0 and up: an edge begins above `high`, and goes on above `low`.
    """
    _check_from(0, low=low, high=high)
    grey = (cv2.Canny(cv2.cvtColor(one, cv2.COLOR_RGB2GRAY), low, high) for one in pictures)
    return _three_channels(grey)


def soft_edge(pictures: Pictures, *, sigma: float = 2.0, gain: float = 2.0) -> Pictures:
    """Edges as bright as they are strong: the gradient of smoothed pictures, of the channel where it is largest.

    A straight edge between two values is about their difference times `gain`, so that brightness does not flicker
    from frame to frame. A stand-in, without weights, for HED and PiDiNet.

    Args:
      sigma: of the Gaussian, in pixels of 512.
      gain: above 0.
    """
    _check_above(0, sigma=sigma, gain=gain)
    sigma = max(0.8, sigma * _scale(pictures))

    def strength(one: Picture) -> UInt8[np.ndarray, "h w"]:
        smooth = cv2.GaussianBlur(one.astype(np.float32), (0, 0), sigma)
        right, down = (cv2.Sobel(smooth, cv2.CV_32F, dx, 1 - dx, scale=1 / 8) for dx in (1, 0))
        difference = np.hypot(right, down).max(-1) * math.sqrt(2 * math.pi * (sigma**2 + DIFFERENCE))
        return np.clip(np.round(difference * gain), 0, 255).astype(np.uint8)

    return _three_channels(map(strength, pictures))


def scribble(pictures: Pictures, *, threshold: float = 32) -> Pictures:
    """Thick white lines on black, by a difference of Gaussians (Winnemoeller 2012), as the web UI's scribble_xdog.

    Args:
      threshold: how much darker than around a line is, 0 to 510; lower keeps more.
    """
    _check_from(0, threshold=threshold)
    fine, coarse = 0.5 * _scale(pictures), 5.0 * _scale(pictures)

    def lines(one: Picture) -> UInt8[np.ndarray, "h w"]:
        blurred = (cv2.GaussianBlur(one.astype(np.float32), (0, 0), sigma) for sigma in (coarse, fine))
        difference = np.subtract(*blurred).min(-1)
        inverted = (255 - difference).clip(0, 255).astype(np.uint8)
        return np.where(2 * (255 - inverted.astype(int)) > threshold, 255, 0).astype(np.uint8)

    return _three_channels(map(lines, pictures))


def tile(pictures: Pictures, *, down: float = 8) -> Pictures:
    """Blurred pictures, to which a tile network adds detail: scaled down by area and back up, bicubic.

    Args:
      down: how many times smaller, 1 or more; 1 keeps them.
    """
    _check_from(1, down=down)
    height, width = pictures.shape[1:3]
    small = max(1, round(width / down)), max(1, round(height / down))
    if small == (width, height):
        return pictures
    reduced = (cv2.resize(one, small, interpolation=cv2.INTER_AREA) for one in pictures)
    return np.stack([cv2.resize(one, (width, height), interpolation=cv2.INTER_CUBIC) for one in reduced])


def previous_frame(pictures: Pictures) -> Pictures:
    """The frame before, moved to where this one has its things, by optical flow (dense inverse search, Kroeger et al.
    2016, by OpenCV); the first frame as it is. For networks of consistency in time, such as TemporalNet."""
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    height, width = pictures.shape[1:3]
    if min(height, width) < SMALLEST_FLOW:
        raise InputError(f"previous_frame: {height}x{width} is too small for optical flow, from {SMALLEST_FLOW} on.")
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    greys = [cv2.cvtColor(one, cv2.COLOR_RGB2GRAY) for one in pictures]
    warped = [pictures[0]]
    for before, grey_before, grey in zip(pictures, greys, greys[1:]):
        ends = grid + search.calc(grey, grey_before, None)
        warped.append(cv2.remap(before, ends, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
    return np.stack(warped)


PROCESSES: dict[str, Callable[..., Pictures]] = {
    function.__name__: function
    for function in (none, picture, canny, soft_edge, scribble, tile, previous_frame, invert)
}
POSE = "pose"  # what draws keypoints, see `poses`
TAKE_MASKS = ("none", "invert")  # black and white alone are what others cannot work on
SMALLEST_FLOW = 32  # pixels of a side; OpenCV's search matches patches of 8 at several scales


def find(process: str) -> Process:
    """Returns a preprocessor with its settings.

    Args:
      process: "NAME" or "NAME:SETTING=VALUE,...", of `PROCESSES`.

    Raises:
      InputError: no such name or setting, or a value that is no number.
    """
    name, settings = split(process)
    if name not in PROCESSES:
        names = [*PROCESSES, POSE]
        raise InputError(
            f"No preprocessor {name!r} of control pictures; known: {', '.join(names)}.{nearest(name, names)}"
        )
    known = inspect.signature(PROCESSES[name]).parameters
    for setting in settings:
        if known.get(setting) is None or known[setting].kind is not inspect.Parameter.KEYWORD_ONLY:
            allowed = [key for key, value in known.items() if value.kind is inspect.Parameter.KEYWORD_ONLY]
            wanted = f"it has {', '.join(allowed)}" if allowed else "it has none"
            raise InputError(f"{process!r}: {name} has no setting {setting!r}; {wanted}.{nearest(setting, allowed)}")
    return functools.partial(PROCESSES[name], **settings)


def check_on(process: str, frames: int, height: int, width: int) -> None:
    """Tries a preprocessor on black frames of a size.

    Raises:
      InputError: no such preprocessor, one that draws keypoints, or settings or a size that it cannot work with.
    """
    if split(process)[0] == POSE:
        raise InputError(f"process={process!r} draws keypoints, and clips have none; known: {', '.join(PROCESSES)}.")
    find(process)(np.zeros((frames, height, width, 3), np.uint8))


def split(process: str) -> tuple[str, dict[str, float]]:
    """Returns name and settings of a preprocessor's text.

    Raises:
      InputError: no text, or settings of another form.
    """
    if not isinstance(process, str):
        raise InputError(f"process={process!r}: the name of a preprocessor is wanted, such as 'canny', or 'none'.")
    name, _, rest = process.partition(":")
    settings = {}
    for part in rest.split(",") if rest.strip() else ():
        setting, _, value = part.partition("=")
        try:
            settings[setting.strip()] = float(value)
        except ValueError:
            raise InputError(f"{process!r}: {part!r} is no setting; wanted 'NAME:SETTING=NUMBER,...'.") from None
    return name.strip(), settings


def _three_channels(grey: Iterable[UInt8[np.ndarray, "h w"]]) -> Pictures:
    return np.stack([one[..., None].repeat(3, -1) for one in grey])


def _scale(pictures: Pictures) -> float:
    return min(pictures.shape[1:3]) / REFERENCE


def _check_from(least: float, **settings: float) -> None:
    for name, value in settings.items():
        if not least <= value < math.inf:
            raise InputError(f"{name}={value:g} of a preprocessor: wanted {least} or more.")


def _check_above(bound: float, **settings: float) -> None:
    for name, value in settings.items():
        if not bound < value < math.inf:
            raise InputError(f"{name}={value:g} of a preprocessor: wanted more than {bound}.")
