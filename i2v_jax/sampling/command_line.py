"""What a command line of sampling sets: which config file it begins from, and which keys a person gave."""

import re
from collections.abc import Sequence
from pathlib import Path


def given_keys(argv: Sequence[str]) -> set[str]:
    """Returns the config's keys that a command line sets."""
    given = (re.match(r"--?(?:no)?(?:config\.)?([\w.-]+)", word) for word in argv[1:])
    return {found[1].replace("-", "_") for found in given if found}


def source(argv: Sequence[str]) -> str | None:
    """Returns the config file that a command line names; None where it names none."""
    found = None
    for i, word in enumerate(argv):
        flag, _, value = word.partition("=")
        if flag in ("--config", "-config"):
            found = value if "=" in word else argv[i + 1] if i + 1 < len(argv) else None
    return found


def begun(argv: Sequence[str], bundled: Path, real: Path) -> list[str]:
    """Returns a command line that names a config file: its own; else that of the bundled model, or, where it names
    another base than that model's, `real`, whose other settings suit published weights."""
    if "config" in given_keys(argv):
        return list(argv)
    return [argv[0], f"--config={real if 'weights.base' in given_keys(argv) else bundled}", *argv[1:]]
