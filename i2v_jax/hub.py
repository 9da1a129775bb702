"""Where files are: a path on this machine, or a place on the Hugging Face hub, `owner/name` or `owner/name/inside`.

What is on this machine comes first; the hub is asked only for what is not here. And the text that people's files hold.
"""

import codecs
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from i2v_jax.errors import InputError, nearest


class NotHere(InputError):
    """What is neither on this machine nor to be had from the hub.

    Attributes:
        source: what was asked for.
        reason: why the hub gives none; "" where the source is no hub id.
    """

    def __init__(self, message: str, source: str, reason: str = ""):
        super().__init__(message)
        self.source, self.reason = source, reason


HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(/(?P<inside>[\w./-]+))?")
ADDRESS = re.compile(r"([A-Za-z][\w+.-]+:)/+")  # of one slash where a Path was made of it
BUCKETS = ("gs:", "s3:", "s3a:", "az:", "abfs:", "hdfs:")
BYTE_ORDER_MARK = "\ufeff"


def on_disk(path: str | Path) -> Path:
    """Returns the absolute path of a file or folder on this machine, be it there or not; `~` means the home folder.

    Raises:
        InputError: an address such as gs://bucket/folder is given, where nothing is read or written.
    """
    check_no_address(path)
    return Path(path).expanduser().absolute()


def check_no_address(path: str | Path) -> None:
    """Raises InputError for an address, which is no path on this machine."""
    if not (match := ADDRESS.match(str(path))):
        return
    address = f"{match[1]}//{str(path)[match.end() :]}"
    mend = "Mount the bucket as a folder (gcsfuse BUCKET FOLDER), and give the path there."
    if match[1].lower() not in BUCKETS:
        mend = "Fetch what is there (curl --location --remote-name ADDRESS), and give the file's path."
    raise InputError(f"{address!r} is an address, and a path on this machine is wanted. {mend}")


def text_lines(path: str | Path, newline: str | None = None) -> Iterator[str]:
    """Yields the lines of a text file that a person wrote, with their ends.

    It is UTF-8, or UTF-16 where a byte order mark says so; such marks are no part of the text.

    Args:
        newline: as `open` takes it; "" for the `csv` module.

    Raises:
        InputError: other bytes, or characters of number 0, as UTF-16 has without its mark.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(2)
    encoding = "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8"
    try:
        with open(path, encoding=encoding, newline=newline) as file:
            for number, line in enumerate(file, 1):
                if "\0" in line:
                    raise UnicodeError(f"a character of number 0 in line {number}")
                yield line.replace(BYTE_ORDER_MARK, "")
    except UnicodeError as error:
        what = f"byte 0x{error.object[error.start]:02x}" if isinstance(error, UnicodeDecodeError) else str(error)
        raise InputError(
            f"{str(path)!r} is not UTF-8 text, nor UTF-16 with a byte order mark ({what}). Save it as UTF-8."
        ) from None


def read_text(path: str | Path) -> str:
    """Returns the text of a file that a person wrote; see `text_lines`."""
    return "".join(text_lines(path))


def local(source: str | Path) -> Path | None:
    """Returns the file or folder of a source, `~` meaning the home folder; None when there is none here."""
    path = Path(os.path.expanduser(source))
    return path if path.exists() else None


def fetch(source: str | Path, patterns: Iterable[str], by_hand: Iterable[str] = ()) -> Path:
    """Brings files from the hub to this machine; what an earlier run brought is used without a network.

    Args:
        source: `owner/name`, or `owner/name/inside` for a file or folder of the model.
        patterns: which files, relative to the source; "." is the source itself.
        by_hand: those to advise where the hub cannot be reached, relative to the model; by default the patterns.

    Returns:
        Where the source is now; a pattern that the hub has no file for leaves none.

    Raises:
        NotHere: the source has not the form of a hub id, or the hub gives nothing under it; names what is like it
            on this machine.
    """
    path = Path(os.path.expanduser(source))
    hint = nearest(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""
    match = HUB_ID.fullmatch(str(source))
    if not match:
        raise NotHere(
            f"{source} does not exist. Wanted: a file or folder that is there, or a hub id 'owner/name'.{hint}",
            str(source),
        )
    from huggingface_hub import snapshot_download

    repo, inside = match["repo"], match["inside"] or ""
    wanted = [posixpath.normpath(posixpath.join(inside, pattern)) for pattern in patterns]
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted), inside)
    except Exception as error:  # the hub's client raises network, cache and name errors of several families
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotHere(
            f"{source} does not exist on this machine, and cannot be fetched from the hub: {reason} Where there is a "
            f"network, `{download_command(repo, by_hand or wanted)}` puts it on disk.{hint}",
            str(source),
            reason,
        ) from error


def download_command(repo: str, files: Iterable[str]) -> str:
    """Returns the command that puts files of a model where this program looks for them, and no others.

    Args:
        repo: `owner/name`.
        files: names in it, or patterns; what the model lacks of several is passed over.
    """
    quoted = (f'"{name}"' if "*" in name else name for name in dict.fromkeys(files))
    return " ".join(["hf download", repo, *quoted, "--local-dir", repo])


def is_cached(source: str | Path, names: Iterable[str]) -> bool:
    """Whether an earlier run brought one of these files of a hub id, relative to it; "." is the source itself."""
    from huggingface_hub import try_to_load_from_cache

    match = HUB_ID.fullmatch(str(source))
    inside = (match["inside"] or "") if match else ""
    paths = [posixpath.normpath(posixpath.join(inside, name)) for name in names]
    return bool(match) and any(isinstance(try_to_load_from_cache(match["repo"], path), str) for path in paths)
