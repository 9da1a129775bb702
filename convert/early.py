"""Files that a command is about to read whole, asked of the disk while Python still imports, which takes a second."""

import os
import threading
from collections.abc import Iterable
from pathlib import Path

COMMANDS = ("importing", "exporting", "merging")
"""Modules of the commands that read all of their files."""
MOST = 4 << 30  # bytes: what a fast disk reads meanwhile; the page cache of a small machine is not to overflow
PIECE = 1 << 24  # bytes asked for at once


def read_early(words: Iterable[str]) -> None:
    """Begins to read the files among some words of a command line, `FILE` or `NAME=FILE`; returns at once.

    Nothing is said of what is no file: the command itself will.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    left = MOST
    for word in words:
        for path in (Path(word), Path(word.partition("=")[2] or word)):
            try:
                size = min(path.stat().st_size, left) if path.is_file() else 0
            except (OSError, ValueError):
                continue
            if size > PIECE:
                threading.Thread(target=_read, args=(path, size), daemon=True).start()
                left -= size
                break


def _read(path: Path, size: int) -> None:
    try:
        with open(path, "rb") as file:
            for begin in range(0, size, PIECE):
                os.posix_fadvise(file.fileno(), begin, PIECE, os.POSIX_FADV_WILLNEED)
    except OSError:
        return
