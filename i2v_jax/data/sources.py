"""Where clips come from: a folder of videos and txt files, a CSV beside a folder of videos, a prepared dataset, the
small world.

A source has a length and gives clips by number, in an order that depends on names alone. A copy of it in another
process opens its files anew.
"""

import csv
import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from i2v_jax.data.camera import CameraClips
from i2v_jax.data.clip import CAPTION_SUFFIX, PICTURE_SUFFIXES, VIDEO_SUFFIXES, Clip, Source, check_caption
from i2v_jax.data.decoding import CAUSES, BadClip
from i2v_jax.data.small_world.source import SmallWorld
from i2v_jax.data.stored import Stored, is_stored
from i2v_jax.errors import InputError
from i2v_jax.hub import on_disk, read_text, text_lines

PREPARED = "dataset_info.json"  # what every folder prepared by tensorflow-datasets holds
SPLIT = "train"
SMALL_WORLD, CAMERA = "small_world:", "camera:"
LOOKED_AT = 1000  # clips whose files are looked for before anything costly begins


def open_source(path: str | Path, videos: str | Path | None = None) -> Source:
    """Opens a source.

    Args:
      path: a folder of `NAME.mp4`, or another video, or of pictures, with `NAME.txt`; a CSV file, see `Table`; a folder
        prepared by `data.builder` or stored by `training.store`; or "small_world:SPLIT", see `data.small_world`; or
        "camera:FOLDER", of pictures, see `data.camera`.
      videos: folder that a CSV's paths start from; by default the CSV's own.

    Raises:
      InputError: nothing there, or nothing in it that is a clip, or an address in place of a path.
    """
    if str(path).startswith(SMALL_WORLD):
        return SmallWorld(str(path).removeprefix(SMALL_WORLD))
    if str(path).startswith(CAMERA):
        name = str(path).removeprefix(CAMERA)
        return CameraClips(open_source(name), name)
    path = on_disk(path)
    if path.is_file():
        return Table(path, on_disk(videos) if videos else path.parent)
    if not path.is_dir():
        raise InputError(
            f"No data at {str(path)!r}: wanted a folder of videos and txt files, a CSV, or a prepared folder."
        )
    if is_stored(path):
        return Stored(path)
    return Records(path) if (path / PREPARED).is_file() else Folder(path)


