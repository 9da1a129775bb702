"""Text and a logo on frames: drawn once, laid on every frame of the time in which they are shown."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageColor, ImageDraw, ImageFont

from i2v_jax.errors import InputError, nearest
from i2v_jax.finishing.fonts import ANY, find_font
from i2v_jax.media import Picture

PLACES = {
    f"{row} {column}".replace("centre centre", "centre").replace("centre ", "").replace(" centre", ""): (x, y)
    for row, y in (("top", 0.0), ("centre", 0.5), ("bottom", 1.0))
    for column, x in (("left", 0.0), ("centre", 0.5), ("right", 1.0))
}
"""Name of a place -> (x, y): shares of what is left beside the overlay within the margins."""


@dataclasses.dataclass(frozen=True)
class Text:
    """Words on a video.

    Attributes:
      text: lines are parted by "\\n"; any script that the font has.
      font: see `fonts.find_font`.
      size: of the letters, over the height of the frames.
      colour, outline_colour: names, "#rrggbb", "#rrggbbaa".
      outline: its width over the letters' size.
      place: of `PLACES`, or (x, y) with 0 at the left and top, 1 at the right and bottom.
      margin: that is kept free at the frame's edges, over its height.
      begin, end: seconds in which it is shown; end None: to the video's.
      fade: seconds in which it comes and goes.
    """

    text: str
    font: str = ANY
    size: float = 0.08
    colour: str = "white"
    outline: float = 0.08
    outline_colour: str = "black"
    place: str | tuple[float, float] = "bottom"
    margin: float = 0.04
    begin: float = 0.0
    end: float | None = None
    fade: float = 0.0


@dataclasses.dataclass(frozen=True)
class Logo:
    """A picture on a video, with its own transparency.

    Attributes:
      picture: its file.
      size: its height over that of the frames.
      opacity: 0 to 1.
      place, margin, begin, end, fade: as of `Text`.
    """

    picture: str
    size: float = 0.12
    opacity: float = 0.8
    place: str | tuple[float, float] = "top right"
    margin: float = 0.04
    begin: float = 0.0
    end: float | None = None
    fade: float = 0.0


class Overlay(NamedTuple):
    """What lies on a rectangle of some frames."""

    top: int
    left: int
    colours: Float32[np.ndarray, "h w 3"]  # 0..255
    opacity: Float32[np.ndarray, "h w 1"]  # 0..1
    begin: float
    end: float
    fade: float

    def share(self, time: float) -> float:
        """How much of it is seen at a time in seconds, 0 to 1."""
        if not self.begin <= time < self.end:
            return 0.0
        if not self.fade:
            return 1.0
        return min(1.0, (time - self.begin) / self.fade, (self.end - time) / self.fade)

    def lay_on(self, frame: Picture, time: float) -> Picture:
        """Returns a frame with it on it; the frame itself where nothing of it is seen."""
        if not (share := self.share(time)):
            return frame
        height, width = self.opacity.shape[:2]
        rows, columns = slice(self.top, self.top + height), slice(self.left, self.left + width)
        frame = frame.copy()
        weight = share * self.opacity
        mixed = (1 - weight) * frame[rows, columns] + weight * self.colours
        frame[rows, columns] = np.round(mixed).astype(np.uint8)
        return frame


def read_text(given: Mapping[str, Any] | str) -> Text:
    """Returns a text of a config's entry: the words alone, or a mapping of `Text`'s attributes.

    Raises:
      InputError: an unknown attribute, none that is called text, or a value out of range.
    """
    return _checked(_of_mapping(Text, {"text": given} if isinstance(given, str) else given, "text"))


def read_logo(given: Mapping[str, Any]) -> Logo:
    """Returns a logo of a mapping of `Logo`'s attributes. Raises InputError as `read_text` does."""
    logo = _checked(_of_mapping(Logo, given, "picture"))
    if not 0 <= logo.opacity <= 1:
        raise InputError(f"logo.opacity={logo.opacity}: wanted 0 to 1.")
    return logo


def draw_text(text: Text, height: int, width: int, seconds: float) -> Overlay:
    """Returns the overlay of a text.

    Args:
      text: what to write.
      height, width: of the frames.
      seconds: that the video lasts.

    Raises:
      InputError: a font that is not there or lacks letters, an unknown colour, or a text that leaves the picture (with
        the size that fits).
    """
    path = find_font(text.font, text.text)
    layer = _written(text, path, text.size * height)
    inside = _inside(height, width, text.margin)
    if layer.height > inside[0] or layer.width > inside[1]:
        size = text.size * min(inside[0] / layer.height, inside[1] / layer.width)
        while _written(text, path, math.floor(size * 1000) / 1000 * height).width > inside[1]:
            size *= 0.98  # widths do not quite follow sizes
        raise InputError(
            f"The text {text.text!r} leaves the picture: it is {layer.width}x{layer.height} pixels, "
            f"{inside[1]}x{inside[0]} are there. Write it in lines (\\n), or 'size': "
            f"{math.floor(size * 1000) / 1000}."
        )
    return _placed(layer, text, height, width, seconds)


