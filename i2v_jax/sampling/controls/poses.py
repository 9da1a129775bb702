"""Draws poses as the networks for them learned them: OpenPose's colours and order of limbs (Cao et al. 2019), as
ControlNet's and DWPose's (Yang et al. 2023) preprocessors draw them; lines are read at 512 pixels, and scaled."""

import colorsys
import math
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from i2v_jax.errors import InputError, nearest
from i2v_jax.media import FITS, Picture
from i2v_jax.sampling.controls.keypoints import Person, Points, Pose

LIMBS = (  # joints that a limb joins, counted from 0, in the order of COLOURS; OpenPose counts them from 1
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10)),
    *((1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
COLOURS = (  # of joints, and of limbs at LIMB_SHARE
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0)),
    *((0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255)),
    *((170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)),
)
LIMB_SHARE = 0.6
FINGERS = tuple(
    (0 if joint == 0 else first + joint - 1, first + joint) for first in range(1, 21, 4) for joint in range(4)
)
FINGER_COLOURS = tuple(tuple(255 * c for c in colorsys.hsv_to_rgb(i / 20, 1, 1)) for i in range(20))
HAND_COLOUR, FACE_COLOUR = (0, 0, 255), (255, 255, 255)
STICK, JOINT, FINGER, HAND_JOINT, FACE_POINT = 4, 4, 2, 4, 3  # half width of a limb, radii, width of a finger
REFERENCE = 512  # pixels of the shorter side at which these are so
OUTSIDE = 0.1  # of the picture's sides, by which keypoints may be out of it
NORMALISED = 2  # largest coordinate that is a share of the picture; a pose of pixels reaches further


def draw_poses(
    poses: Sequence[Pose],
    height: int,
    width: int,
    fit: Literal["crop", "pad", "stretch"] = "crop",
    /,
    *,
    threshold: float = 0.3,
    stick: float = 1.0,
    **canvas: float,
) -> UInt8[np.ndarray, "n height width 3"]:
    """Draws people on black.

    Args:
      poses: in pixels, or in shares of the picture where no point of all is beyond `NORMALISED`.
      height, width: of the pictures that are drawn.
      fit: how the picture of the keypoints comes to that size, as `media.fit_picture` has it.
      threshold: keypoints of less confidence are left out, DWPose's by default.
      stick: by what lines are wider than published.
      canvas: `height` and `width` of the picture in which the keypoints are, where their file does not tell; by
        default the size that is drawn.

    Raises:
      InputError: no keypoint of enough confidence, keypoints out of the picture, or settings out of range.
    """
    if unknown := set(canvas) - {"height", "width"}:
        raise InputError(f"A pose has no setting {min(unknown)!r}; it has threshold, stick, height, width.")
    for name, value in {"stick": stick, **canvas}.items():
        if not 0 < value < math.inf:
            raise InputError(f"{name}={value:g} of a pose: wanted more than 0.")
    if fit not in FITS:
        raise InputError(f"Unknown way to fit a picture: {fit!r}, one of {FITS} is wanted.{nearest(str(fit), FITS)}")
    visible = [_visible(pose, threshold) for pose in poses]
    points = np.concatenate([np.zeros((0, 3)), *(part for pose in visible for part in _parts(pose))])
    points = points[points[:, 2] > 0]
    if not len(points):
        raise InputError(f"No keypoint of any frame has a confidence of {threshold:g} or more. Lower pose:threshold.")
    normalised = np.abs(points[:, :2]).max() <= NORMALISED
    pictures = []
    for number, pose in enumerate(visible):
        size = pose.height or canvas.get("height", height), pose.width or canvas.get("width", width)
        pose = _mapped(pose, np.array([size[1], size[0]] if normalised else [1, 1]), np.zeros(2))
        _check_inside(pose, *size, number)
        scale, shift = _fitting(size, (height, width), fit)
        pictures.append(_draw(_mapped(pose, scale, shift), height, width, stick))
    return np.stack(pictures)


