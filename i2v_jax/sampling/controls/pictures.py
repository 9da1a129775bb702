"""Control pictures of a run: from a video, a folder, one picture for all frames, a list with gaps, or poses, to the
frames that a control network sees."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from i2v_jax.data.clip import VIDEO_SUFFIXES
from i2v_jax.data.decoding import CAUSES, BadClip, read_frames
from i2v_jax.errors import InputError, nearest
from i2v_jax.hub import check_no_address, text_lines
from i2v_jax.media import Picture, fit_picture
from i2v_jax.sampling.controls import keypoints, preprocess
from i2v_jax.sampling.controls.masks import check_alpha, check_no_masks
from i2v_jax.sampling.controls.numbered import in_order
from i2v_jax.sampling.controls.poses import draw_poses
from i2v_jax.sampling.inputs import AnyPicture, as_picture

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".ppm", ".pgm", ".pbm")
LIST_SUFFIX = ".txt"
Source = AnyPicture | Sequence[AnyPicture | None]
Choose = Callable[[int], Sequence[int]]
Take = Literal["first", "even"] | None


class Series(NamedTuple):
    """Pictures in their order, not read yet.

    Attributes:
      name: what messages call it.
      kind: "picture", one that stands for all frames; "video", of which frames may be left over; "pictures".
      load: from what chooses numbers by the count of pictures to these pictures; None is a gap.
      poses: whether they are poses, to be drawn.
    """

    name: str
    kind: Literal["picture", "video", "pictures"]
    load: Callable[[Choose], list[Any]]
    poses: bool = False


def read(
    source: Source,
    frames: int,
    height: int,
    width: int,
    fit: Literal["crop", "pad", "stretch"] = "crop",
    process: str = "none",
    at: Sequence[int] = (),
    take: Take = None,
) -> tuple[UInt8[np.ndarray, "frames height width 3"], Bool[np.ndarray, "frames"]]:
    """Reads control pictures, brings them to a run's size, and preprocesses them there.

    Args:
      source: a video; a folder of pictures, sorted by name, numbers in it by value; a picture, for all frames; a list
        of pictures, or a text file of one path a line, where an empty entry is a frame without a picture. In place of
        pictures: files of keypoints, see `keypoints`, of one frame each; or one of all frames.
      frames, height, width: the run's.
      fit: what is done with another aspect, as `media.fit_picture` has it.
      process: a preprocessor, see `preprocess`; "none" takes ready-made control pictures as they are. Files of
        keypoints are drawn, see `poses`, by "none", or by "pose" with settings.
      at: frames, counted from 0, on which the pictures stand, in their order; as many as pictures, or some of the
        frames of a source that has a picture for each. Empty: all.
      take: of more pictures than frames, the "first", or "even"ly spread ones; None: the first of a video, and of
        other sources neither.

    Returns:
      The pictures, RGB, zeros on frames without one; and which frames have one.

    Raises:
      InputError: what is given is not there, cannot be read, or does not fit the frames.
    """
    name, settings = preprocess.split(process)
    change = preprocess.find("none" if name == preprocess.POSE else process)
    check_frames(frames, at)
    if height < 1 or width < 1:
        raise InputError(f"Control pictures of {height}x{width} pixels: wanted 1 or more of each.")
    series = open_series(source)
    _check_kind(series, name)
    stands: list[int] = []

    def choose(count: int) -> Sequence[int]:
        chosen, where = place(series, count, frames, at, take)
        stands.extend(where)
        return chosen

    given = series.load(choose)
    present = [number for number, picture in enumerate(given) if picture is not None]
    if not present:
        raise InputError(f"{series.name} has no picture on any frame, only gaps.")
    chosen = [given[number] for number in present]
    if series.poses:
        changed = _drawn(series.name, chosen, height, width, fit, settings)
    else:
        if name not in preprocess.TAKE_MASKS:
            check_no_masks(series.name, chosen, process)
        changed = change(np.stack([fit_picture(picture, height, width, fit) for picture in chosen]))
    on = stands if series.kind == "picture" else [stands[number] for number in present]
    pictures, known = np.zeros((frames, height, width, 3), np.uint8), np.zeros(frames, bool)
    pictures[on], known[on] = changed, True
    return pictures, known


def _drawn(
    name: str, poses: list[keypoints.Pose], height: int, width: int, fit: str, settings: dict[str, float]
) -> UInt8[np.ndarray, "n height width 3"]:
    try:
        return draw_poses(poses, height, width, fit, **settings)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _check_kind(series: Series, process: str) -> None:
    if process == preprocess.POSE and not series.poses:
        raise InputError(
            f"{series.name} has pictures, and process='pose' draws keypoints: no pose is estimated here. Give a file "
            "of keypoints, or ready-made pictures of poses with process='none'."
        )
    if series.poses and process not in ("none", preprocess.POSE):
        raise InputError(f"{series.name} has keypoints, which process={process!r} cannot change. Wanted: 'pose'.")


def check_frames(frames: int, at: Sequence[int]) -> None:
    """Raises InputError unless `at` names frames of a run, each once."""
    if frames < 1:
        raise InputError(f"frames={frames}: wanted 1 or more.")
    wrong = [frame for frame in at if isinstance(frame, bool) or not isinstance(frame, int | np.integer)]
    wrong = wrong or [frame for frame in at if not 0 <= frame < frames]
    if wrong:
        raise InputError(
            f"at={tuple(at)}: no frame {wrong[0]!r}; frames of {frames} are counted from 0 to {frames - 1}."
        )
    if len(set(at)) < len(at):
        raise InputError(f"at={tuple(at)}: a frame is there twice. Give each once.")


def place(
    series: Series, count: int, frames: int, at: Sequence[int], take: Take
) -> tuple[Sequence[int], Sequence[int]]:
    """Returns the numbers of the pictures that are taken, of `count`, and the frames on which they stand.

    Raises:
      InputError: their count does not fit the frames.
    """
    if take not in (None, "first", "even"):
        raise InputError(f"take={take!r}: wanted 'first' or 'even'.{nearest(str(take), ('first', 'even'))}")
    if series.kind == "picture":
        return [0], list(at) or range(frames)
    if at and count == len(at):
        return range(count), list(at)
    way = take or ("first" if series.kind == "video" else None)
    if count < frames or count > frames and way is None:
        raise InputError(_other_count(series, count, frames, at))
    spread = np.linspace(0, count - 1, frames).round().astype(int).tolist() if way == "even" else range(frames)
    where = sorted(at) if at else range(frames)
    return [spread[frame] for frame in where], where


def _other_count(series: Series, count: int, frames: int, at: Sequence[int]) -> str:
    what = "frames" if series.kind == "video" else "pictures"
    given = f"{series.name} has {count} {what}, and the run {frames} frames"
    if at:
        return f"{given}, of which at={tuple(at)} names {len(at)}. Give as many {what} as one of these."
    if count > frames:
        return f"{given}. Leave out {count - frames}, say which to take ('first' or 'even'), or make a longer video."
    mends = f"Give {frames - count} more, or make a video of {count} frames"
    if count == 1:
        return f"{given}. {mends}; for one picture on all frames, give the picture's file."
    return f"{given}. {mends}; for pictures on some frames alone, say on which, or give a list with empty lines."


def open_series(source: Source) -> Series:
    """Finds what a source of pictures is; its pictures are not read yet.

    Raises:
      InputError: there is nothing, or nothing that is known.
    """
    if isinstance(source, str | os.PathLike):
        return _open_path(source)
    if isinstance(source, np.ndarray) and source.ndim == 4:
        return _of_list("The array", list(source))
    if isinstance(source, Sequence):
        return _of_list("The list", list(source))
    return Series("The picture", "picture", lambda choose: [_picture(source) for _ in choose(1)[:1]])


def _open_path(source: str | os.PathLike) -> Series:
    check_no_address(source)
    if not str(source).strip():
        raise InputError("No control pictures: wanted a video, a folder, a picture, or a list of pictures.")
    path, name = Path(source).expanduser(), repr(str(source))
    if path.is_dir():
        return _of_list(name, in_order(path, PICTURE_SUFFIXES, keypoints.SUFFIXES))
    if not path.exists():
        beside = os.listdir(path.parent) if path.parent.is_dir() else ()
        raise InputError(f"No control pictures at {name}. Check the path.{nearest(path.name, beside)}")
    suffix = path.suffix.lower()
    if suffix == LIST_SUFFIX:
        return _of_list(name, _lines(path))
    if suffix in VIDEO_SUFFIXES:
        return Series(name, "video", lambda choose: _read_video(path, name, choose))
    if suffix in keypoints.SUFFIXES:
        poses = keypoints.read_poses(path)
        kind = "picture" if len(poses) == 1 else "pictures"
        return Series(name, kind, lambda choose: [poses[number] for number in choose(len(poses))], poses=True)
    return Series(name, "picture", lambda choose: [_picture(path) for _ in choose(1)[:1]])


def _lines(path: Path) -> list[Path | None]:
    lines = [line.strip() for line in text_lines(path)]
    return [path.parent / Path(line).expanduser() if line else None for line in lines]


def _of_list(name: str, entries: list[AnyPicture | None]) -> Series:
    if not entries:
        raise InputError(f"{name} has no entries; wanted one for each frame, empty where a frame has no picture.")
    gaps = [entry is None or isinstance(entry, str) and not entry.strip() for entry in entries]
    are_poses = [_is_pose(entry) for entry, gap in zip(entries, gaps) if not gap]
    if any(are_poses) and not all(are_poses):
        raise InputError(f"{name} has keypoints and pictures. Give them apart, as two controls.")
    read_one = _one_pose if any(are_poses) else _picture

    def load(choose):
        return [None if gaps[number] else read_one(entries[number]) for number in choose(len(entries))]

    return Series(name, "pictures", load, poses=any(are_poses))


def _is_pose(entry: AnyPicture) -> bool:
    return isinstance(entry, str | os.PathLike) and Path(entry).suffix.lower() in keypoints.SUFFIXES


def _one_pose(entry: str | os.PathLike) -> keypoints.Pose:
    path = Path(entry).expanduser()
    if not path.is_file():
        raise InputError(f"No keypoints at {str(path)!r}. Check the path.")
    poses = keypoints.read_poses(path)
    if len(poses) > 1:
        raise InputError(f"{str(path)!r} has keypoints of {len(poses)} frames, one is wanted of a file among others.")
    return poses[0]


def _picture(entry: AnyPicture) -> Picture:
    check_alpha(entry)
    return as_picture(entry)


def _read_video(path: Path, name: str, choose: Choose) -> list[Picture]:
    try:
        return list(read_frames(path, choose))
    except BadClip as bad:
        detail = f" ({bad.detail})" if bad.detail else ""
        raise InputError(
            f"{name} cannot be read as a video: {CAUSES.get(bad.cause, bad.cause)}{detail}. Save it as an H.264 mp4, "
            "or give a folder of its pictures."
        ) from None
