"""What is compared: a model with some settings, another model by its config, or a folder of anyone's videos."""

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from i2v_jax.errors import InputError, nearest
from i2v_jax.evaluation.sets import videos_in
from i2v_jax.sampling.settings import Settings

SOURCES = ("config", "videos")


@dataclasses.dataclass(frozen=True)
class Compared:
    """A row of a table.

    Attributes:
      labels: its first columns.
      settings: text of the settings that differ from the config's, `key=value key=value`.
      config: file of another model's config; "": the command's own.
      videos: folder of videos that are there already; "": they are sampled.
    """

    labels: Mapping[str, Any]
    settings: str = ""
    config: str = ""
    videos: str = ""


def compared(text: str, header: str) -> Compared:
    """Reads "name: videos=FOLDER", "name: config=FILE setting=value ..." or "name: setting=value ...".

    Raises:
      InputError: no text, quotes that do not close, a folder of videos with settings beside, or one without videos.
    """
    if not isinstance(text, str):
        raise InputError(f"runs: {text!r} is no text; wanted 'name: videos=FOLDER' or 'name: setting=value ...'.")
    found = re.search(r"(^|[:\s])(config|videos)=", text)
    if not found:
        return Compared({}, text)
    name, colon, rest = text.partition(":")
    if not colon or not name.strip() or found.start(2) < len(name):
        raise InputError(f"runs: {text!r} has no name; wanted 'name: {found[2]}=...'.")
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise InputError(f"runs: {text!r}: {error}. Check its quotes.") from None
    given = {}
    for word in [word for word in words if word.partition("=")[0] in SOURCES]:
        words.remove(word)
        key, _, value = word.partition("=")
        given[key] = value
    if "videos" in given:
        if words or len(given) > 1:
            raise InputError(f"runs: {text!r}: videos that are there already have no settings.")
        videos_in(given["videos"])
    return Compared({header: name.strip()}, " ".join(words), **given)


def read_run(text: str, header: str, base: Settings) -> tuple[dict[str, Any], Settings]:
    """Reads "name: setting=value ..." as a run's labels and settings.

    Raises:
      InputError: no text, an unknown setting, or a value of another type.
    """
    if not isinstance(text, str):
        raise InputError(f"runs: {text!r} is no text; wanted 'name: setting=value ...'.")
    known = {field: kind for field, value in vars(base).items() if (kind := type(value)) in (int, float, str)}
    name, colon, rest = text.rpartition(":")
    changes = {}
    for word in rest.split():
        key, _, value = word.partition("=")
        if key not in known:
            raise InputError(f"runs: {text!r} sets {key!r}; known: {', '.join(known)}.{nearest(key, known)}")
        try:
            changes[key] = known[key](value)
        except ValueError:
            raise InputError(f"runs: {text!r} sets {key} to {value!r}, a number is wanted.") from None
    if not (name if colon else changes):
        raise InputError(f"runs: {text!r} has neither a name nor a setting; wanted 'name: setting=value ...'.")
    return {header: name} if colon else changes, Settings(**(vars(base) | changes))


def folder_name(labels: Mapping[str, Any], key: str) -> str:
    """Returns what a run's folder of videos is called: its labels, as far as files can be so called, and its key."""
    plain = re.sub(r"[^\w.=-]+", "-", "-".join(f"{k}={v}" if not isinstance(v, str) else v for k, v in labels.items()))
    return f"{plain.strip('-.')[:60]}-{key[:8]}"


def check_labels(labels: Sequence[Mapping[str, Any]]) -> None:
    """Raises InputError unless all runs have the same columns of labels and no two the same."""
    if not labels:
        raise InputError("runs=(): wanted one or more.")
    if len({tuple(one) for one in labels}) > 1:
        raise InputError("runs: either all have a name, or all set the same settings in the same order.")
    names = [tuple(map(str, one.values())) for one in labels]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"runs: {', '.join(twice)!r} stands twice.")


def videos_of(items: Sequence[str], folder: str | Path) -> dict[str, Path]:
    """Returns a folder's videos of a set's items, by name.

    Raises:
      InputError: it has none of them, or none at all.
    """
    found = videos_in(folder)
    if not found.keys() & set(items):
        raise InputError(
            f"{folder} has no video that is called as one of the set: the set has {items[0]!r}, the folder "
            f"{next(iter(found))!r}. Videos are told by the names of the pictures."
        )
    return found
