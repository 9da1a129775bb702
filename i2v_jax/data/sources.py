"""Where clips come from: a folder of mp4 and txt files, a CSV beside a folder of videos, a prepared dataset, the small
world.

A source has a length and gives clips by number, in an order that depends on names alone. A copy of it in another
process opens its files anew.
"""

import csv
from pathlib import Path

from i2v_jax.data.clip import CAPTION_SUFFIX, VIDEO_SUFFIX, Clip, Source
from i2v_jax.data.small_world.source import SmallWorld
from i2v_jax.data.stored import Stored, is_stored
from i2v_jax.errors import InputError
from i2v_jax.hub import on_disk

PREPARED = "dataset_info.json"  # what every folder prepared by tensorflow-datasets holds
SPLIT = "train"
SMALL_WORLD = "small_world:"


def open_source(path: str | Path, videos: str | Path | None = None) -> Source:
    """Opens a source.

    Args:
      path: a folder of `NAME.mp4` with `NAME.txt`; a CSV file, see `Table`; a folder prepared by `data.builder` or
        stored by `training.store`; or "small_world:SPLIT", see `data.small_world`.
      videos: folder that a CSV's paths start from; by default the CSV's own.

    Raises:
      InputError: nothing there, or nothing in it that is a clip, or an address in place of a path.
    """
    if str(path).startswith(SMALL_WORLD):
        return SmallWorld(str(path).removeprefix(SMALL_WORLD))
    path = on_disk(path)
    if path.is_file():
        return Table(path, on_disk(videos) if videos else path.parent)
    if not path.is_dir():
        raise InputError(
            f"No data at {str(path)!r}: wanted a folder of mp4 and txt files, a CSV, or a prepared folder."
        )
    if is_stored(path):
        return Stored(path)
    return Records(path) if (path / PREPARED).is_file() else Folder(path)


class Folder:
    """`NAME.mp4` with its caption in `NAME.txt`, in one folder; NAME is the clip's id."""

    def __init__(self, path: Path):
        self.path = path
        self.names = sorted({file.stem for file in path.iterdir() if file.suffix in (VIDEO_SUFFIX, CAPTION_SUFFIX)})
        if not self.names:
            inside = sorted(str(file.parent) for depth in (1, 2, 3) for file in path.glob("*/" * depth + PREPARED))
            hint = f"prepared folder inside: {' or '.join(inside)}" if inside else "folder that they are in"
            raise InputError(f"{str(path)!r} holds no {VIDEO_SUFFIX} files. Give the {hint}.")

    def __reduce__(self):
        return Folder, (self.path,)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> Clip:
        name = self.names[number]
        try:
            caption = (self.path / (name + CAPTION_SUFFIX)).read_text(encoding="utf-8", errors="replace")
        except OSError:
            caption = ""
        return Clip(name, caption.strip(), self.path / (name + VIDEO_SUFFIX))


class Table:
    """A CSV in the layout of WebVid, UTF-8, comma-separated, with a header line.

    Columns: the caption is in `name` (or `caption`); the video is at `VIDEOS/page_dir/videoid.mp4`, `page_dir` being
    optional, or at `VIDEOS/path` where there is a column `path`. The id is the video's path without its ending. Other
    columns (WebVid's `contentUrl`, `duration`) are passed over.

    Raises:
      InputError: no text, columns missing, rows of another length, or two rows for one video; names the line.
    """

    def __init__(self, path: Path, videos: Path):
        self.path, self.videos, self.rows, known = path, videos, [], set()
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file, strict=True)
                header = [name.strip() for name in next(reader, [])]
                self._check(header)
                for cells in reader:
                    if not any(cells):
                        continue
                    where = f"{str(path)!r}, line {reader.line_num}"
                    if len(cells) != len(header):
                        raise InputError(f"{where}: {len(cells)} cells under {len(header)} columns. Check its quotes.")
                    row = dict(zip(header, cells))
                    in_folder = f"{row.get('page_dir', '')}/{row.get('videoid')}{VIDEO_SUFFIX}".lstrip("/")
                    file_name = row.get("path", in_folder)
                    if file_name in known:
                        raise InputError(f"{where}: {file_name!r} is there twice. Leave one row for each video.")
                    known.add(file_name)
                    self.rows.append((file_name, row.get("name", row.get("caption")).strip()))
        except UnicodeDecodeError:
            raise InputError(f"{str(path)!r} is not UTF-8 text. Save it as CSV UTF-8.") from None
        except csv.Error as error:
            raise InputError(f"{str(path)!r}, line {reader.line_num}: {error}. Check its quotes.") from None
        if not self.rows:
            raise InputError(f"{str(path)!r} has no rows under its header.")
        if not videos.is_dir():
            raise InputError(f"No folder of videos at {str(videos)!r}. Set data.videos.")

    def _check(self, header: list[str]) -> None:
        if not {"path", "videoid"} & set(header) or not {"name", "caption"} & set(header):
            raise InputError(
                f"{str(self.path)!r} has the columns {', '.join(header) or '(none)'}; wanted 'videoid' or "
                "'path', and 'name' or 'caption'. Its first line names the columns."
            )

    def __reduce__(self):
        return Table, (self.path, self.videos)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Clip:
        name, caption = self.rows[number]
        return Clip(name.removesuffix(VIDEO_SUFFIX), caption, self.videos / name)


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
