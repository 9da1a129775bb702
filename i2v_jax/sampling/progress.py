"""The bar of a run: which stage it is in, and how long all its videos will still take."""

import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from tqdm import tqdm

COMPILING = "compiling (once for each size)"
FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}{postfix}]"


class Work(NamedTuple):
    """What a batch takes.

    Attributes:
      title: such as "video 3 of 10".
      steps: of sampling.
      size: pixels of all of its videos, or whatever its cost grows with.
    """

    title: str
    steps: int
    size: float


class TimeLeft:
    """Estimates seconds from what earlier stages took of a batch's size; what was compiled or never seen is not
    counted."""

    def __init__(self, works: Sequence[Work]):
        size, steps = sum(work.size for work in works), sum(work.steps * work.size for work in works)
        self.left = {"encoding": size, "steps": steps, "decoding": size, "writing": size}
        self.spent = {stage: (0.0, 0.0) for stage in self.left}

    def done(self, stage: str, size: float, seconds: float | None) -> None:
        """Notes an amount of a stage's work as done; None: the seconds say nothing, as a program was compiled."""
        self.left[stage] -= size
        if seconds is not None:
            before, amount = self.spent[stage]
            self.spent[stage] = before + seconds, amount + size

    def seconds(self) -> float | None:
        """What is left; None before the first step was measured."""
        if not self.spent["steps"][1] and self.left["steps"]:
            return None
        rates = {stage: seconds / size for stage, (seconds, size) in self.spent.items() if size}
        return sum(rate * max(self.left[stage], 0) for stage, rate in rates.items())

    def unknown(self) -> list[str]:
        """Stages that are still to come and were never measured."""
        return [stage for stage, (_, size) in self.spent.items() if not size and self.left[stage] > 0]


class Progress:
    """One bar for all batches of a run; `begin`, `on_stage`, `on_step` and `end` move it. A context manager."""

    def __init__(self, works: Sequence[Work], clock=time.perf_counter, **options):
        """Args:
        works: of the batches, in their order.
        clock: of seconds.
        options: of `tqdm`.
        """
        self.time_left, self.clock = TimeLeft(works), clock
        self.bar = tqdm(total=sum(work.steps for work in works), bar_format=FORMAT, **options)
        self.work, self.stage, self.since, self.measured, self.steps = Work("", 0, 0), None, 0.0, False, 0
        self._stop = threading.Event()

    def __enter__(self) -> "Progress":
        if self.bar.fp.isatty():
            threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self._stop.set()
        self.bar.close()

    def begin(self, work: Work) -> None:
        """A batch begins."""
        self.work, self.stage, self.steps = work, None, 0

    def on_stage(self, stage: str, compiles: bool) -> None:
        """See `watch.Watch`."""
        self._leave()
        self.stage, self.since, self.measured = stage, self.clock(), not compiles
        self._show(COMPILING if compiles else stage)

    def on_step(self, done: int, total: int) -> None:
        """See `watch.Watch`."""
        now = self.clock()
        self.time_left.done("steps", (done - self.steps) * self.work.size, now - self.since)
        self.bar.n += done - self.steps
        self.since, self.steps = now, done
        self._show("steps")

    def end(self) -> None:
        """The batch is done."""
        self._leave()
        self.stage = None
        self._show("done")

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        with self.bar.external_write_mode(file=sys.stdout):
            print(text, flush=True)

    def _leave(self) -> None:
        if self.stage not in (None, "steps"):
            self.time_left.done(self.stage, self.work.size, self.clock() - self.since if self.measured else None)

    def _show(self, what: str) -> None:
        left = self.time_left.seconds()
        if left is not None and what != COMPILING:
            more = [stage for stage in self.time_left.unknown() if stage != "encoding"]
            self.bar.set_postfix_str(" + ".join([f"{tqdm.format_interval(left)} left", *more]), refresh=False)
        else:
            self.bar.set_postfix_str("", refresh=False)
        self.bar.set_description_str(f"{self.work.title}: {what}", refresh=True)

    def _tick(self) -> None:
        """Lets the seconds go on while a program is compiled."""
        while not self._stop.wait(1):
            self.bar.refresh()
