"""Notice that a run must soon end: Ctrl-C, or SIGTERM as Slurm, Kubernetes and cloud machines send it before they kill.

Where several processes run together, JAX's preemption service takes the signal on any of them and finds the step at
which all can stop. A second Ctrl-C ends the process at once, and so does the first one where nothing is to be saved.
"""

import os
import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils

from i2v_jax.devices import processes

EXIT_CODE = 128 + signal.SIGTERM
"""With which a run leaves that was stopped by SIGTERM and is to be started again."""
INTERRUPTED = 128 + signal.SIGINT
"""With which a run leaves that was stopped by Ctrl-C."""


class Preemption:
    """Watches for SIGINT and SIGTERM from its making on, so that they no longer end the process at once.

    To be made after `processes.join`, in the main thread. A thread takes the signals: the main one, where Python would
    handle them, may be in a compiler for minutes.

    Args:
      unsaved: whether there is something to save, so that a first Ctrl-C does not end the process; may be set later.
      together: whether all processes of the run stop at one step; else this one stops by itself.
    """

    def __init__(self, unsaved: bool = True, together: bool = True):
        self.noticed, self.unsaved, self.interrupts = threading.Event(), unsaved, 0
        self.together = together and jax.distributed.is_initialized()
        reads, writes = os.pipe()
        os.set_blocking(writes, False)
        signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, _nothing)
        if not self.together:  # else JAX has a handler of its own, which ours would displace
            signal.signal(signal.SIGTERM, _nothing)
        threading.Thread(target=self._watch, args=(reads,), daemon=True).start()

    @property
    def exit_code(self) -> int:
        """With which to leave after `reached`: 130 after Ctrl-C, 143 after SIGTERM, in whichever process it came."""
        return INTERRUPTED if self.interrupts else EXIT_CODE

    def reached(self, step: int) -> bool:
        """Returns whether to save and leave after this step; every process must ask after each one."""
        if self.together:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.noticed.is_set()

    def _watch(self, reads: int) -> None:
        while number := os.read(reads, 1):
            if number[0] == signal.SIGINT:
                self._interrupt()
            elif number[0] == signal.SIGTERM:
                self.noticed.set()

    def _interrupt(self) -> None:
        self.interrupts += 1
        if self.interrupts > 1:
            _end("interrupted again: ended at once; the same command goes on from what was saved before")
        if not self.unsaved:
            _end("interrupted; nothing is lost, the same command goes on")
        _say("interrupted: what is done is saved after this step; Ctrl-C once more ends at once")
        self.noticed.set()
        if self.together:  # JAX's service knows SIGTERM alone
            os.kill(os.getpid(), signal.SIGTERM)


def _nothing(*_) -> None:
    """A handler, so that the system tells Python of a signal."""


def _say(message: str) -> None:
    print(f"\n{message}", file=sys.stderr, flush=True)  # under a bar, which has no end of line


def _end(message: str) -> None:
    _say(message)
    if jax.distributed.is_initialized():
        processes.leave(message, INTERRUPTED)
    sys.stdout.flush()
    os._exit(INTERRUPTED)
