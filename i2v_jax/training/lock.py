"""One run at a time in a folder: the first process of a run holds a lock, which the system takes back when it ends."""

import atexit
import contextlib
import fcntl
import os
import socket
from pathlib import Path
from typing import TextIO

import jax

from i2v_jax.devices import processes
from i2v_jax.errors import InputError

NAME = "lock"


def lock(folder: Path, name: str = NAME) -> TextIO | None:
    """Makes a run's folder its own. Every process of a run must call it; all of them learn of a refusal.

    A folder that is made here, and that still holds nothing but the lock when the process ends, is removed again.

    Args:
      folder: of the run; made where it is not there.
      name: of the file in it; runs that take different ones may be at work together.

    Returns:
      The file that holds the lock for as long as it is open; None in other processes than the first.

    Raises:
      InputError: another run is at work there, or the folder cannot be made.
    """
    held, problem = _take(folder, name) if jax.process_index() == 0 else (None, "")
    if problem := next(filter(None, processes.gather_json(problem)), ""):
        raise InputError(problem)
    return held


def _take(folder: Path, name: str) -> tuple[TextIO | None, str]:
    """Returns the locked file, or what is wrong."""
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / name, "a+", encoding="utf-8")
    except OSError as error:
        return None, f"Cannot write to the run's folder {folder}: {error.strerror or error}."
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return None, (
            f"Another run is at work in {folder} ({file.read().strip() or 'of an unknown process'}). Wait for its end, "
            "stop it, or give another folder."
        )
    except OSError:
        return file, ""  # a file system without locks
    with contextlib.suppress(OSError):  # a full disk
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    if is_new:
        atexit.register(_remove_if_idle, folder, name)
    return file, ""


def _remove_if_idle(folder: Path, name: str) -> None:
    with contextlib.suppress(OSError):
        if os.listdir(folder) == [name]:
            (folder / name).unlink()
            folder.rmdir()
