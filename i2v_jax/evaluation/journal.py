"""What was measured, a line for each video, written as soon as it is known: a run that is killed goes on from it."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from i2v_jax.errors import InputError


def key_of(*parts: Any) -> str:
    """Returns a short name for values that tell one measurement from all others."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Journal:
    """A file of JSON lines, `{"key": ..., ...}`; of several of one key the last counts, metric by metric."""

    def __init__(self, path: str | Path):
        """Reads what is there; a line that a kill cut off is passed over, and written over.

        Raises:
          InputError: the file cannot be read or written, or is no such file.
        """
        self.path = Path(path)
        self.lines: dict[str, dict[str, Any]] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            content = self.path.read_bytes() if self.path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                with open(self.path, "r+b") as file:
                    file.truncate(len(whole))
        except OSError as error:
            raise InputError(f"{self.path} cannot be kept: {error.strerror}. Choose another folder.") from error
        for line in whole.splitlines():
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            key, values = record["key"], record["values"]
            self._merge(key, record, values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self.path} is no journal of measurements: {line[:80]!r}. Move it away, or give another name."
            ) from error

    def _merge(self, key: str, record: Mapping[str, Any], values: Mapping[str, float | str | None]) -> None:
        before = self.lines.get(key, {})
        self.lines[key] = {**before, **record, "values": {**before.get("values", {}), **values}}

    def get(self, key: str) -> dict[str, Any]:
        """Returns what is known of a key: `{"values": {metric: number, text or None}, ...}`, {} where nothing is."""
        return self.lines.get(key, {})

    def add(self, key: str, values: Mapping[str, float | str | None], **about: Any) -> None:
        """Writes measurements of a key; they are on the disk when this returns.

        Raises:
          InputError: they cannot be written.
        """
        record = {"key": key, "values": dict(values), **about}
        try:
            with open(self.path, "ab") as file:
                file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}. Free some space.") from error
        self._merge(key, record, values)
