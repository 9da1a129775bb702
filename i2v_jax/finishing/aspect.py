"""Another aspect for frames: the middle of them, or all of them on black or on a blurred copy of themselves."""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter

from i2v_jax.errors import InputError, nearest
from i2v_jax.media import Picture, fit_picture

WAYS = ("crop", "pad", "blur")
BLUR = 1 / 30  # of the blurred background, standard deviation over its longer side


def read_aspect(text: str) -> Fraction:
    """Returns width over height of "WIDTH:HEIGHT".

    Raises:
      InputError: anything else, or an aspect beyond 1:10 and 10:1.
    """
    found = re.fullmatch(r"\s*([1-9]\d{0,4})\s*[:x/]\s*([1-9]\d{0,4})\s*", text)
    if not found:
        raise InputError(f"aspect={text!r}: wanted WIDTH:HEIGHT, such as 9:16, 1:1 or 16:9.")
    aspect = Fraction(int(found[1]), int(found[2]))
    if not Fraction(1, 10) <= aspect <= 10:
        raise InputError(f"aspect={text!r}: wanted from 1:10 to 10:1.")
    return aspect


def size_of(height: int, width: int, aspect: Fraction | None, wanted_height: int | None, way: str) -> tuple[int, int]:
    """Returns the height and width of the result, even numbers.

    Args:
      height, width: of the frames.
      aspect: of the result; None: as it is.
      wanted_height: of the result; None: such that "crop" enlarges nothing, and "pad" and "blur" lose no pixel.
      way: of `WAYS`.

    Raises:
      InputError: a height below 16 or above 8192.
    """
    aspect = aspect or Fraction(width, height)
    if wanted_height is not None and not 16 <= wanted_height <= 8192:
        raise InputError(f"height={wanted_height}: wanted 16 to 8192 pixels.")
    if wanted_height is None:
        fitting = Fraction(width) / aspect  # the height at which the result is as wide as the frames
        wanted_height = min(Fraction(height), fitting) if way == "crop" else max(Fraction(height), fitting)
    return tuple(max(2, 2 * round(side / 2)) for side in (wanted_height, wanted_height * aspect))


def fitter(height: int, width: int, way: Literal["crop", "pad", "blur"]) -> Callable[[Picture], Picture]:
    """Returns what takes a frame of any size to height x width.

    Raises:
      InputError: an unknown way.
    """
    if way not in WAYS:
        raise InputError(f"fit={way!r}: wanted one of {', '.join(WAYS)}.{nearest(str(way), WAYS)}")

    def fit(frame: UInt8[np.ndarray, "h w 3"]) -> Picture:
        if frame.shape[:2] == (height, width):
            return frame
        if way != "blur":
            return fit_picture(frame, height, width, way)
        scale = min(height / frame.shape[0], width / frame.shape[1])
        inside = [min(most, max(1, round(side * scale))) for side, most in zip(frame.shape, (height, width))]
        behind = Image.fromarray(fit_picture(frame, height, width, "crop"))
        whole = np.array(behind.filter(ImageFilter.GaussianBlur(BLUR * max(height, width))))
        top, left = ((most - side) // 2 for side, most in zip(inside, (height, width)))
        whole[top : top + inside[0], left : left + inside[1]] = fit_picture(frame, *inside, "stretch")
        return whole

    return fit
