"""Pictures that people send: checked as `sample.py` checks them, cropped, kept beside the run."""

import functools
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from i2v_jax import media
from i2v_jax.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Pillow's names of what is read. Others that it knows run programs (EPS), or are nothing that people photograph."""
MOST_ZOOM = 8.0
SHOWN = 320  # pixels of the longer side of what is shown of a crop


class Crop(NamedTuple):
    """The part of a picture that is animated.

    Attributes:
      zoom: 1: the largest part of the video's aspect; 2: half its sides ...; up to `MOST_ZOOM`.
      x, y: where it lies, 0: at the left or top, 1: at the right or bottom.
    """

    zoom: float = 1.0
    x: float = 0.5
    y: float = 0.5

    def check(self) -> None:
        """Raises InputError for numbers out of range."""
        for name, low, high in (("zoom", 1, MOST_ZOOM), ("x", 0, 1), ("y", 0, 1)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not low <= value <= high:
                raise InputError(f"{name}={value!r}: wanted {low} to {high:g}.")


def read(path: Path | None, folders: tuple[Path, ...], most_megapixels: float) -> media.Picture:
    """Reads an uploaded picture.

    Args:
      path: of the file; None where there is none.
      folders: that it may lie in.
      most_megapixels: that are decoded at all.

    Raises:
      InputError: none, one from elsewhere, too large, of another kind, broken; says which.
    """
    if path is None:
        raise InputError("Give a picture first: drop one on the page, or choose a file.")
    path = Path(path).resolve()
    if not any(path.is_relative_to(folder) for folder in folders) or not path.is_file():
        raise InputError("This picture is no longer there. Upload it again.")
    return _read(path, path.stat().st_mtime_ns, most_megapixels)


@functools.lru_cache(maxsize=4)  # a picture is read anew with each move of a crop's dials
def _read(path: Path, _changed: int, most_megapixels: float) -> media.Picture:
    try:
        Image.init()
        with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            width, height = image.size
    except Exception as error:  # what of its head cannot be read
        if isinstance(error, Image.DecompressionBombError):
            raise InputError(_too_large(most_megapixels)) from None
        raise InputError(
            f"{path.name!r} is not a picture that is known here ({', '.join(FORMATS)}), or broken. Save it as a JPEG "
            "or PNG first."
        ) from None
    if width * height > most_megapixels * 1e6:
        raise InputError(f"It has {width}x{height} pixels. {_too_large(most_megapixels)}")
    return media.load_picture(path)


def _too_large(most_megapixels: float) -> str:
    return f"Pictures of at most {most_megapixels:g} million pixels are wanted. Scale it down first."


def cropped(picture: media.Picture, crop: Crop, height: int, width: int) -> media.Picture:
    """Returns the part of a picture that has the aspect of a video of `height` x `width`; it is not resized.

    Raises:
      InputError: numbers out of range.
    """
    crop.check()
    given = picture.shape[:2]
    scale = min(given[0] / height, given[1] / width) / crop.zoom
    sides = [max(1, min(most, round(side * scale))) for most, side in zip(given, (height, width))]
    top, left = (round(at * (most - side)) for at, most, side in zip((crop.y, crop.x), given, sides))
    return picture[top : top + sides[0], left : left + sides[1]]


def shown(picture: media.Picture, height: int, width: int) -> media.Picture:
    """Returns a crop as large as it is shown on the page."""
    scale = SHOWN / max(height, width)
    return media.fit_picture(picture, max(1, round(height * scale)), max(1, round(width * scale)), "crop")
