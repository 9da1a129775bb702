"""Processes of a run over several hosts: they join, exchange small values, and end together.

One that cannot go on tells the others why: without this they would wait for it in the next collective, for minutes, and
end in a message of their runtime's.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from i2v_jax.errors import InputError, check_known

FOLDER = "i2v_jax/failed"  # of the key-value store that JAX's coordinator keeps
SECONDS = 2.0  # between two looks


def gather_json(value: Any) -> list[Any]:
    """Returns every process's value, which JSON can hold; every process must call it."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.process_allgather(np.array([len(text)])).max())
    rows = multihost_utils.process_allgather(np.pad(text, (0, length - len(text)), constant_values=ord(" ")))
    return [json.loads(row.tobytes()) for row in rows]


def join(mode: str, coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins the processes of a run over several hosts; to be called before anything else of JAX is.

    Args:
      mode: "auto" joins what TPU metadata or Slurm tell of, and does nothing elsewhere; "flags" joins by the other
        arguments; "off" does nothing.
      coordinator: "address:port" of process 0, on a port that is free there.
      processes: how many there are.
      process: which this is, from 0.

    Raises:
      InputError: an unknown mode, arguments missing or out of range, or the others cannot be reached.
    """
    modes = ("auto", "flags", "off")
    check_known("distributed mode ", mode, modes)
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    if mode == "flags":
        if missing := [name for name, value in given.items() if value is None]:
            raise InputError(f"distributed mode 'flags' also wants {', '.join(missing)}.")
        if not 0 <= process < processes:
            raise InputError(f"process={process} of processes={processes}: wanted 0 to {processes - 1}.")
        options = dict(coordinator_address=coordinator, num_processes=processes, process_id=process)
    elif named := [name for name, value in given.items() if value is not None]:
        raise InputError(f"{', '.join(named)} given with distributed mode {mode!r}; set the mode to 'flags'.")
    elif mode == "off" or not (_on_a_tpu_host() or int(os.environ.get("SLURM_NTASKS", 1)) > 1):
        return
    else:
        options = {}
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, ValueError) and not options and "SLURM_NTASKS" not in os.environ:
            return  # a device that only looked like a TPU
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"Cannot join the other processes ({options or mode}): {reason}") from error
    watch()


def watch() -> None:
    """Ends this process as soon as another one of the run has called `leave`; to be called once all have joined."""
    threading.Thread(target=_watch, daemon=True).start()


def leave(message: str, code: int) -> NoReturn:
    """Ends this process, and so every other one of the run, which each say the message.

    Args:
      message: what is wrong.
      code: with which all of them leave.
    """
    _client().key_value_set(f"{FOLDER}/{jax.process_index()}", f"{code} {message}", allow_overwrite=True)
    _exit(code)


def _watch() -> None:
    own = f"{FOLDER}/{jax.process_index()}"
    while True:
        time.sleep(SECONDS)
        try:
            failed = dict(_client().key_value_dir_get(FOLDER))
        except Exception:  # the run has ended
            return
        if failed and own not in failed:
            name, text = min(failed.items())
            code, _, message = text.partition(" ")
            print(f"error: process {name.rpartition('/')[2]} cannot go on. {message}", file=sys.stderr)
            _exit(int(code))


def _client():
    from jax._src import distributed  # nothing public reaches the store

    return distributed.global_state.client


def _exit(code: int) -> NoReturn:
    """Ends the process without waiting for the others, which JAX would do."""
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:  # which keeps the store
        time.sleep(3 * SECONDS)
    os._exit(code)


def _on_a_tpu_host() -> bool:
    return any(Path(device).exists() for device in ("/dev/accel0", "/dev/vfio/0"))
