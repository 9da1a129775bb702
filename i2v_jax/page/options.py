"""What a command line says of the page, apart from what it says of sampling."""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from i2v_jax.errors import InputError
from i2v_jax.hub import on_disk, read_text

FOLDERS = ("styles", "bases", "motions")
LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclasses.dataclass(frozen=True)
class Options:
    """Keys of the page, as configs/page/default.py explains them.

    Attributes:
      host, port: where it listens.
      share: whether there is a public address.
      password: that people are asked for; "": none.
      styles, bases, motions: folders to choose from; "": none.
      offered_sizes, offered_lengths, offered_steps: choices; (): derived from the model's own.
      lively_p: p of the Frame Similarity Prior where motion is to be lively.
      most_megabytes: of an uploaded file.
      most_megapixels: of a picture.
      most_waiting: runs in the queue.
      most_runs: in the history.
      most_models: in memory.
      most_programs: settings whose programs stay compiled.
      preview_steps: from one preview to the next; None: a fifth of the run.
    """

    host: str
    port: int
    share: bool
    password: str
    styles: str
    bases: str
    motions: str
    offered_sizes: tuple[tuple[int, int], ...]
    offered_lengths: tuple[int, ...]
    offered_steps: tuple[int, ...]
    lively_p: float
    most_megabytes: int
    most_megapixels: float
    most_waiting: int
    most_runs: int
    most_models: int
    most_programs: int
    preview_steps: int | None

    def __post_init__(self):
        if not 1024 <= self.port <= 65535:
            raise InputError(f"port={self.port}: wanted 1024 to 65535.")
        for name in ("most_megabytes", "most_megapixels", "most_waiting", "most_runs", "most_models", "most_programs"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)}: wanted 1 or more.")
        if self.preview_steps is not None and self.preview_steps < 1:
            raise InputError(f"preview_steps={self.preview_steps}: wanted 1 or more, or unset.")
        for name in FOLDERS:
            if (folder := getattr(self, name)) and not on_disk(folder).is_dir():
                raise InputError(f"{name}={folder!r} is no folder. Give one that is there, or '' for none.")
        for size in self.offered_sizes:
            if not (isinstance(size, (tuple, list)) and len(size) == 2):
                raise InputError(f"offered_sizes has {size!r}: wanted (height, width) pairs, such as ((512, 512),).")
        if self.share and not self.password:
            raise InputError(
                "share=True lets everyone in who has the address: give --config.password=WORD, or @FILE for the first "
                "line of a file."
            )

    @property
    def is_local(self) -> bool:
        """Whether this machine alone reaches the page."""
        return self.host in LOCAL and not self.share


def split(config: ConfigDict) -> tuple[Options, ConfigDict]:
    """Returns the page's options, and the config of sampling without them.

    Raises:
      InputError: a value out of range, or a password's file that cannot be read.
    """
    names = [field.name for field in dataclasses.fields(Options)]
    found = {name: config[name] for name in names}
    found["password"] = _password(found["password"])
    sampling = config.copy_and_resolve_references()
    with sampling.unlocked():
        for name in names:
            del sampling[name]
    return Options(**found), sampling.lock()


def _password(given: str) -> str:
    if not given.startswith("@"):
        return given
    path = Path(given[1:]).expanduser()
    if not path.is_file():
        raise InputError(f"password={given!r}: no file at {str(path)!r}. Check the path.")
    word = read_text(path).partition("\n")[0].strip()
    if not word:
        raise InputError(f"password={given!r}: the file's first line is empty.")
    return word
