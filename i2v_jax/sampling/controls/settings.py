"""How strongly control networks work: on which frames, in which share of the run; and how their pictures are read."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float32

from i2v_jax.errors import InputError


@dataclass(frozen=True)
class ControlSettings:
    """Settings of control networks, by their position; one value, or one in a tuple, is for all of them.

    Attributes:
      process: preprocessor of the pictures, see `preprocess`; "none": they are ready-made.
      take: of more pictures than frames, "first" or "even"ly spread ones; "": the first frames of a video, while a
        folder or list has one for each frame.
      scales: strength, 0 is none.
      starts, ends: share of the run, [0, 1], in which a network works: at step i of n where i / n >= start and
        (i + 1) / n <= end, as diffusers' `control_guidance_start` and `control_guidance_end`.
      frame_scales: strength of each frame, which multiplies `scales`; (): 1 on all.
      frames: those that the pictures stand on, counted from 0; (): all.
      first_frame: whether frame 1 is controlled too.
    """

    process: str | tuple[str, ...] = "none"
    take: str | tuple[str, ...] = ""
    scales: float | tuple[float, ...] = 1.0
    starts: float | tuple[float, ...] = 0.0
    ends: float | tuple[float, ...] = 1.0
    frame_scales: tuple[float, ...] | tuple[tuple[float, ...], ...] = ()
    frames: tuple[int, ...] | tuple[tuple[int, ...], ...] = ()
    first_frame: bool | tuple[bool, ...] = True

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "ControlSettings":
        """Returns the settings in `config.controls`; those that it has not are the defaults."""
        return cls(**{name: _tuples(config[name]) for name in cls.__dataclass_fields__ if name in config})

    def check(self, count: int, frames: int) -> None:
        """Raises InputError for what no run of so many networks and frames can have; names the setting.

        Args:
          count: of control networks.
          frames: of the video.
        """
        for name, wanted in WANTED.items():
            for value in self.of_each(name, count):
                if not wanted.holds(value):
                    raise InputError(f"controls.{name}={getattr(self, name)}: {value!r} is not {wanted.words}.")
        for start, end in zip(self.of_each("starts", count), self.of_each("ends", count)):
            if start >= end:
                raise InputError(
                    f"controls.starts={self.starts}, controls.ends={self.ends}: a network that works from {start} to "
                    f"{end} of the run never does. Let it end after its start, or give scale 0."
                )
        for scales in self.of_each("frame_scales", count):
            if scales and len(scales) != frames:
                raise InputError(
                    f"controls.frame_scales={self.frame_scales}: {len(scales)} scales for {frames} frames. Give one "
                    "for each frame, or () for 1 on all."
                )
        for stands in self.of_each("frames", count):
            wrong = [frame for frame in stands if not 0 <= frame < frames]
            if wrong or len(set(stands)) < len(stands):
                raise InputError(
                    f"controls.frames={self.frames}: wanted different frames from 0 to {frames - 1}"
                    + (f", and not {wrong[0]}." if wrong else ".")
                )

    def check_steps(self, count: int, steps: int) -> None:
        """Raises InputError for a network whose share of the run holds none of so many steps.

        Args:
          count: of control networks.
          steps: that are run.
        """
        for scale, start, end in zip(*(self.of_each(name, count) for name in ("scales", "starts", "ends"))):
            if scale and not any(_works(start, end, step, steps) for step in range(steps)):
                raise InputError(
                    f"controls.starts={self.starts}, controls.ends={self.ends}: of {steps} steps none lies whole "
                    f"between {start} and {end} of the run, so the network never works. Widen it, or give scale 0."
                )

    def of_each(self, name: str, count: int) -> list[Any]:
        """Returns a setting of each of so many networks.

        Raises:
          InputError: there are several values, and not as many as networks.
        """
        value = getattr(self, name)
        if name in OF_FRAMES:
            if not isinstance(value, tuple | list):
                raise InputError(f"controls.{name}={value!r}: wanted a tuple, of a number for each frame, or ().")
            one = not value or not any(isinstance(item, tuple | list) for item in value)
            values = [value] if one else list(value)
        else:
            values = list(value) if isinstance(value, tuple | list) else [value]
        if len(values) not in (1, count):
            raise InputError(
                f"controls.{name}={value}: {len(values)} values for {count} control networks (weights.controls). Give "
                "one for each, or one for all."
            )
        return values * count if len(values) == 1 else values

    def strengths(self, count: int, step: int, steps: int, frames: int) -> Float32[np.ndarray, "n f"]:
        """Returns the strength of each network on each frame at a step, counted from 0, of those that are run."""
        names = ("scales", "starts", "ends", "frame_scales", "first_frame")
        rows = []
        for scale, start, end, of_frames, first in zip(*(self.of_each(name, count) for name in names), strict=True):
            row = scale * _works(start, end, step, steps) * np.asarray(of_frames or [1.0] * frames, np.float64)
            row[0] *= first
            rows.append(row)
        return np.asarray(rows, np.float32).reshape(count, frames)


def _works(start: float, end: float, step: int, steps: int) -> bool:
    return step / steps >= start and (step + 1) / steps <= end


@dataclass(frozen=True)
class Wanted:
    """What a value is to be, in words, and whether it is."""

    words: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _all(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda values: isinstance(values, Sequence) and not isinstance(values, str) and all(map(test, values))


WANTED = {
    "process": Wanted("the name of a preprocessor, or 'none'", lambda value: isinstance(value, str)),
    "take": Wanted("'first', 'even' or ''", lambda value: value in ("", "first", "even")),
    "scales": Wanted("a finite number", _is_number),
    "starts": Wanted("a share of the run in [0, 1]", _is_share),
    "ends": Wanted("a share of the run in [0, 1]", _is_share),
    "frame_scales": Wanted("a list of finite numbers, one for each frame", _all(_is_number)),
    "frames": Wanted("a list of frames, whole numbers", _all(lambda value: type(value) is int)),
    "first_frame": Wanted("true or false", lambda value: isinstance(value, bool)),
}
OF_FRAMES = ("frame_scales", "frames")
"""Settings of which a value is itself a list, over frames."""


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, tuple | list) else value
