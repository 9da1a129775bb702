"""Where files are: a path on this machine, or a place on the Hugging Face hub, `owner/name` or `owner/name/inside`.

What is on this machine comes first; the hub is asked only for what is not here.
"""

import os
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path

from i2v_jax.errors import InputError, nearest

HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(/(?P<inside>[\w./-]+))?")


ADDRESS = re.compile(r"[A-Za-z][\w+.-]+:/")  # of one slash where a Path was made of it


def on_disk(path: str | Path) -> Path:
    """Returns the absolute path of a file or folder on this machine, be it there or not; `~` means the home folder.

    Raises:
        InputError: an address such as gs://bucket/folder is given, where nothing is read or written.
    """
    if ADDRESS.match(str(path)):
        raise InputError(
            f"{str(path)!r} is an address, and a path on this machine is wanted. Mount the bucket as a folder (gcsfuse "
            "BUCKET FOLDER), and give the path there."
        )
    return Path(path).expanduser().absolute()


def local(source: str | Path) -> Path | None:
    """Returns the file or folder of a source, `~` meaning the home folder; None when there is none here."""
    path = Path(os.path.expanduser(source))
    return path if path.exists() else None


def fetch(source: str | Path, patterns: Iterable[str]) -> Path:
    """Brings files from the hub to this machine; what an earlier run brought is used without a network.

    Args:
        source: `owner/name`, or `owner/name/inside` for a file or folder of the model.
        patterns: which files, relative to the source; "." is the source itself.

    Returns:
        Where the source is now; a pattern that the hub has no file for leaves none.

    Raises:
        InputError: the source has not the form of a hub id, or the hub gives nothing under it; names what is like it
            on this machine.
    """
    path = Path(os.path.expanduser(source))
    hint = nearest(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""
    match = HUB_ID.fullmatch(str(source))
    if not match:
        raise InputError(
            f"{source} does not exist. Wanted: a file or folder that is there, or a hub id 'owner/name'.{hint}"
        )
    from huggingface_hub import snapshot_download

    repo, inside = match["repo"], match["inside"] or ""
    wanted = [posixpath.normpath(posixpath.join(inside, pattern)) for pattern in patterns]
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted), inside)
    except Exception as error:  # the hub's client raises network, cache and name errors of several families
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{source} does not exist on this machine, and cannot be fetched from the hub: {reason} Where there is a "
            f"network, `hf download {repo} --local-dir {repo}` puts it on disk.{hint}"
        ) from error
