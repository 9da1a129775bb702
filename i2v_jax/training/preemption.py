"""Notice that a run must soon end: SIGTERM, as Slurm, Kubernetes and cloud machines send it before they kill.

Where several processes run together, JAX's preemption service takes the signal on any of them and finds the step at
which all can stop.
"""

import signal
import threading

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 128 + signal.SIGTERM
"""With which a run leaves that was stopped in this way and is to be started again."""


class Preemption:
    """Watches for SIGTERM from its making on, so that it no longer ends the process at once.

    To be made after `processes.join`, in the main thread.
    """

    def __init__(self):
        self.noticed = threading.Event()
        if not jax.distributed.is_initialized():  # else JAX has a handler of its own, which ours would displace
            signal.signal(signal.SIGTERM, lambda *_: self.noticed.set())

    def reached(self, step: int) -> bool:
        """Returns whether to save and leave after this step; every process must ask after each one."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self.noticed.is_set()
