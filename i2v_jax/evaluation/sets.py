"""What a model is measured on: pictures with prompts, and what is known of the videos that they are of.

The small world; a folder or a CSV of pictures; MJHQ-30K; a folder of videos of any model.
"""

import dataclasses
import functools
import io
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from i2v_jax.data.decoding import read_frames
from i2v_jax.data.small_world.drawing import RenderedClip, render_clip
from i2v_jax.data.small_world.scene import draw
from i2v_jax.errors import InputError, nearest
from i2v_jax.media import Frames, Picture, load_picture, to_picture
from i2v_jax.sampling import jobs
from i2v_jax.weights.storage.files import read_json

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")
PAPERS_COUNT = 50
"""Pictures of MJHQ-30K that the I2V-Adapter paper draws at random."""
CATEGORIES = ("animals", "art", "fashion", "food", "indoor", "landscape", "logo", "people", "plants", "vehicles")
"""Of MJHQ-30K, with 3,000 pictures each."""


class Example(NamedTuple):
    """One video to be made.

    Attributes:
      picture: the input.
      prompt: the text.
      truth: the clip whose first frame and caption these are, with its video, flow and scene; None where no clip is
        known. Metrics that need it leave such an example out.
    """

    picture: Picture
    prompt: str
    truth: RenderedClip | None = None


def small_world(split: str, numbers: Sequence[int], frames: int, side: int, *, opposite: bool = False) -> list[Example]:
    """Returns clips of the small world.

    Args:
      split, numbers: which, see `data.small_world.scene.draw`.
      frames, side: of a clip, the side in pixels.
      opposite: the same pictures, but with prompts and videos in which every motion goes the other way.

    Raises:
      InputError: no such split.
    """
    scenes = [draw(number, split) for number in numbers]
    clips = [render_clip(scene.opposite() if opposite else scene, frames, side) for scene in scenes]
    return [Example(clip.video[0], clip.caption, clip) for clip in clips]


@dataclasses.dataclass(frozen=True)
class Item:
    """One of a set: what a video is made of and compared with; read when it is its turn.

    Attributes:
      name: unique within the set; videos of it have it as their stem.
      prompt: None where there is none.
      picture: reads the input picture; None where there is none.
      truth: reads the true video; None where there is none.
      identity: tells whether it is still the same: of files, their sizes and times.
    """

    name: str
    prompt: str | None = None
    picture: Callable[[], Picture] | None = None
    truth: Callable[[], Frames] | None = None
    identity: str = ""


def of_small_world(examples: Sequence[Example], numbers: Iterable[int]) -> list[Item]:
    """Returns clips of the small world, their truth as video alone; names are their numbers."""
    return [
        Item(
            f"clip-{number}",
            example.prompt,
            functools.partial(np.asarray, example.picture),
            functools.partial(np.asarray, example.truth.video),
            f"{example.truth.video.shape} {example.prompt}",
        )
        for number, example in zip(numbers, examples)
    ]


