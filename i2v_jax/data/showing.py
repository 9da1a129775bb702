"""What a file says of how its pictures are to be shown: orientation, the shape of a pixel, and the part that is seen.

PyAV gives the first two. The part that is seen is in the container: `clap` of MP4 and QuickTime (ISO/IEC 14496-12,
12.1.4), PixelCrop of Matroska (RFC 9559). What a codec crops, its decoder crops.
"""

import dataclasses
import math
import struct
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

SKEW = math.tan(math.radians(1))  # an angle up to which a picture is taken as upright, FFmpeg's too

VISUAL_ENTRY = 78  # bytes of a video's sample description before the boxes in it
SEGMENT, TRACKS, TRACK, TYPE, VIDEO = 0x18538067, 0x1654AE6B, 0xAE, 0x83, 0xE0  # Matroska's elements
CROPS = {0x54BB: "top", 0x54AA: "bottom", 0x54CC: "left", 0x54DD: "right"}
IS_VIDEO = b"\x01"  # of TYPE


@dataclasses.dataclass(frozen=True)
class Showing:
    """How the pictures of a stream are shown, before they are turned.

    Attributes:
      aspect: width of a pixel over its height.
      top, bottom, left, right: pixels at the edges that are not seen.
    """

    aspect: Fraction = Fraction(1)
    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def seen(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width of what is seen of a picture; all of one for which the edges leave nothing."""
        high, wide = height - self.top - self.bottom, width - self.left - self.right
        return (high, wide) if min(high, wide) > 0 else (height, width)


WHOLE = Showing()


def of_stream(stream: av.VideoStream, video: bytes) -> Showing:
    """Returns how a file's pictures are shown.

    Args:
      stream: the first one of pictures.
      video: the file. A crop in it that leaves nothing is passed over, as FFmpeg does.
    """
    name, width, height = stream.container.format.name, stream.codec_context.width, stream.codec_context.height
    try:
        if "mov" in name:
            crop = _of_clap(video, width, height)
        else:
            crop = _of_matroska(video) if "matroska" in name else {}
    except (struct.error, IndexError, ZeroDivisionError):  # damaged where FFmpeg does not look
        crop = {}
    if min(crop.values(), default=0) < 0:
        crop = {}
    return Showing(stream.sample_aspect_ratio or Fraction(1), **crop)


class Orientation:
    """How a picture is turned and mirrored to be shown: one of eight ways.

    Attributes:
      transposes: whether rows become columns.
      mirrors: (rows, columns): whether their order, after that, is reversed.
    """

    def __init__(self, frame: av.VideoFrame):
        """Reads a frame's display matrix: pixel (x, y) is shown at (a x + c y, b x + d y).

        Raises:
          ValueError: it is no quarter turn.
        """
        matrix = frame.side_data.get("DISPLAYMATRIX")
        a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix)[:36]) if matrix else (1, 0, 0, 0, 1)
        upright, turned = max(abs(a), abs(d)), max(abs(b), abs(c))
        if min(upright, turned) > SKEW * max(upright, turned):
            raise ValueError(f"turned by {math.degrees(math.atan2(-b, a)):.0f} degrees")
        self.transposes = turned > upright
        self.mirrors = (b < 0, c < 0) if self.transposes else (d < 0, a < 0)

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """Returns a picture [h w c] as it is shown."""
        if self.transposes:
            picture = picture.swapaxes(0, 1)
        rows, columns = (slice(None, None, -1 if mirrored else 1) for mirrored in self.mirrors)
        return picture[rows, columns]

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width of a picture as it is shown, or those of a shown one before that."""
        return (width, height) if self.transposes else (height, width)


# MP4 and QuickTime.


def _boxes(content: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    position = 0
    while position + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, position)
        head = 8
        if size == 1:  # 64 bits follow
            (size,) = struct.unpack_from(">Q", content, position + 8)
            head = 16
        end = position + size if size else len(content)
        if end < position + head:
            return
        yield kind, content[position + head : end]
        position = end


def _box(content: memoryview, *path: bytes) -> memoryview | None:
    for kind in path:
        content = dict(reversed(list(_boxes(content)))).get(kind)  # the first of its kind
        if content is None:
            return None
    return content


def _of_clap(video: bytes, width: int, height: int) -> dict[str, int]:
    moov = _box(memoryview(video), b"moov")
    for kind, track in _boxes(moov if moov is not None else memoryview(b"")):
        handler = _box(track, b"mdia", b"hdlr") if kind == b"trak" else None
        if handler is None or handler[8:12] != b"vide":
            continue
        descriptions = _box(track, b"mdia", b"minf", b"stbl", b"stsd")
        _, entry = next(_boxes(descriptions[8:] if descriptions is not None else memoryview(b"")), (b"", None))
        clap = _box(entry[VISUAL_ENTRY:], b"clap") if entry is not None else None
        if clap is None:
            return {}
        wide, high, right, down = (Fraction(*struct.unpack_from(">ii", clap, 8 * i)) for i in range(4))
        if wide > width or high > height:
            return {}
        left, top = (width - wide) / 2 + right, (height - high) / 2 + down
        last_row, last_column = int(top + high - 1), int(left + wide - 1)
        return dict(top=int(top), bottom=height - 1 - last_row, left=int(left), right=width - 1 - last_column)
    return {}


# Matroska and WebM.


def _number(content: memoryview, position: int, marked: bool) -> tuple[int, int]:
    """A number whose leading zero bits say its length, with or without the bit that marks it; and where it ends."""
    length = 9 - content[position].bit_length()
    value = int.from_bytes(content[position : position + length], "big")
    return value if marked else value & ~(1 << 7 * length), position + length


def _elements(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    position = 0
    while position < len(content):
        kind, position = _number(content, position, marked=True)
        start = position
        size, position = _number(content, position, marked=False)
        unknown = size == (1 << 7 * (position - start)) - 1
        end = len(content) if unknown else position + size
        yield kind, content[position:end]
        position = end


def _of_matroska(video: bytes) -> dict[str, int]:
    segment = next((content for kind, content in _elements(memoryview(video)) if kind == SEGMENT), memoryview(b""))
    tracks = next((content for kind, content in _elements(segment) if kind == TRACKS), memoryview(b""))
    for kind, track in _elements(tracks):
        inside = dict(_elements(track)) if kind == TRACK else {}
        if inside.get(TYPE) == IS_VIDEO:
            settings = dict(_elements(inside.get(VIDEO, memoryview(b""))))
            return {side: int.from_bytes(settings[crop], "big") for crop, side in CROPS.items() if crop in settings}
    return {}
