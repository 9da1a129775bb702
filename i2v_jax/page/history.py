"""The runs of the page on the disk: video, GIF, contact sheet, record, picture, and what was finished of them."""

import json
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from i2v_jax.errors import InputError
from i2v_jax.hub import on_disk
from i2v_jax.sampling.batches import SUFFIXES

FOLDER = "page"  # within a config's output
NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
PICTURE = "-picture.png"
MOST_FINISHED = 5  # files of each run


class Entry(NamedTuple):
    """A run that was made.

    Attributes:
      name: of it.
      stem: path of its files without suffixes.
      config: of its record.
    """

    name: str
    stem: Path
    config: Mapping[str, Any]

    def file(self, suffix: str) -> Path:
        """Path of one of its files."""
        return Path(f"{self.stem}{suffix}")

    @property
    def finished(self) -> list[Path]:
        """What was finished of it, the newest first."""
        found = self.stem.parent.glob(f"{self.name}-finished-*")
        return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)


class History:
    """Runs in a folder; where there are more than `most`, the oldest are removed. Other files there are left alone."""

    def __init__(self, output: str | Path, most: int):
        """Args:
        output: of a sampling config; the runs lie in its `FOLDER`.
        most: runs that are kept.
        """
        self.folder, self.most = on_disk(output).resolve() / FOLDER, most

    def new(self) -> Path:
        """Returns the stem of a new run, whose folder is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"

    def names(self) -> list[str]:
        """Returns the names of whole runs, the newest first."""
        found = [path.stem for path in self.folder.glob("*.json") if NAME.fullmatch(path.stem)]
        return sorted((name for name in found if self._is_whole(name)), reverse=True)

    def entry(self, name: str) -> Entry:
        """Returns a run.

        Raises:
          InputError: there is none of that name, or its record is damaged.
        """
        if not isinstance(name, str) or not NAME.fullmatch(name) or not self._is_whole(name):
            raise InputError("This run is no longer there. Choose another.")
        stem = self.folder / name
        try:
            config = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))["config"]
            return Entry(name, stem, dict(config))
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError("This run's record is damaged. Choose another.") from None

    def entries(self) -> list[Entry]:
        """Returns all runs whose records can be read, the newest first."""
        found = []
        for name in self.names():
            try:
                found.append(self.entry(name))
            except InputError:
                continue
        return found

    def remove(self, name: str) -> None:
        """Removes a run's files; those that other runs have are never named like them."""
        if NAME.fullmatch(name):
            for path in (*self.folder.glob(f"{name}.*"), *self.folder.glob(f"{name}-*")):
                path.unlink(missing_ok=True)

    def prune(self) -> None:
        """Removes the oldest runs where there are too many, and of each the oldest finished files."""
        names = self.names()
        for name in names[self.most :]:
            self.remove(name)
        for name in names[: self.most]:
            for path in Entry(name, self.folder / name, {}).finished[MOST_FINISHED:]:
                path.unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Removes what a process that was ended in the middle of a run has left, an hour ago or more."""
        whole, before = set(self.names()), time.time() - 3600
        for path in self.folder.glob("*"):
            match = NAME.match(path.name.lstrip("."))
            if match and match[0] not in whole and path.is_file() and path.stat().st_mtime < before:
                path.unlink(missing_ok=True)

    def _is_whole(self, name: str) -> bool:
        return all((self.folder / f"{name}{suffix}").is_file() for suffix in (*SUFFIXES, PICTURE))
