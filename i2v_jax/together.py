"""Processes of a run over several hosts end together: one that cannot go on tells the others why.

Without this they would wait for it in the next collective, for minutes, and end in a message of their runtime's.
"""

import os
import sys
import threading
import time
from typing import NoReturn

import jax

FOLDER = "i2v_jax/failed"  # of the key-value store that JAX's coordinator keeps
SECONDS = 2.0  # between two looks


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
            told = dict(_client().key_value_dir_get(FOLDER))
        except Exception:  # the run has ended
            return
        if told and own not in told:
            name, text = min(told.items())
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
