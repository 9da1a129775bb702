"""Finishing a run for posting, with the functions of `i2v finish`."""

import dataclasses
import itertools
from pathlib import Path

from i2v_jax import commands
from i2v_jax.errors import InputError, check_known
from i2v_jax.finishing import finish
from i2v_jax.page.history import Entry, History

ASPECTS = {"as it is": "", "tall 9:16": "9:16", "square 1:1": "1:1", "wide 16:9": "16:9"}
FITS = {"blurred bars": "blur", "black bars": "pad", "cut": "crop"}
HEIGHTS = {"as it is": None, "480": 480, "720": 720, "1080": 1080}
FORMATS = {
    "MP4 (H.264)": (".mp4", "h264"),
    "MP4 (HEVC)": (".mp4", "hevc"),
    "MP4 (AV1)": (".mp4", "av1"),
    "WebM (VP9)": (".webm", "vp9"),
    "GIF": (".gif", "auto"),
    "WebP": (".webp", "auto"),
}
PLACES = ("top", "centre", "bottom")
TIMES = (1, 2, 4, 8)
LONGEST_TEXT = 200  # letters


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What a run is to become.

    Attributes:
      aspect, fit, height, format: of `ASPECTS`, `FITS`, `HEIGHTS`, `FORMATS`.
      times: how often it is shown, of `TIMES`.
      text, place: words on it, of `PLACES`.
      music: an uploaded file; None: no sound.
    """

    aspect: str = "as it is"
    fit: str = "blurred bars"
    height: str = "480"
    format: str = "MP4 (H.264)"
    times: int = 1
    text: str = ""
    place: str = "bottom"
    music: Path | None = None

    def check(self, folders: tuple[Path, ...]) -> None:
        """Raises InputError for what is not offered, or music from outside of `folders`."""
        offered = dict(aspect=ASPECTS, fit=FITS, height=HEIGHTS, format=FORMATS, place=PLACES)
        for name, choices in offered.items():
            check_known(f"{name}=", str(getattr(self, name)), choices)
        if self.times not in TIMES:
            raise InputError(f"times={self.times!r}: wanted one of {', '.join(map(str, TIMES))}.")
        if not isinstance(self.text, str) or len(self.text) > LONGEST_TEXT:
            raise InputError(f"The text may have {LONGEST_TEXT} letters at most.")
        if self.music is not None:
            path = Path(self.music).resolve()
            if not any(path.is_relative_to(folder) for folder in folders) or not path.is_file():
                raise InputError("The music is no longer there. Upload it again.")


def finished(entry: Entry, wishes: Wishes, history: History) -> Path:
    """Writes a run as checked wishes have it; returns the file, which lies beside the run's.

    Raises:
      InputError: as `finishing.finish.finish`: text that leaves the picture, music that is none ...
    """
    ending, codec = FORMATS[wishes.format]
    numbers = (entry.file(f"-finished-{number}{ending}") for number in itertools.count(1))
    config = commands.load_config(finish.DEFAULT)
    with config.unlocked():
        config.video, config.output = str(entry.file(".mp4")), str(next(path for path in numbers if not path.exists()))
        config.aspect, config.fit, config.height = ASPECTS[wishes.aspect], FITS[wishes.fit], HEIGHTS[wishes.height]
        config.codec, config.repeat = codec, wishes.times
        if wishes.text.strip():
            config.texts = ({"text": wishes.text.strip(), "place": wishes.place},)
        if wishes.music is not None:
            config.music.source = str(wishes.music)
    made = finish.finish(config)
    history.prune()
    return made