def _parts(pose: Pose) -> list[Points]:
    return [part for person in pose.people for part in (person.body, *person.hands, person.face)]


def _each(pose: Pose, change) -> Pose:
    people = (Person(change(p.body), tuple(map(change, p.hands)), change(p.face)) for p in pose.people)
    return pose._replace(people=tuple(people))


def _visible(pose: Pose, threshold: float) -> Pose:
    return _each(pose, lambda points: points * ((points[:, 2:] > 0) & (points[:, 2:] >= threshold)))


def _mapped(pose: Pose, scale: Float[np.ndarray, "2"], shift: Float[np.ndarray, "2"]) -> Pose:
    return _each(pose, lambda points: np.column_stack([points[:, :2] * scale + shift, points[:, 2]]))


def _check_inside(pose: Pose, height: float, width: float, number: int) -> None:
    points = np.concatenate([np.zeros((0, 3)), *_parts(pose)])
    x, y = points[points[:, 2] > 0, :2].T
    beyond = (np.maximum(-x, x - width) > OUTSIDE * width) | (np.maximum(-y, y - height) > OUTSIDE * height)
    if beyond.any():
        first = int(np.argmax(beyond))
        raise InputError(
            f"Frame {number} has {beyond.sum()} of {len(x)} keypoints out of the picture, the first at "
            f"({x[first]:.0f}, {y[first]:.0f}) of {width:g}x{height:g} (width x height). Say the size of the picture "
            "in which they were found, such as process='pose:height=720,width=1280'."
        )


def _fitting(
    size: tuple[float, float], to: tuple[int, int], fit: str
) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    """Scale and shift of (x, y), as `media.fit_picture` moves pixels."""
    old, new = np.array(size[::-1], float), np.array(to[::-1], float)
    scale = new / old
    if fit == "crop":
        scale = scale.max().repeat(2)
    elif fit == "pad":
        scale = scale.min().repeat(2)
    return scale, (new - old * scale) / 2


def _draw(pose: Pose, height: int, width: int, stick: float) -> Picture:
    """Limbs of all, then joints of all, then hands, then faces: DWPose's order."""
    canvas, scale = np.zeros((height, width, 3), np.uint8), stick * min(height, width) / REFERENCE
    for limb, colour in zip(LIMBS, COLOURS):
        for person in pose.people:
            _limb(canvas, *person.body[list(limb)], [int(LIMB_SHARE * c) for c in colour], _pixels(STICK * scale))
    for joint, colour in enumerate(COLOURS):
        for person in pose.people:
            _dots(canvas, person.body[[joint]], colour, _pixels(JOINT * scale))
    for hand in (hand for person in pose.people for hand in person.hands):
        for finger, colour in zip(FINGERS, FINGER_COLOURS):
            if hand[list(finger), 2].all():
                ends = hand[list(finger), :2].astype(int).tolist()
                cv2.line(canvas, *ends, colour, thickness=_pixels(FINGER * scale))
        _dots(canvas, hand, HAND_COLOUR, _pixels(HAND_JOINT * scale))
    for person in pose.people:
        _dots(canvas, person.face, FACE_COLOUR, _pixels(FACE_POINT * scale))
    return canvas


def _pixels(length: float) -> int:
    return max(1, round(length))


def _limb(canvas: Picture, start: Points, end: Points, colour: Sequence[int], half_width: int) -> None:
    if not (start[2] and end[2]):
        return
    x, y = (start[:2] + end[:2]) / 2
    across, down = start[:2] - end[:2]
    axes, angle = (int(math.hypot(across, down) / 2), half_width), int(math.degrees(math.atan2(down, across)))
    cv2.fillConvexPoly(canvas, cv2.ellipse2Poly((int(x), int(y)), axes, angle, 0, 360, 1), colour)


def _dots(canvas: Picture, points: Points, colour: Sequence[int], radius: int) -> None:
    for x, y, confidence in points:
        if confidence:
            cv2.circle(canvas, (int(x), int(y)), radius, colour, thickness=-1)