def draw_logo(logo: Logo, height: int, width: int, seconds: float) -> Overlay:
    """Returns the overlay of a logo; arguments and errors as of `draw_text`, and a file that is no picture."""
    path = Path(logo.picture).expanduser()
    try:
        with Image.open(path) as image:
            picture = image.convert("RGBA")
    except FileNotFoundError:
        raise InputError(f"No picture at {str(path)!r}: logo.picture. Check the path.") from None
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"logo.picture={str(path)!r} is no picture ({error}). A PNG is best.") from None
    high = max(1, round(logo.size * height))
    wide = max(1, round(high * picture.width / picture.height))
    inside = _inside(height, width, logo.margin)
    if high > inside[0] or wide > inside[1]:
        fitting = logo.size * min(inside[0] / high, inside[1] / wide)
        raise InputError(
            f"The logo leaves the picture: it is {wide}x{high} pixels, {inside[1]}x{inside[0]} are there. "
            f"Set logo.size={math.floor(fitting * 1000) / 1000}."
        )
    layer = picture.resize((wide, high), Image.Resampling.LANCZOS)
    overlay = _placed(layer, logo, height, width, seconds)
    return overlay._replace(opacity=overlay.opacity * logo.opacity)


def _written(text: Text, path: Path, pixels: float) -> Image.Image:
    """The words on a transparent picture as small as they are."""
    colours = [_colour(name) for name in (text.colour, text.outline_colour)]
    font = ImageFont.truetype(str(path), max(1, pixels))
    stroke = round(text.outline * pixels)
    lines = dict(text=text.text, font=font, stroke_width=stroke, align="center", spacing=round(0.2 * pixels))
    box = ImageDraw.Draw(Image.new("RGBA", (1, 1))).multiline_textbbox((0, 0), **lines)
    box = tuple(map(math.floor, box[:2])) + tuple(map(math.ceil, box[2:]))
    # the outline's own colour behind the transparent parts, so that edges do not darken
    layer = Image.new("RGBA", (box[2] - box[0], box[3] - box[1]), (*colours[1 if stroke else 0][:3], 0))
    draw = ImageDraw.Draw(layer)
    draw.multiline_text((-box[0], -box[1]), **lines, fill=colours[0], stroke_fill=colours[1])
    return layer


def _placed(layer: Image.Image, it: Text | Logo, height: int, width: int, seconds: float) -> Overlay:
    x, y = PLACES[it.place] if isinstance(it.place, str) else it.place
    edge = round(it.margin * height)
    top = edge + round(y * (height - 2 * edge - layer.height))
    left = edge + round(x * (width - 2 * edge - layer.width))
    pixels = np.asarray(layer, np.float32)
    end = math.inf if it.end is None else it.end
    if it.begin >= seconds:
        raise InputError(f"begin={it.begin} of {_name(it)!r}: the video lasts {seconds:.2f} s.")
    end = seconds if it.fade and math.isinf(end) else end
    return Overlay(top, left, pixels[..., :3], pixels[..., 3:] / 255, it.begin, end, it.fade)


def _inside(height: int, width: int, margin: float) -> tuple[int, int]:
    edge = round(margin * height)
    return height - 2 * edge, width - 2 * edge


def _colour(name: str) -> tuple[int, ...]:
    try:
        return ImageColor.getcolor(name, "RGBA")
    except (ValueError, AttributeError):
        known = sorted(ImageColor.colormap)
        raise InputError(f"Unknown colour {name!r}: wanted a name, or '#rrggbb'.{nearest(str(name), known)}") from None


def _name(it: Text | Logo) -> str:
    return it.text if isinstance(it, Text) else it.picture


def _of_mapping(kind: type, given: Mapping[str, Any], wanted: str) -> Any:
    known = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(given, Mapping):
        raise InputError(f"{given!r}: wanted words, or {{'{wanted}': ..., ...}} with {', '.join(known)}.")
    for key in given:
        if key not in known:
            raise InputError(f"{key!r} is nothing of a {wanted}; known: {', '.join(known)}.{nearest(str(key), known)}")
    if not given.get(wanted):
        raise InputError(f"{dict(given)!r} has no {wanted!r}.")
    return kind(**given)


def _checked(it: Any) -> Any:
    name = _name(it)
    if not isinstance(name, str):
        raise InputError(f"{name!r}: wanted text.")
    if isinstance(it.place, str) and it.place not in PLACES:
        raise InputError(f"place={it.place!r} of {name!r}: wanted one of {', '.join(PLACES)}, or (x, y) from 0 to 1.")
    if not isinstance(it.place, str):
        shares = it.place if isinstance(it.place, (tuple, list)) and len(it.place) == 2 else (math.nan,)
        if not all(isinstance(share, (int, float)) and 0 <= share <= 1 for share in shares):
            raise InputError(f"place={it.place!r} of {name!r}: wanted (x, y), each from 0 to 1.")
    ranges = dict(size=(0.005, 1), margin=(0, 0.4), begin=(0, math.inf), fade=(0, math.inf))
    ranges |= dict(outline=(0, 1)) if isinstance(it, Text) else {}
    for key, (low, high) in ranges.items():
        value = getattr(it, key)
        if not isinstance(value, (int, float)) or not low <= value <= high:
            upper = "" if math.isinf(high) else f" to {high}"
            raise InputError(f"{key}={value!r} of {name!r}: wanted {low}{upper or ' or more'}.")
    if it.end is not None and not (isinstance(it.end, (int, float)) and it.end > it.begin):
        raise InputError(f"end={it.end!r} of {name!r}: wanted seconds after begin={it.begin}.")
    return it


def lay_all(overlays: list[Overlay], frame: UInt8[np.ndarray, "h w 3"], time: float) -> Picture:
    """Returns a frame with all overlays on it, later ones on top."""
    for overlay in overlays:
        frame = overlay.lay_on(frame, time)
    return frame
