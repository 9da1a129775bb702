"""What is called while a run goes on: at the beginning of each stage, after each step, with latents to look at."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

STAGES = ("encoding", "steps", "decoding")

OnStage = Callable[[str, bool], None]
OnStep = Callable[[int, int], None]
OnLatents = Callable[[int, int, Float[np.ndarray, "n f h w c"]], None]


class Watch(NamedTuple):
    """What is called while a run goes on.

    Attributes:
      on_stage: with a name of `STAGES`, and whether its programs have to be compiled first; "steps" comes a second
        time, with False, when they are.
      on_step: with (steps done, steps in all), when a step has ended.
      on_latents: with (steps done, steps in all, the clean latents as that step predicts them).
      latents_every: steps from one call of `on_latents` to the next. Each makes the device wait.
    """

    on_stage: OnStage = lambda stage, compiles: None
    on_step: OnStep = lambda done, total: None
    on_latents: OnLatents | None = None
    latents_every: int = 1

    def wants_latents(self, done: int) -> bool:
        """Whether `on_latents` is called after so many steps."""
        return self.on_latents is not None and done % self.latents_every == 0

    def of_run(self, number: int, count: int) -> "Watch":
        """Returns what is called during one of several runs that follow each other: its steps are counted on."""
        if count == 1:
            return self
        on_step, on_latents = self.on_step, self.on_latents

        def step(done, total):
            on_step(number * total + done, count * total)

        def latents(done, total, seen):
            on_latents(number * total + done, count * total, seen)

        return self._replace(on_step=step, on_latents=on_latents and latents)

    def part(self, before: int, total: int) -> "Watch":
        """Returns what is called during one of several passes: its steps follow `before` others, of `total` in all."""
        if self is SILENT:
            return self
        on_step, on_latents = self.on_step, self.on_latents

        def latents(done, _, seen):
            on_latents(before + done, total, seen)

        return self._replace(on_step=lambda done, _: on_step(before + done, total), on_latents=on_latents and latents)


SILENT = Watch()