def pictures(source: str | Path, prompt: str = "") -> list[Item]:
    """Returns the pictures of a folder (NAME.txt beside one is its prompt) or of a CSV's rows, see `sampling.table`.

    Args:
      prompt: of pictures without one; "": they have none.

    Raises:
      InputError: nothing is there, or no pictures, or what `sampling.table.read` refuses.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise InputError(f"No pictures at '{source}': wanted a folder of them, or a CSV.")
    if path.is_dir():
        found = jobs.folder_jobs(path, prompt, dict(negative_prompt="", seed=0))
    else:
        found = jobs.read_jobs(path)
    return [
        Item(name, job.prompt or prompt or None, functools.partial(load_picture, job.picture), None, stamp(job.picture))
        for name, job in zip(jobs.names(found), found)
    ]


def mjhq30k(source: str | Path, count: int = PAPERS_COUNT, seed: int = 0, category: str = "") -> list[Item]:
    """Returns pictures of MJHQ-30K, drawn at random.

    Args:
      source: the folder with `meta_data.json`, and beside it `mjhq30k_imgs.zip`, or what that unpacks to: a folder per
        category, in `mjhq30k_imgs` or in `source` itself.
      count: how many; 0: all.
      seed: of the draw.
      category: only of one; "": of all.

    Raises:
      InputError: no metadata or pictures, pictures that are not there, an unknown category, or fewer than `count`.
    """
    folder = Path(source).expanduser()
    if not (folder / "meta_data.json").is_file():
        raise InputError(
            f"{folder} has no meta_data.json. Wanted the folder of MJHQ-30K: `hf download playgroundai/MJHQ-30K "
            f"meta_data.json mjhq30k_imgs.zip --repo-type dataset --local-dir {folder}`."
        )
    entries = _entries(folder / "meta_data.json")
    known = sorted({entry["category"] for entry in entries.values()})
    if category and category not in known:
        raise InputError(f"No category {category!r} in MJHQ-30K; known: {', '.join(known)}.{nearest(category, known)}")
    names = sorted(name for name, entry in entries.items() if category in ("", entry["category"]))
    if count > len(names):
        raise InputError(f"{count} pictures of {len(names)}: wanted no more than there are.")
    if count:
        names = [names[i] for i in np.sort(np.random.default_rng(seed).permutation(len(names))[:count])]
    there = _pictures_in(folder)
    members = {name: f"{entries[name]['category']}/{name}.jpg" for name in names}
    if missing := [member for member in members.values() if member not in there]:
        raise InputError(
            f"{folder}: {len(missing)} of {len(names)} pictures of meta_data.json are not there, such as {missing[0]}. "
            "Fetch mjhq30k_imgs.zip again, or unpack it whole."
        )
    return [
        Item(name, entries[name]["prompt"], there[member].read, identity=there[member].identity)
        for name, member in members.items()
    ]


class _Found(NamedTuple):
    """A picture of MJHQ-30K, unread."""

    read: Callable[[], Picture]
    identity: str


def _entries(path: Path) -> dict[str, dict[str, str]]:
    entries = read_json(path)
    for name, entry in entries.items():
        sound = isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("category", "prompt"))
        if not sound or set(name) & set("/\\\0:"):
            raise InputError(f"{path}: {name!r} is {str(entry)[:80]}; wanted {{'category': ..., 'prompt': ...}}.")
    return entries


def _pictures_in(folder: Path) -> Mapping[str, _Found]:
    """Category/name.jpg -> how it is read: unpacked, or out of the archive."""
    for place in (folder / "mjhq30k_imgs", folder):
        files = [path for path in place.glob("*/*.jpg")] if place.is_dir() else []
        if files:
            return {
                f"{path.parent.name}/{path.name}": _Found(functools.partial(load_picture, path), stamp(path))
                for path in files
            }
    archive = folder / "mjhq30k_imgs.zip"
    if not archive.is_file():
        raise InputError(
            f"{folder} has neither mjhq30k_imgs.zip nor its pictures unpacked. Fetch it beside the metadata."
        )
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [name for name in opened.namelist() if name.endswith(".jpg")]
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{archive} is damaged ({error}). Fetch it again.") from None
    inside = {"/".join(name.split("/")[-2:]): name for name in names}
    known = stamp(archive)
    return {
        name: _Found(functools.partial(_from_archive, archive, member), f"{known} {member}")
        for name, member in inside.items()
    }


def _from_archive(archive: Path, member: str) -> Picture:
    try:
        with zipfile.ZipFile(archive) as opened, Image.open(io.BytesIO(opened.read(member))) as image:
            return to_picture(image, f"{archive}: {member}")
    except (zipfile.BadZipFile, OSError, KeyError) as error:
        raise InputError(f"{archive}: {member} cannot be read ({error}). Fetch it again.") from None


def videos_in(folder: str | Path) -> dict[str, Path]:
    """Returns the videos of a folder by their stems, in order.

    Raises:
      InputError: no such folder, no videos, or two of one stem.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder of videos.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in VIDEOS and not path.name.startswith("."))
    if not files:
        kinds = Counter(path.suffix or path.name for path in folder.iterdir())
        held = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "nothing"
        raise InputError(f"{folder} holds no videos ({', '.join(VIDEOS)}); it holds {held}.")
    found: dict[str, Path] = {}
    for path in files:
        if path.stem in found:
            raise InputError(f"{folder} holds {found[path.stem].name} and {path.name}. Leave one of each name.")
        found[path.stem] = path
    return found


def with_truths(items: Sequence[Item], folder: str | Path) -> list[Item]:
    """Returns items with the videos of a folder as their truths, by name; those that it lacks have none.

    Raises:
      InputError: as of `videos_in`, or it has none of them.
    """
    files = videos_in(folder)
    if not any(item.name in files for item in items):
        raise InputError(f"{folder} has no video that is called as one of the set, such as {items[0].name!r}.")
    return [
        dataclasses.replace(
            item,
            truth=functools.partial(all_frames, files[item.name]),
            identity=f"{item.identity} {stamp(files[item.name])}",
        )
        if item.name in files
        else item
        for item in items
    ]


def all_frames(path: Path) -> Frames:
    """Returns every frame of a video, as it is shown.

    Raises:
      data.decoding.BadClip: says why they cannot be had.
    """
    return read_frames(path, range)


def stamp(path: Path) -> str:
    """Returns what tells whether a file is still the same, without reading it: name, size, time."""
    state = Path(path).stat()
    return f"{Path(path).name} {state.st_size} {state.st_mtime_ns}"
