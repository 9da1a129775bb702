"""Which videos are sampled together, where their files go, and which of them are there already."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from i2v_jax import media
from i2v_jax.sampling import going_on, record, writing
from i2v_jax.sampling.jobs import Job
from i2v_jax.sampling.settings import Settings

SUFFIXES = (".mp4", ".gif", ".png", ".json")


class Video(NamedTuple):
    """One video to make.

    Attributes:
      number: of all of the run, from 1.
      job: what it is of.
      config: its own.
      settings: of the config.
      stem: path of its files without their suffixes.
      is_done: whether they are there already.
    """

    number: int
    job: Job
    config: ConfigDict
    settings: Settings
    stem: Path
    is_done: bool = False


class Batch(NamedTuple):
    """Videos that are sampled together; `size` is that of the programs, which fewer videos are filled up to."""

    videos: list[Video]
    settings: Settings
    size: int


def stems(
    folder: str | Path,
    names: Sequence[str],
    configs: Sequence[ConfigDict],
    goes_on: bool,
    weights: Callable[[], Mapping[str, str]],
) -> list[tuple[Path, bool]]:
    """Returns where each video's files go, and whether they are there already.

    A name that is taken by files of another run is numbered: NAME-2, NAME-3 ...

    Args:
      folder: of the output.
      names: of the videos, different ones.
      configs: of the videos.
      goes_on: whether a video that was made with the same settings is done; otherwise it is made again.
      weights: see `record.is_done`.
    """
    folder, found, taken = Path(folder).expanduser(), [], set()
    for name, config in zip(names, configs):
        number, stem, done = 1, folder / name, False
        others = {*taken, *(folder / other for other in names if other != name)}
        while not done and (stem in others or any(Path(f"{stem}{suffix}").exists() for suffix in SUFFIXES)):
            done = goes_on and stem not in others and record.is_done(stem, SUFFIXES, config, weights)
            if not done:
                number += 1
                stem = folder / f"{name}-{number}"
        found.append((stem, done))
        taken.add(stem)
    return found


def batches(videos: Sequence[Video], size: int, alike: Callable[[Video], Hashable] = lambda video: None) -> list[Batch]:
    """Returns the batches of those that are not done: videos of the same settings, in their order.

    Programs are as large as if none were done, so that going on compiles nothing else.

    Args:
      videos: all of the run.
      size: the most at a time.
      alike: gives what else videos of one batch have in common, such as the length of their prompts.
    """
    groups: dict[tuple[Settings, Hashable], list[Video]] = {}
    for video in videos:
        groups.setdefault((video.settings, alike(video)), []).append(video)
    found = []
    for (settings, _), group in groups.items():
        left = [video for video in group if not video.is_done]
        parts = [left[first : first + size] for first in range(0, len(left), size)]
        found += [Batch(part, settings, min(size, len(group))) for part in parts]
    return found


def write(video: Video, frames: Iterable[media.Picture], weights: Mapping[str, str]) -> Path:
    """Writes a video's four files, or none; returns their path without suffixes.

    Args:
      video: whose frames come.
      frames: one by one; those of a long video are written as they come.
      weights: hashes of the model's files.
    """
    config, picture = video.config, going_on.load_start(video.job.picture)
    run = record.about(config, weights)
    count = video.settings.frames
    if config.get("join"):
        frames, count = going_on.joined(video.job.picture, frames, video.settings.passes[-1])
    return writing.write(video.stem, SUFFIXES, picture, frames, count, config.fps, run)
