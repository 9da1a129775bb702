"""Files of a folder in the order of the numbers in their names."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from i2v_jax.data.clip import VIDEO_SUFFIXES
from i2v_jax.errors import InputError

DIGITS = re.compile(r"([0-9]+)")
MEND = "Put the picture there; or, for frames without one, give a list with an empty line for each."


def in_order(folder: Path, suffixes: Sequence[str], others: Sequence[str] = ()) -> list[Path]:
    """Returns a folder's files with some endings, or where there are none with others, sorted by name, numbers in names
    by value.

    Where names differ by one number alone, numbers are to follow each other in even steps.

    Raises:
      InputError: there are none, one number is there twice, or one is missing.
    """
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    files = _ending_in(names, suffixes) or _ending_in(names, others)
    if not files:
        raise InputError(_nothing_in(folder, names, [*suffixes, *others]))
    check_numbers(repr(str(folder)), files, MEND)
    return [folder / name for name in files]


def _ending_in(names: Sequence[str], suffixes: Sequence[str]) -> list[str]:
    return sorted((name for name in names if Path(name).suffix.lower() in suffixes), key=key)


def key(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Returns what names are sorted by: digits by value, and before letters; equal ones by the text."""
    parts = [part for part in DIGITS.split(name) if part]
    return [(False, int(part), "") if DIGITS.fullmatch(part) else (True, 0, part) for part in parts], name


def check_numbers(where: str, files: Sequence[str], mend: str) -> None:
    """Checks names that differ by one number alone.

    Args:
      where: what holds them, for messages.
      files: names, sorted by `key`.
      mend: what to do where one is missing.

    Raises:
      InputError: a number is there twice, or one is missing.
    """
    stems = [DIGITS.split(Path(name).stem) for name in files]
    if len(files) < 2 or len({tuple(stem[::2]) for stem in stems}) > 1:
        return  # names of several forms
    places = range(1, len(stems[0]), 2)
    columns = [[int(stem[place]) for stem in stems] for place in places]
    varying = [column for column in columns if len(set(column)) > 1]
    if len(varying) > 1:
        return
    numbers = varying[0] if varying else [0] * len(files)
    steps = [after - before for before, after in zip(numbers, numbers[1:])]
    if 0 in steps:
        one, other = files[steps.index(0) :][:2]
        raise InputError(f"{where} has {one!r} and {other!r}: one number twice. Remove one.")
    for step, before, after, number in zip(steps, files, files[1:], numbers):
        if step > min(steps):
            raise InputError(f"{where} lacks number {number + min(steps)}: after {before!r} comes {after!r}. {mend}")


def _nothing_in(folder: Path, names: Sequence[str], suffixes: Sequence[str]) -> str:
    kinds = Counter("folders" if (folder / name).is_dir() else Path(name).suffix or "others" for name in names)
    there = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "nothing"
    videos = [name for name in names if Path(name).suffix.lower() in VIDEO_SUFFIXES]
    mend = f" Give a video's path, such as {str(folder / videos[0])!r}." if videos else ""
    return f"{str(folder)!r} holds no pictures or keypoints ({', '.join(suffixes)}), but {there}.{mend}"
