"""The control pictures that a pipeline is given: of each network, for all videos or one for each, read to one size."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from i2v_jax.errors import InputError
from i2v_jax.hub import text_lines
from i2v_jax.sampling.controls.pictures import LIST_SUFFIX, Source, read
from i2v_jax.sampling.controls.settings import ControlSettings

Given = Source | tuple[Source, ...]
"""What `pictures.read` takes, for all videos; or a tuple of such, one for each video."""


class ControlPictures(NamedTuple):
    """The pictures of one control network, and which frames of which video have one."""

    pictures: UInt8[np.ndarray, "b f H W 3"]
    known: Bool[np.ndarray, "b f"]


def of_networks(given: Any, count: int, videos: int) -> list[tuple[Source, ...]]:
    """Returns the sources of each network, one for each video.

    Args:
      given: one `Given` for each network, in a list; that of a single network, or of all, may stand alone.
      count: of networks.
      videos: how many.

    Raises:
      InputError: pictures and networks, or pictures and videos, do not pair.
    """
    alone = isinstance(given, str | os.PathLike | tuple | np.ndarray) or not isinstance(given, Sequence)
    of_each = [] if given is None else [given] if alone else list(given)
    if not count and of_each:
        raise InputError(
            "Control pictures are given, and the model has no control network. Name one by --config.weights.controls, "
            "or leave the pictures out."
        )
    if count and not of_each:
        raise InputError(
            f"The model has {_networks(count)}, and no control pictures are given: controls=PICTURES (of `python "
            "sample.py`, --control=PICTURES): a video, a folder, a picture, or a list of pictures."
        )
    if len(of_each) not in (1, count):
        raise InputError(
            f"Control pictures are given for {_networks(len(of_each))}, and the model has {count}. Give them for each, "
            "or one for all."
        )
    found = []
    for one in of_each * (count // len(of_each) if of_each else 0):
        sources = one if isinstance(one, tuple) else (one,) * videos
        if len(sources) != videos:
            raise InputError(
                f"{len(sources)} control pictures in a tuple for {videos} videos: wanted one for each. Frames of one "
                "video go in a list."
            )
        found.append(sources)
    return found


def of_config(config: Mapping[str, Any]) -> list[str]:
    """Returns the source of each control network that a video's config names.

    Raises:
      InputError: pictures and networks do not pair.
    """
    pictures, networks = config.get("controls", {}).get("pictures", ()), config["weights"].get("controls", ())
    return [source for (source,) in of_networks(list(pictures), len(networks), 1)]


def files_of(source: str | Path) -> list[Path]:
    """Returns the files that a source of control pictures is made of; of a text file, those that it lists too."""
    path = Path(source).expanduser()
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    listed = []
    if path.suffix.lower() == LIST_SUFFIX and path.is_file():
        listed = [path.parent / Path(line.strip()).expanduser() for line in text_lines(path) if line.strip()]
    return [file for file in (path, *listed) if file.is_file()]


def read_all(
    sources: Sequence[tuple[Source, ...]], settings: ControlSettings, frames: int, height: int, width: int, fit: str
) -> list[ControlPictures]:
    """Reads the pictures of every network; a source of several videos is read once.

    Args:
      sources: from `of_networks`.
      settings: of the networks.
      frames, height, width, fit: of the videos, see `pictures.read`.

    Raises:
      InputError: as of `pictures.read`.
    """
    count, found = len(sources), []
    each = (settings.of_each(name, count) for name in ("process", "frames", "take"))
    for of_videos, process, at, take in zip(sources, *each):
        made = {}
        keys = [source if isinstance(source, str) else id(source) for source in of_videos]
        for key, source in zip(keys, of_videos):
            if key not in made:
                made[key] = read(source, frames, height, width, fit, process, at, take or None)
        pictures, known = zip(*(made[key] for key in keys))
        found.append(ControlPictures(np.stack(pictures), np.stack(known)))
    return found


def _networks(count: int) -> str:
    return f"{count} control network{'s' if count > 1 else ''}"
