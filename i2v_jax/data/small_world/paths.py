"""Where motions have taken things at each time: affine maps; and the motions that the bundled model was not taught.

Those go to and fro, round, or over; each is a function of the time, so that flow is a product of maps here too.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Times = Float[np.ndarray, "f"]
Maps = Float[np.ndarray, "f 3 3"]
PIVOT = 0.32  # how far above a thing's middle it hangs where it swings
THINNEST = 0.06  # share of its height that a thing shows at least as it flips over


class Novel(NamedTuple):
    """A motion that the bundled model was not taught.

    Attributes:
      verb: in captions: "a red disc swings".
      amounts: the least and the most that it goes: sides of the picture, or radians.
      path: amount, times from 0 to 1 -> what it has done, about the thing's middle.
      of_camera: whether the camera moves so, rather than an object.
    """

    verb: str
    amounts: tuple[float, float]
    path: Callable[[float, Times], Maps]
    of_camera: bool = False


def affine(shift, angle, scale) -> Float[np.ndarray, "*maps 3 3"]:
    """Scales, turns clockwise, then shifts; of one number each or of one for each map."""
    shift = np.asarray(shift, float)
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    maps = np.zeros((*np.broadcast_shapes(shift.shape[:-1], np.shape(c)), 3, 3))
    maps[..., 0, 0], maps[..., 0, 1], maps[..., 1, 0], maps[..., 1, 1] = c, -s, s, c
    maps[..., :2, 2], maps[..., 2, 2] = shift, 1
    return maps


def shifted(right: Times, down: Times) -> Maps:
    """Maps that shift alone."""
    return affine(np.stack([right, down], -1), 0, 1)


def swing(amount: float, times: Times) -> Maps:
    """To and fro about a point above, once, by an angle to either side."""
    angles = amount * np.sin(2 * math.pi * times)
    return affine((0, -PIVOT), 0, 1) @ affine(np.zeros((len(times), 2)), angles, 1) @ affine((0, PIVOT), 0, 1)


def orbit(amount: float, times: Times) -> Maps:
    """Once round a point below, clockwise, at a distance; upright all the while."""
    phase = 2 * math.pi * times
    return shifted(amount * np.sin(phase), amount * (1 - np.cos(phase)))


def bounce(amount: float, times: Times) -> Maps:
    """Up and back down, twice, as high each time, as what is thrown."""
    phase = 2 * times % 1
    return shifted(0 * times, -4 * amount * phase * (1 - phase))


def shake(amount: float, times: Times) -> Maps:
    """Right and left, twice, quickly."""
    return shifted(amount * np.sin(4 * math.pi * times), 0 * times)


def flip(amount: float, times: Times) -> Maps:
    """Over, about the level line through its middle, so that it is upside down, a mirror image, at the end."""
    heights = np.cos(amount * times)
    heights = np.where(heights < 0, -1, 1) * np.maximum(np.abs(heights), THINNEST)
    maps = shifted(0 * times, 0 * times)
    maps[:, 1, 1] = heights
    return maps


def sway(amount: float, times: Times) -> Maps:
    """The camera, to the left and to the right, once; what it shows goes the other way."""
    return shifted(amount * np.sin(2 * math.pi * times), 0 * times)


NOVEL = {
    "swing": Novel("swings", (math.radians(28), math.radians(38)), swing),
    "orbit": Novel("orbits", (0.11, 0.14), orbit),
    "bounce": Novel("bounces", (0.2, 0.25), bounce),
    "shake": Novel("shakes", (0.1, 0.13), shake),
    "flip": Novel("flips over", (0.9 * math.pi, math.pi), flip),
    "sway": Novel("sways", (0.12, 0.15), sway, of_camera=True),
}
"""By the name of a source of clips: `small_world:swing`."""
BY_VERB = {motion.verb: motion for motion in NOVEL.values()}
