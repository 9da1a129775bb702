"""Numbers of all videos of a run together, such as FVD: what is kept of each video, and their intervals."""

import base64
import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Float32

Features = Float32[np.ndarray, "2 d"]
"""Of a video, and of the true one."""
RESAMPLES = 200
"""Of the bootstrap: each of them takes a decomposition."""


def packed(features: Features) -> str:
    """Returns features as a text of a journal."""
    return base64.b64encode(np.ascontiguousarray(features, "<f4").tobytes()).decode()


def unpacked(text: str) -> Features:
    """Undoes `packed`."""
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(2, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class Together:
    """What is known of each video, of which one number is made; or how much that is above another run's.

    Attributes:
      of_set: features of several videos -> their number.
      features: of each video of the set; None where there are none.
      minus: those of the other run.
    """

    of_set: Callable[[Float[np.ndarray, "n 2 d"]], float]
    features: Sequence[Features | None]
    minus: Sequence[Features | None] | None = None
    found: dict[int, tuple[float, float, float, int]] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def pairs(self) -> list[tuple[Features, ...]]:
        """Of each video that has them, its features, and those of the other run."""
        sides = [self.features] if self.minus is None else [self.features, self.minus]
        return [pair for pair in zip(*sides) if all(one is not None for one in pair)]

    @property
    def count(self) -> int:
        """Of how many videos there are features."""
        return len(self.pairs)

    def __sub__(self, other: "Together") -> "Together":
        """Returns the difference of two runs over one set, of the videos that both have."""
        return Together(self.of_set, self.features, other.features)

    def summary(self, seed: int = 0) -> tuple[float, float, float, int]:
        """Returns the number, the ends of its 95 % interval, and of how many videos it is; NaNs and 0 below 2.

        The interval is of the bootstrap over videos, each with its true one. A resampled set has videos twice, so that
        it spreads less and its number is too high: all are moved down by as much as their mean is above the number.

        Args:
          seed: of the bootstrap; runs over the same videos are resampled alike.
        """
        if seed not in self.found:
            self.found[seed] = self._summary(seed)
        return self.found[seed]

    def _summary(self, seed: int) -> tuple[float, float, float, int]:
        pairs = self.pairs
        if len(pairs) < 2:
            return math.nan, math.nan, math.nan, 0
        arrays = [np.float64(np.stack(side)) for side in zip(*pairs)]

        def number(rows: np.ndarray | slice) -> float:
            first, *other = (self.of_set(array[rows]) for array in arrays)
            return first - sum(other)

        value = number(slice(None))
        drawn = np.random.default_rng(seed).integers(len(pairs), size=(RESAMPLES, len(pairs)))
        found = np.array([number(rows) for rows in drawn])
        low, high = value + np.percentile(found, (2.5, 97.5)) - found.mean()
        return value, float(low), float(high), len(pairs)
