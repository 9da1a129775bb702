"""Videos written as frames come: H.264, HEVC, AV1 and VP9 with sound, animated WebP and PNG, GIF."""

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from i2v_jax.errors import InputError, nearest
from i2v_jax.finishing.music import CHANNELS, RATE, Sound
from i2v_jax.media import Picture, check_fps, encode_gif

BT709 = 1  # the code of BT.709 for matrix, primaries and transfer curve


class Codec(NamedTuple):
    """How frames are coded.

    Attributes:
      encoder: FFmpeg's name of it.
      pixels: format of pixels that it is given.
      options: of the encoder, besides the quality.
      qualities: the options of each quality.
      tag: that a file names it by; None: FFmpeg's choice.
      least: pixels that each side must have; x265 spoils its own memory below 64.
    """

    encoder: str
    pixels: str
    options: Mapping[str, str]
    qualities: Mapping[str, Mapping[str, str]]
    tag: str | None = None
    least: int = 2


def _crf(high: int, medium: int, small: int) -> dict[str, dict[str, str]]:
    return {name: {"crf": str(crf)} for name, crf in dict(high=high, medium=medium, small=small).items()}


CODECS = {
    "h264": Codec("libx264", "yuv420p", {"preset": "medium"}, _crf(16, 21, 27)),
    "hevc": Codec(
        "libx265", "yuv420p", {"preset": "medium", "x265-params": "log-level=error"}, _crf(18, 24, 30), "hvc1", 64
    ),
    "av1": Codec("libsvtav1", "yuv420p", {"preset": "7", "svtav1-params": "lp=2"}, _crf(22, 32, 42), least=64),
    "vp9": Codec("libvpx-vp9", "yuv420p", {"b:v": "0", "row-mt": "1", "cpu-used": "2"}, _crf(20, 30, 40)),
    "webp": Codec(
        "libwebp_anim",
        "yuv420p",
        {"loop": "0"},
        {name: {"quality": quality} for name, quality in dict(high="90", medium="75", small="50").items()},
    ),
    "apng": Codec("apng", "rgb24", {"plays": "0"}, {name: {} for name in ("high", "medium", "small")}),
    "gif": Codec("gif", "rgb24", {}, {name: {} for name in ("high", "medium", "small")}),
}
ENDINGS = {  # of a file: codecs that it may hold, the first by default, and the encoder of sound
    ".mp4": (("h264", "hevc", "av1"), "aac"),
    ".mov": (("h264", "hevc"), "aac"),
    ".mkv": (("h264", "hevc", "av1", "vp9"), "aac"),
    ".webm": (("vp9", "av1"), "libopus"),
    ".webp": (("webp",), None),
    ".png": (("apng",), None),
    ".gif": (("gif",), None),
}
GIF_FPS = 50
MUXERS = {".mkv": "matroska", ".png": "apng"}  # FFmpeg's names where the ending is not one
QUALITIES = ("high", "medium", "small")


def choose(path: str | Path, codec: str = "auto", quality: str = "high", sound: bool = False) -> str:
    """Returns the codec for a file.

    Args:
      path: of the file; its ending says the kind.
      codec: of `CODECS`, or "auto".
      quality: of `QUALITIES`.
      sound: whether there is any.

    Raises:
      InputError: an unknown ending, codec or quality, a codec that such a file does not hold, sound where none can be.
    """
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise InputError(
            f"output={str(path)!r}: wanted a file that ends in {', '.join(ENDINGS)}.{nearest(ending, ENDINGS)}"
        )
    codecs, of_sound = ENDINGS[ending]
    if codec != "auto" and codec not in CODECS:
        raise InputError(f"codec={codec!r}: wanted auto, {', '.join(CODECS)}.{nearest(codec, CODECS)}")
    if codec != "auto" and codec not in codecs:
        homes = ", ".join(other for other, (held, _) in ENDINGS.items() if codec in held)
        raise InputError(f"A {ending} file holds {' or '.join(codecs)}, not {codec}, which goes into {homes}.")
    if quality not in QUALITIES:
        raise InputError(f"quality={quality!r}: wanted one of {', '.join(QUALITIES)}.{nearest(quality, QUALITIES)}")
    if sound and of_sound is None:
        homes = ", ".join(other for other, (_, encoder) in ENDINGS.items() if encoder)
        raise InputError(f"A {ending} file has no sound: leave the music out, or write {homes}.")
    return codecs[0] if codec == "auto" else codec


