"""The one error that means "mend your input": commands print its message and leave with exit code 2."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from a user. The message says what was given, what was wanted and how to mend it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `" Did you mean 'x'?"` for the known name most like `name`, or `""` when none is near."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""
