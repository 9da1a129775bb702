"""The queue of the page: runs wait their turn, one is under way, any can be cancelled. It knows nothing of pictures."""

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from i2v_jax.errors import InputError

WAITING, RUNNING, DONE, CANCELLED, FAILED = "waiting", "running", "done", "cancelled", "failed"
ENDS = (DONE, CANCELLED, FAILED)


class Cancelled(Exception):
    """Raised within a run that is to stop."""


@dataclasses.dataclass(eq=False)
class Run:
    """A run in the queue, under way or ended; the worker writes it, others read it.

    Attributes:
      task: what is to be done.
      state: `WAITING`, `RUNNING`, or one of `ENDS`.
      stage: what is being done, in words.
      done, total: steps.
      seconds_left: None where unknown.
      preview: a PNG of the unfinished video; None where there is none.
      notes: what is to be said beside the result.
      result: of a run that is done.
      error: that it failed with.
    """

    task: Any
    state: str = WAITING
    stage: str = ""
    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    preview: bytes | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    result: Any = None
    error: BaseException | None = None
    _stops: threading.Event = dataclasses.field(default_factory=threading.Event)
    _ended: threading.Event = dataclasses.field(default_factory=threading.Event)

    @property
    def has_ended(self) -> bool:
        return self.state in ENDS

    def cancel(self) -> None:
        """Asks it to stop; one that is under way does so at its next `stop_if_cancelled`."""
        self._stops.set()

    def stop_if_cancelled(self) -> None:
        """Raises Cancelled where it is asked to stop; the worker's code calls it between steps."""
        if self._stops.is_set():
            raise Cancelled

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for its end; returns whether it has come."""
        return self._ended.wait(seconds)

    def end(self, state: str) -> None:
        self.state, self.preview = state, None
        self._ended.set()


class Desk:
    """Runs one after the other in a thread of its own.

    Args:
      work: does a run and returns its result; is to call `Run.stop_if_cancelled` often.
      most_waiting: runs that may wait; more are refused.
    """

    def __init__(self, work: Callable[[Run], Any], most_waiting: int):
        self.work, self.most_waiting = work, most_waiting
        self._waiting: deque[Run] = deque()
        self._changed = threading.Condition()
        self._seconds: deque[float] = deque(maxlen=8)  # of the last runs
        threading.Thread(target=self._serve, name="desk", daemon=True).start()

    def submit(self, task: Any) -> Run:
        """Puts a task at the end of the queue.

        Raises:
          InputError: the queue is full.
        """
        with self._changed:
            self._drop_cancelled()
            if len(self._waiting) >= self.most_waiting:
                raise InputError(f"{len(self._waiting)} runs are waiting, which are the most. Try again in a while.")
            run = Run(task)
            self._waiting.append(run)
            self._changed.notify_all()
        return run

    def before(self, run: Run) -> int:
        """Returns how many runs come before one that waits; the one under way counts."""
        with self._changed:
            self._drop_cancelled()
            return self._waiting.index(run) + 1 if run in self._waiting else 0

    def seconds_before(self, run: Run) -> float | None:
        """Returns how long a waiting run will still wait, by how long the last ones took; None where unknown."""
        if not self._seconds:
            return None
        return self.before(run) * sum(self._seconds) / len(self._seconds)

    def _drop_cancelled(self) -> None:
        for run in [run for run in self._waiting if run._stops.is_set()]:
            self._waiting.remove(run)
            run.end(CANCELLED)

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                run = self._waiting.popleft()
            began = time.monotonic()
            try:
                run.stop_if_cancelled()
                run.state = RUNNING
                run.result = self.work(run)
                self._seconds.append(time.monotonic() - began)
                run.end(DONE)
            except Cancelled:
                run.end(CANCELLED)
            except BaseException as error:  # whatever it is, the next one's turn comes
                run.error = error
                run.end(FAILED)