def check_size(codec: str, height: int, width: int) -> None:
    """Raises InputError for frames that a codec does not take: too small, or of odd sides where it halves colours."""
    it = CODECS[codec]
    if it.pixels == "yuv420p" and (height % 2 or width % 2):
        raise InputError(f"A video of {codec} has even sides, the frames are {height}x{width}. Crop or pad them.")
    if min(height, width) < it.least:
        raise InputError(f"{codec} wants sides of {it.least} pixels or more, the frames are {height}x{width}.")


def check_rate(codec: str, fps: float) -> None:
    """Raises InputError for more frames a second than a kind of file shows: GIFs last longer, of 2/100 s each."""
    if codec == "gif" and fps > GIF_FPS:
        raise InputError(
            f"A GIF shows {GIF_FPS} frames a second at most, and these are {float(fps):g}. Give a smaller "
            "interpolate.factor, or another kind of file."
        )


def write(
    path: str | Path,
    frames: Iterable[Picture],
    fps: float,
    *,
    codec: str = "auto",
    quality: str = "high",
    sound: Sound | None = None,
    about: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a video, frame by frame; the file appears when it is whole. A GIF alone needs all frames in memory.

    Args:
      path: of the file.
      frames: of one size, even where the codec halves colours.
      fps: frames a second.
      codec, quality: see `choose`.
      sound: as long as the frames.
      about: how it was made; put into the file as JSON, as its comment, where its kind has one.
      overwrite: whether a file that is there may be replaced.

    Raises:
      InputError: what `choose` raises, no frames, a file that is there, or a place that cannot be written to.
    """
    path = Path(path).expanduser()
    codec = choose(path, codec, quality, sound is not None)
    check_fps(fps)
    if path.exists() and not overwrite:
        raise InputError(f"{str(path)!r} is there already. Choose another name, or allow it to be overwritten.")
    with _whole(path) as partial:
        if codec == "gif":
            partial.write_bytes(encode_gif(np.stack([*frames]), float(fps)))
        else:
            _encode(partial, path.suffix.lower(), frames, fps, codec, quality, sound, about)
    return path


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A name beside a file's, which becomes the file at the end, and is gone after an error."""
    partial = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if isinstance(error, av.FFmpegError) and error.errno not in (errno.ENOSPC, errno.EACCES, errno.EFBIG):
            raise
        raise InputError(f"{str(path)!r} cannot be written: {error.strerror}. Choose another folder.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _encode(partial, ending, frames, fps, name, quality, sound, about) -> None:
    codec = CODECS[name]
    rate = Fraction(fps).limit_denominator(1001)
    muxer = MUXERS.get(ending, ending[1:])
    options = {"movflags": "+use_metadata_tags+faststart"} if ending in (".mp4", ".mov") else {}
    if muxer in ("webp", "apng"):
        options = dict(codec.options)
    with av.open(str(partial), "w", format=muxer, options=options) as container:
        if about:
            container.metadata["comment"] = json.dumps(about, ensure_ascii=False)
        video = container.add_stream(codec.encoder, rate=rate)
        voice = None
        if sound is not None:
            voice = container.add_stream(ENDINGS[ending][1], rate=RATE, layout="stereo")
            voice.bit_rate = 192_000
        for number, frame in enumerate(frames):
            if not number:
                check_size(name, *frame.shape[:2])
                _set_up(video, codec, quality, frame)
            for packet in video.encode(_image(frame, codec, number, rate)):
                container.mux(packet)
            if voice is not None:  # beside the picture that it is heard with
                begin, end = (round(count / rate * RATE) for count in (number, number + 1))
                for packet in _coded(voice, sound, begin, end):
                    container.mux(packet)
        container.mux(video.encode(None))
        if voice is not None:
            container.mux(voice.encode(None))


def _set_up(video: av.VideoStream, codec: Codec, quality: str, frame: Picture) -> None:
    video.height, video.width = frame.shape[:2]
    video.pix_fmt = codec.pixels
    video.options = dict(codec.options) | dict(codec.qualities[quality])
    context = video.codec_context
    if codec.tag:
        context.codec_tag = codec.tag
    if codec.pixels == "yuv420p":
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = ColorRange.MPEG


def _image(frame: Picture, codec: Codec, number: int, rate: Fraction) -> av.VideoFrame:
    image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    if codec.pixels == "yuv420p":
        colours = dict(dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        image = image.reformat(format="yuv420p", **colours)
    image.pts, image.time_base = number, 1 / rate
    return image


def _coded(voice, sound: Sound, begin: int, end: int):
    piece = np.ascontiguousarray(sound[begin:end].reshape(1, -1))
    if not piece.size:
        return ()
    frame = av.AudioFrame.from_ndarray(piece, format="flt", layout="stereo")
    assert piece.size == CHANNELS * frame.samples
    frame.sample_rate, frame.pts, frame.time_base = RATE, begin, Fraction(1, RATE)
    return voice.encode(frame)
