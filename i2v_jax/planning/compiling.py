"""Compiles for a TPU as far as a plan reads: until memory is laid out.

Machine code, of which a plan shows the size only, takes the compiler ten times longer.
"""

import contextlib
import multiprocessing
import re
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import jax

TEXT = "*.after_optimizations_after_buffer_assignment.txt"
REPORT = "*.after_optimizations-memory-usage-report.txt"
SECONDS = 30  # that machine code may take, once memory is laid out


class LaidOut(NamedTuple):
    """A program whose memory is laid out: the compiler's own words, which it dumps before it writes machine code."""

    text: str  # HLO
    memory: int  # bytes of main memory: arguments, temporaries and outputs


def until_laid_out(lowered: jax.stages.Lowered, seconds: float) -> jax.stages.Compiled | LaidOut:
    """Returns a compiled program; where its machine code takes longer than some seconds, what is known before.

    Then a thread compiles on, and only the end of the process ends it: see `in_a_process`.

    Raises:
      jax.errors.JaxRuntimeError: the compiler's; it finds no room, for instance.
    """
    outcome, since = Future(), None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:

        def run() -> None:
            try:
                outcome.set_result(lowered.compile(compiler_options=dumping(folder)))
            except BaseException as error:
                outcome.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        while since is None or time.monotonic() - since < seconds:
            with contextlib.suppress(TimeoutError):
                return outcome.result(timeout=0.2)
            if since is None and any(Path(folder).glob(TEXT)):
                since = time.monotonic()
        return read_dump(Path(folder))


def dumping(folder: str) -> dict[str, Any]:
    """Returns the compiler's options for a dump."""
    return {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}


def read_dump(folder: Path) -> LaidOut:
    """Returns what the compiler dumped there of one program."""
    (text,), (report,) = (list(folder.glob(pattern)) for pattern in (TEXT, REPORT))
    total = re.search(r"Memory Space: default \(color=0\)\nTotal bytes: (\d+)", report.read_text())
    return LaidOut(text.read_text(), int(total[1]))


def in_a_process(function: Callable, *arguments: Any) -> Any:
    """Returns what a function of a module returns, or raises what it raises, called in a process that then is ended."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        value, error = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"The process that compiles was ended (exit code {process.exitcode}); it may have wanted more memory."
        ) from None
    finally:
        process.kill()
        process.join()
    if error is not None:
        raise error
    return value


def _answer(connection: Connection, function: Callable, arguments: tuple) -> None:
    try:
        answer = function(*arguments), None
    except Exception as error:
        answer = None, error
    connection.send(answer)