def check_files(source: Source, max_bad: float = 1.0, no_captions: bool = False) -> None:
    """Looks whether a source's files are there, where they are files: those of at most 1,000 clips, spread evenly.

    Warns of videos and captions that are missing, of the latter unless clips are taken without.

    Raises:
      InputError: those of all clips are, or, where all were looked at, of more than the share `max_bad`.
    """
    if isinstance(source, CameraClips):
        source = source.pictures
    if not isinstance(source, Folder | Table):
        return
    bad, step = [], max(1, -(-len(source) // LOOKED_AT))
    looked_at = range(0, len(source), step)
    for number in looked_at:
        clip = source[number]
        try:
            if not os.path.isfile(clip.video):
                raise BadClip("missing file", f"no file at {str(clip.video)!r}")
            if not no_captions:
                check_caption(clip)
        except BadClip as found:
            bad.append((clip, found))
    if not bad:
        return
    causes = Counter(found.cause for _, found in bad)
    lines = [f"  {count} {cause}: {CAUSES[cause]}" for cause, count in causes.most_common()]
    found = f"{len(bad)} of {len(looked_at)} clips looked at cannot be used:\n" + "\n".join(lines)
    clip, first = bad[0]
    beside = _beside(clip.video) if first.cause == "missing file" else ""
    found += f"\nThe first is {clip.id!r} ({first.detail or first.cause}{beside})."
    if len(bad) == len(looked_at) or (step == 1 and len(bad) > max_bad * len(source)):
        share = "" if len(bad) == len(looked_at) else f", or raise data.max_bad={max_bad}"
        raise InputError(f"{found} Mend that, or give another data.source or data.videos{share}.")
    warnings.warn(f"{found} Such clips are left out.", stacklevel=2)


def _beside(file: Path) -> str:
    """What is in a file's folder under its name with another ending, for a message."""
    if not os.path.isdir(file.parent):
        return f"; there is no folder {str(file.parent)!r}"
    others = sorted(name for name in os.listdir(file.parent) if Path(name).stem == file.stem)
    pictures = any(name.lower().endswith(PICTURE_SUFFIXES) for name in others)
    why = "; pictures are clips only in a folder without videos" if pictures else ""
    return f"; there is {', '.join(others)}{why}" if others else ""


class Folder:
    """`NAME.mp4`, or a video with another of `VIDEO_SUFFIXES`, with its caption in `NAME.txt`, in one folder.

    In a folder without videos, pictures (`PICTURE_SUFFIXES`) are clips of one frame. NAME is the clip's id. Endings are
    taken in any case. What macOS keeps beside files (`._NAME.mp4`) is passed over.

    Raises:
      InputError: there are neither videos nor pictures; says what there is.
    """

    def __init__(self, path: Path):
        self.path = path
        files = sorted(entry.name for entry in os.scandir(path) if not entry.name.startswith("._"))
        self.videos, pictures = (_by_stem(files, suffixes) for suffixes in (VIDEO_SUFFIXES, PICTURE_SUFFIXES))
        self.are_pictures = bool(pictures) and not self.videos
        self.videos = self.videos or pictures
        self.captions = _by_stem(files, (CAPTION_SUFFIX,))
        self.names = sorted(self.videos.keys() | self.captions.keys())
        if self.videos:
            return
        inside = sorted(str(file.parent) for depth in (1, 2, 3) for file in path.glob("*/" * depth + PREPARED))
        hint = f"prepared folder inside: {' or '.join(inside)}" if inside else "folder that they are in"
        seen = Counter("folders" if (path / name).is_dir() else Path(name).suffix or "others" for name in files)
        there = ", ".join(f"{count} {kind}" for kind, count in seen.most_common()) or "nothing"
        raise InputError(
            f"{str(path)!r} holds no videos ({', '.join(VIDEO_SUFFIXES)}) and no pictures, but {there}. "
            f"Give the {hint}."
        )

    def __reduce__(self):
        return Folder, (self.path,)

    def __len__(self) -> int:
        return len(self.names)

    def id_of(self, number: int) -> str:
        return self.names[number]

    def __getitem__(self, number: int) -> Clip:
        name = self.names[number]
        caption, unreadable = "", ""
        if name in self.captions:
            try:
                caption = read_text(self.path / self.captions[name])
            except InputError as error:
                unreadable = str(error)
            except OSError:
                pass
        return Clip(name, caption.strip(), self.path / self.videos.get(name, name + VIDEO_SUFFIXES[0]), unreadable)


def _by_stem(files: Sequence[str], suffixes: Sequence[str]) -> dict[str, str]:
    """Name without its ending -> name of a file with the first of some endings; one in lower case comes first."""

    def rank(file: str) -> tuple[int, bool]:
        suffix = Path(file).suffix
        return suffixes.index(suffix.lower()), suffix != suffix.lower()

    files = [file for file in files if Path(file).suffix.lower() in suffixes]
    return {Path(file).stem: file for file in sorted(files, key=rank, reverse=True)}


class Table:
    """A CSV in the layout of WebVid, UTF-8 or UTF-16, comma-separated, with a header line.

    Columns: the caption is in `name` (or `caption`); the video is at `VIDEOS/page_dir/videoid.mp4`, `page_dir` being
    optional, or under that name with another of `VIDEO_SUFFIXES`; or at `VIDEOS/path` where there is a column `path`.
    Endings are taken in any case. The id is the video's path without `.mp4`. Other columns (WebVid's `contentUrl`,
    `duration`) are passed over.

    Raises:
      InputError: no text, columns missing, rows of another length, or two rows for one video; names the line.
    """

    def __init__(self, path: Path, videos: Path):
        self.path, self.videos, self.rows, known = path, videos, [], set()
        reader = csv.reader(text_lines(path, newline=""), strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            self._check(header)
            for cells in reader:
                if not any(cells):
                    continue
                where = f"{str(path)!r}, line {reader.line_num}"
                if len(cells) != len(header):
                    raise InputError(f"{where}: {len(cells)} cells under {len(header)} columns. Check its quotes.")
                row = dict(zip(header, cells))
                in_folder = f"{row.get('page_dir', '')}/{row.get('videoid')}{VIDEO_SUFFIXES[0]}".lstrip("/")
                file_name = row.get("path", in_folder)
                if file_name in known:
                    raise InputError(f"{where}: {file_name!r} is there twice. Leave one row for each video.")
                known.add(file_name)
                self.rows.append((file_name, row.get("name", row.get("caption")).strip()))
        except csv.Error as error:
            raise InputError(f"{str(path)!r}, line {reader.line_num}: {error}. Check its quotes.") from None
        self.named = "path" in header  # with their endings
        if not self.rows:
            raise InputError(f"{str(path)!r} has no rows under its header.")
        if not videos.is_dir():
            raise InputError(f"No folder of videos at {str(videos)!r}. Set data.videos.")

    def _check(self, header: list[str]) -> None:
        if not {"path", "videoid"} & set(header) or not {"name", "caption"} & set(header):
            commas = "Separate them by commas." if re.search(r"[;\t]", "".join(header)) else ""
            raise InputError(
                f"{str(self.path)!r} has the columns {', '.join(header) or '(none)'}; wanted 'videoid' or "
                f"'path', and 'name' or 'caption'. Its first line names the columns. {commas}".rstrip()
            )

    def __reduce__(self):
        return Table, (self.path, self.videos)

    def __len__(self) -> int:
        return len(self.rows)

    def id_of(self, number: int) -> str:
        return self.rows[number][0].removesuffix(VIDEO_SUFFIXES[0])

    def __getitem__(self, number: int) -> Clip:
        name, caption = self.rows[number]
        return Clip(self.id_of(number), caption, self._file(self.videos / name))

    def _file(self, file: Path) -> Path:
        """A file, or the one in its place whose ending is written in another case, or, of a `videoid`, another one."""
        if file.is_file() or not file.parent.is_dir():
            return file
        suffixes = (file.suffix.lower(),) if self.named else VIDEO_SUFFIXES
        others = [file.with_suffix(write(suffix)) for suffix in suffixes for write in (str.lower, str.upper, str.title)]
        return next((other for other in others if other.is_file()), file)


class Records:
    """A folder prepared by tensorflow-datasets in ArrayRecord files, read at random."""

    def __init__(self, path: Path):
        import tensorflow_datasets as tfds  # a second of import, that only this source needs

        self.path = path
        try:
            self.builder = tfds.builder_from_directory(path)
            self.records = self.builder.as_data_source(SPLIT)
        except Exception as error:  # whatever the library raises on a folder that is not whole
            raise InputError(
                f"{str(path)!r} cannot be read as a prepared dataset: {error}. Prepare it again."
            ) from error

    def __reduce__(self):
        return Records, (self.path,)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> Clip:
        record = self.records[int(number)]
        return Clip(record["id"].decode(), record["caption"].decode(), record["video"])
