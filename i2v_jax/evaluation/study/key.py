"""What a study's page does not say: which video is of which run. Kept in a file beside the page."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from i2v_jax.errors import InputError
from i2v_jax.weights.storage.files import read_json

FORMAT = "i2v study key 1"
SUFFIX = ".key.json"


@dataclasses.dataclass(frozen=True)
class Key:
    """A study's key.

    Attributes:
      study: its id, which the page and answers carry.
      title: of the page.
      runs: names, in the order given.
      questions: name -> what people are asked.
      cases: id of a case -> its name.
      videos: id of a case -> {id of a video: name of its run}.
      seed: of the ids and their order.
    """

    study: str
    title: str
    runs: tuple[str, ...]
    questions: Mapping[str, str]
    cases: Mapping[str, str]
    videos: Mapping[str, Mapping[str, str]]
    seed: int

    def to_json(self) -> bytes:
        """Returns the file's content."""
        return (json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n").encode()


def key_path(page: str | Path) -> Path:
    """Returns where the key of a page lies."""
    return Path(page).with_suffix(SUFFIX)


def read_key(path: str | Path) -> Key:
    """Reads a key, of its own path or of its page's.

    Raises:
      InputError: no such file, or no key.
    """
    path = Path(path).expanduser()
    path = key_path(path) if path.suffix in (".html", ".htm") else path
    if not path.is_file():
        raise InputError(f"No key at '{path}'. `study make` wrote it beside the page, as NAME{SUFFIX}.")
    content = read_json(path)
    if content.pop("format", None) != FORMAT:
        raise InputError(f"{path} is no key of a study. Wanted the file NAME{SUFFIX} that `study make` wrote.")
    try:
        key = Key(**content)
        sound = _is_sound(key)
    except (TypeError, AttributeError):
        sound = False
    if not sound:
        raise InputError(f"{path} is a damaged key. Take it from where `study make` wrote it.")
    return dataclasses.replace(key, runs=tuple(key.runs))


def _is_sound(key: Key) -> bool:
    runs = sorted(key.runs)
    whole = key.cases.keys() == key.videos.keys() and bool(key.questions.keys())
    return whole and all(sorted(one.values()) == runs for one in key.videos.values())
