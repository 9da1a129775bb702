"""What a metric is: a number for one video, how it is shown, where it comes from, what it needs.

Each metric is a file of `evaluation/measures`, which lists them.
"""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, UInt8

Picture = UInt8[np.ndarray, "h w 3"]
Video = UInt8[np.ndarray, "f h w 3"]


@dataclasses.dataclass
class Case:
    """One video to measure, and what is known of it.

    Attributes:
      name: unique within a set.
      video: what is measured.
      picture: the input picture, of any size.
      prompt: the text that it was made of.
      truth: what it should have been, of the same size; it may be longer.
      seed: of what a metric draws at random.
    """

    name: str
    video: Video
    picture: Picture | None = None
    prompt: str | None = None
    truth: Video | None = None
    seed: int = 0
    known: dict[Hashable, Any] = dataclasses.field(default_factory=dict, repr=False)

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """Returns what several metrics need, computed for the first of them."""
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]


class Networks(Protocol):
    """The networks that metrics need, loaded when they are first asked for: see `networks.Networks`."""

    def load(self, name: str) -> None: ...

    def flow_batch(self, height: int, width: int) -> int: ...

    def flow(self, first: Float[np.ndarray, "n h w 3"], second: Float[np.ndarray, "n h w 3"]) -> Any: ...

    def dover(self, case: Case) -> tuple[float, float]: ...

    def picture_embeddings(self, pixels: Float[np.ndarray, "n s s 3"]) -> Float[np.ndarray, "n d"]: ...

    def text_embedding(self, prompt: str) -> Float[np.ndarray, " d"]: ...

    def looks_apart(
        self, first: Float[np.ndarray, "n h w 3"], second: Float[np.ndarray, "n h w 3"]
    ) -> Float[np.ndarray, " n"]: ...

    def subject_embeddings(self, pixels: Float[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d"]: ...

    def action_logits(self, pixels: Float[np.ndarray, "n f 224 224 3"]) -> Float[np.ndarray, "n d"]: ...


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
      name: in configs and files.
      title, unit, better, digits: how it is shown; better: "higher" or "lower".
      source: the paper or the code that defines it, and how this departs from it.
      measure: a video's number, a float.
      networks: which it needs, names in `networks.NEEDS`.
      wants: what it needs to know of a case beside the video: "picture", "prompt", "truth".
      frames: how many it needs at least.
      version: raised whenever its numbers change, so that none of two versions stand in one table.
    """

    name: str
    title: str
    unit: str
    better: str
    digits: int
    source: str
    measure: Callable[[Case, Networks], Any]
    networks: tuple[str, ...] = ()
    wants: tuple[str, ...] = ()
    frames: int = 1
    version: int = 1

    def lacks(self, case: Case) -> str:
        """Returns what a case lacks for it, "" where it lacks nothing."""
        for name in self.wants:
            if getattr(case, name) is None:
                return f"no {name}"
        if len(case.video) < self.frames:
            return f"{len(case.video)} frame{'s' * (len(case.video) > 1)}, {self.frames} are wanted"
        return ""


@dataclasses.dataclass(frozen=True)
class SetMetric(Metric):
    """A metric of all videos together: `measure` gives features of one and of its true one, float32 [2 d].

    Attributes:
      of_set: features of several videos, [n 2 d], n > 1 -> their number.
      advised: of how many videos, at least, published numbers are.
    """

    of_set: Callable[[Float[np.ndarray, "n 2 d"]], float] = dataclasses.field(kw_only=True)
    advised: int = dataclasses.field(kw_only=True)
