"""The one error that means "mend your input": commands print its message and leave with exit code 2."""

import contextlib
import contextvars
import difflib
import re
from collections.abc import Iterable, Iterator

_SPEAKS_FLAGS = contextvars.ContextVar("whether messages name settings as flags of a command", default=False)
_GROUPS = {"weights": "Weights", "noise_schedule": "NoiseSchedule"}  # of a config's keys, and the class of their values


class InputError(ValueError):
    """Bad input from a user. The message says what was given, what was wanted and how to mend it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `" Did you mean 'x'?"` for the known name most like `name`, or `""` when none is near."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def check_known(what: str, given: str, known: Iterable[str]) -> None:
    """Refuses a name that is not one of those known.

    Args:
        what: what a message begins with, such as `"dtype="`; the name follows.
        given: the name.
        known: all that there are.

    Raises:
        InputError: the name is none of them; says which there are, and the nearest.
    """
    known = list(known)
    if given not in known:
        raise InputError(f"{what}{given!r}; known: {', '.join(known)}.{nearest(given, known)}")


@contextlib.contextmanager
def flags_in_messages() -> Iterator[None]:
    """Within it a command runs: messages may name settings by its flags, `--config.KEY`."""
    token = _SPEAKS_FLAGS.set(True)
    try:
        yield
    finally:
        _SPEAKS_FLAGS.reset(token)


@contextlib.contextmanager
def python_words() -> Iterator[None]:
    """Around what is called from Python: messages name arguments where a command's would name flags."""
    try:
        yield
    except InputError as error:
        if _SPEAKS_FLAGS.get() or "--config." not in str(error):
            raise
        raise InputError(in_python_words(str(error))) from error


def in_python_words(message: str) -> str:
    """Returns a message with flags as arguments: `--config.weights.base` is `Weights(base=...)`, `--config.dtype=x`
    is `dtype='x'`."""

    def argument(found: re.Match) -> str:
        *groups, name = found["key"].split(".")
        value = found["value"]
        is_text = value is not None and not re.fullmatch(r"[\d.eE+-]+|True|False|None", value)
        value = repr(value) if is_text and not value.isupper() else value
        if groups and groups[0] in _GROUPS:
            return f"{_GROUPS[groups[0]]}({name}={value or '...'})"
        return found["key"] if value is None else f"{found['key']}={value}"

    return re.sub(r"--config\.(?P<key>\w+(?:\.\w+)*)(?:=(?P<value>[^\s,;:)]*[^\s,;:).]))?", argument, message)
