"""Frames of one clip out of a video file: only what is needed is decoded, and what cannot be had has a named cause.

PyAV (FFmpeg) decodes, crops and resizes; `data.showing` and `data.colours` say how a picture is to be shown.
"""

import dataclasses
import io
import stat
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.codec.context import Flags
from jaxtyping import Float32, UInt8
from PIL import Image

from i2v_jax import media
from i2v_jax.data import colours
from i2v_jax.data.showing import WHOLE, Orientation, Showing, of_stream
from i2v_jax.errors import InputError

CAUSES = {
    "missing file": "there is no file, or it may not be read",
    "empty file": "it has no bytes",
    "not a video": "no container that FFmpeg knows, or one whose header is damaged or cut off",
    "not a picture": "a file that begins as a picture does, and is damaged, animated, or of a kind that is not read",
    "no video stream": "sound or text alone",
    "unknown codec": "no decoder here knows how its pictures are coded",
    "damaged": "the decoder raised an error",
    "frames missing": "the file ends early, or the decoder gave fewer frames than asked, without an error",
    "timestamps jump": "frames without a time, two at one time, or a gap of ten frames and of a second between two",
    "unknown orientation": "it is to be shown at an angle that is no quarter turn",
    "unknown colours": "colours of a kind that is not converted here, such as log curves, or Dolby Vision alone",
    "frozen": "all frames of the clip are the same picture, as failing decoders repeat it",
    "kills the decoder": "the decoder's process died of it, or had not finished it in time",
    "too short": "fewer frames than a clip wants",
    "no caption": "no text, or an empty one",
    "caption is no text": "its bytes are neither UTF-8 nor UTF-16 with a byte order mark",
}
"""Why a clip cannot be used."""

SKIPS_SAFELY = ("h264", "hevc")  # one packet is one picture, and a picture that no other needs says so


PICTURES = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")
"""How PNG, JPEG, BMP and TIFF begin."""


class BadClip(Exception):
    """A clip that cannot be used: `cause`, of `CAUSES`, and a `detail` for people."""

    def __init__(self, cause: str, detail: str = ""):
        assert cause in CAUSES, cause
        super().__init__(cause, detail)
        self.cause, self.detail = cause, detail


@dataclasses.dataclass(frozen=True)
class Cut:
    """What a clip is.

    Attributes:
      frames: in a clip.
      stride: frames of the video from one frame of the clip to the next. A video too short for it gets the largest
        stride that fits.
      height, width: the middle of the picture, of this aspect, is resized to so many pixels.
    """

    frames: int = 16
    stride: int = 4
    height: int = 256
    width: int = 256

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise InputError(f"data.{name}={value}: wanted 1 or more.")


class Chosen(NamedTuple):
    """Frames as they are coded, how they are to be shown, and when."""

    frames: list[av.VideoFrame]
    showing: Showing
    numbers: Sequence[int]  # among all of the video
    seconds: float  # from the first to the last


class Frames(NamedTuple):
    """The frames of a cut, and how they were taken (SDXL, Podell et al. 2023, section 2.2).

    Attributes:
      video: RGB.
      sizes: in pixels, the video's height and width before it was scaled, upright as it is displayed; top and left of
        the crop in the scaled picture; height and width of the crop.
      stride: frames of the video from one frame of the clip to the next.
      fps: frames of the clip a second, as it is shown; 0 where there is no time, as in a single picture.
    """

    video: UInt8[np.ndarray, "f h w 3"]
    sizes: Float32[np.ndarray, "6"]
    stride: int = 1
    fps: float = 0.0


def central_sizes(height: int, width: int, cut: Cut) -> Float32[np.ndarray, "6"]:
    """Returns the `sizes` of a video that is scaled to cover a cut, of which then the middle is taken."""
    scale = max(cut.height / height, cut.width / width)
    top, left = round((height * scale - cut.height) / 2), round((width * scale - cut.width) / 2)
    return np.array([height, width, top, left, cut.height, cut.width], np.float32)


def choose_frames(count: int, cut: Cut, rng: np.random.Generator) -> range:
    """Returns the numbers of a clip's frames, of a video with `count`; their start is drawn evenly.

    Raises:
      BadClip: the video has fewer frames than the clip.
    """
    if count < cut.frames:
        raise BadClip("too short", f"{count} frames, {cut.frames} are wanted")
    stride = min(cut.stride, (count - 1) // (cut.frames - 1)) if cut.frames > 1 else 1
    span = (cut.frames - 1) * stride + 1
    start = int(rng.integers(count - span + 1))
    return range(start, start + span, stride)


def read_clip(video: Path | bytes, cut: Cut, rng: np.random.Generator) -> Frames:
    """Decodes a clip.

    Args:
      video: a file, or a file's bytes.
      cut: what a clip is.
      rng: draws the start.

    Raises:
      BadClip: says why the clip cannot be used.
    """
    content = read_bytes(video)
    if content.startswith(PICTURES) or (content[:4], content[8:12]) == (b"RIFF", b"WEBP"):
        return _read_picture(content, cut)
    frames, showing, numbers, seconds = _chosen(content, lambda count: choose_frames(count, cut, rng))
    pictures = resize(frames, cut, showing)
    if cut.frames > 1 and (pictures == pictures[0]).all():
        raise BadClip("frozen", f"{cut.frames} equal frames")
    stride = numbers[1] - numbers[0] if cut.frames > 1 else 1
    fps = (cut.frames - 1) / seconds if seconds else 0.0
    return Frames(pictures, central_sizes(*_shown_size(frames[0], showing), cut), stride, fps)


def _read_picture(content: bytes, cut: Cut) -> Frames:
    """A picture is a clip of one frame."""
    if cut.frames > 1:
        raise BadClip("too short", f"a picture is one frame, {cut.frames} are wanted: data.frames=1 trains on pictures")
    try:
        with Image.open(io.BytesIO(content)) as image:
            picture = media.to_picture(image)
    except Exception as error:  # Pillow's decoders raise errors of a dozen types on broken files
        raise BadClip("not a picture", str(error)) from None
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
    return Frames(resize([frame], cut), central_sizes(*picture.shape[:2], cut))


def read_frames(video: Path | bytes, choose: Callable[[int], Sequence[int]]) -> UInt8[np.ndarray, "f h w 3"]:
    """Decodes frames of a video at the size at which they are shown; they may all be equal.

    Args:
      video: a file, or a file's bytes.
      choose: from the count of a video's frames to the numbers of those that are wanted, rising.

    Raises:
      BadClip: says why the frames cannot be had.
    """
    frames, showing, *_ = _chosen(video, choose)
    height, width = _shown_size(frames[0], showing)
    return resize(frames, Cut(len(frames), 1, height, width), showing)


class Shown(NamedTuple):
    """A whole video as it is shown.

    Attributes:
      height, width: of the frames.
      fps: frames a second, their mean where they are not even.
      count: of the frames.
      frames: each decoded when it is asked for, once; raises BadClip where one cannot be had.
    """

    height: int
    width: int
    fps: Fraction
    count: int
    frames: Iterator[UInt8[np.ndarray, "h w 3"]]


def stream(video: Path | bytes) -> Shown:
    """Opens a video to be read frame by frame, so that memory holds one of them beside the file's own bytes.

    Raises:
      BadClip: says why it cannot be read, as far as can be told before it is decoded.
    """
    content = read_bytes(video)
    with _open(content) as container:
        stream = _video_stream(container)
        times, base = _times(stream, _packets(container, stream)), stream.time_base
    if not times:
        raise BadClip("frames missing", "there is none")
    first, showing, *_ = _chosen(content, lambda count: [0])
    height, width = _shown_size(first[0], showing)
    lasting = (times[-1] - times[0]) * base
    fps = Fraction(len(times) - 1) / lasting if lasting else Fraction(1)
    return Shown(
        height, width, fps.limit_denominator(1001), len(times), _each(content, times, showing, (height, width))
    )


def _each(content: bytes, times: Sequence[int], showing: Showing, size: tuple[int, int]) -> Iterator[np.ndarray]:
    wanted, given, cut = set(times), 0, Cut(1, 1, *size)
    with _open(content) as container:
        stream = _video_stream(container)
        try:
            for frame in container.decode(stream):
                if frame.pts in wanted and not frame.is_corrupt:
                    given += 1
                    yield resize([frame], cut, showing)[0]
        except av.FFmpegError as error:
            raise BadClip("damaged", str(error)) from None
    if given < len(times):
        raise BadClip("frames missing", f"the decoder gave {given} of {len(times)} frames, and no error")


def _chosen(video: Path | bytes, choose: Callable[[int], Sequence[int]]) -> Chosen:
    """Frames of a video, by their numbers.

    The file's packets are read without decoding, which gives every frame's time; then the packets from the key frame
    before the first frame to the last one are decoded, without those pictures in between that no other picture needs.
    """
    content = read_bytes(video)
    with _open(content) as container:
        stream = _video_stream(container)
        packets = _packets(container, stream)
        times = _times(stream, packets)
        numbers = choose(len(times))
        wanted = [times[number] for number in numbers]
        starts = [i for i, packet in enumerate(packets) if packet.is_keyframe and packet.pts <= wanted[0]]
        first = max(starts, default=0)
        try:
            try:
                frames = _decode(stream, packets[first:], wanted)
            except av.FFmpegError:
                if not first:
                    raise
                frames = _decode(stream, packets, wanted)  # a key frame that wants what came before it
        except av.FFmpegError as error:
            raise BadClip("damaged", str(error)) from None
        return Chosen(frames, of_stream(stream, content), numbers, float((wanted[-1] - wanted[0]) * stream.time_base))


def read_bytes(video: Path | bytes) -> bytes:
    """Returns the bytes of a file, or those that are given.

    Raises:
      BadClip: there is no file, or there are no bytes.
    """
    if isinstance(video, Path):
        try:
            if not stat.S_ISREG(video.stat().st_mode):
                raise BadClip("missing file", f"{video} is no regular file")  # a pipe would wait for its writer
            video = video.read_bytes()
        except OSError as error:
            raise BadClip("missing file", f"{video}: {error.strerror}") from None
    if not video:
        raise BadClip("empty file")
    return video


def _open(video: bytes) -> av.container.InputContainer:
    try:
        # a playlist that calls itself a video must not lead to other files, or into the network
        options = {"protocol_whitelist": "none"}
        return av.open(io.BytesIO(video), options=options, **media.LENIENT)
    except (av.FFmpegError, ValueError) as error:
        raise BadClip("not a video", str(error)) from None


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    covers = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & covers]
    if not streams:
        raise BadClip("no video stream")
    stream = streams[0]
    context = stream.codec_context
    if context is None:
        raise BadClip("unknown codec")
    context.thread_count = 1  # processes decode side by side; threads would only wait for each other
    context.flags |= Flags.unaligned  # crop all that the codec says, not only what leaves rows aligned in memory
    context.options = {"err_detect": "explode"}  # raise, where the decoder would paint over
    try:
        context.open(strict=False)
    except (av.FFmpegError, ValueError) as error:
        raise BadClip("unknown codec", f"{context.name}: {error}") from None
    return stream


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> list[av.Packet]:
    try:
        packets = [packet for packet in container.demux(stream) if packet.size]
    except av.FFmpegError as error:
        raise BadClip("damaged", str(error)) from None
    announced = len(stream.index_entries)  # `stream.frames` counts those, too, that an edit list leaves out
    if any(packet.is_corrupt for packet in packets) or len(packets) < announced:
        raise BadClip("frames missing", f"{len(packets)} packets, {announced} are announced")
    return packets


def _times(stream: av.VideoStream, packets: Sequence[av.Packet]) -> list[int]:
    """The times at which frames are shown, in their order, in units of the stream's time base."""
    if any(packet.pts is None for packet in packets):
        raise BadClip("timestamps jump", "frames without a time")
    times = sorted(packet.pts for packet in packets if not packet.is_discard)
    gaps = np.diff(times)
    if len(gaps) and not gaps.all():
        raise BadClip("timestamps jump", "two frames at one time")
    if len(gaps) and gaps.max() * stream.time_base > 1 and gaps.max() > 10 * np.median(gaps):
        raise BadClip("timestamps jump", f"{float(gaps.max() * stream.time_base):.1f} s between two frames")
    return times


def _decode(stream: av.VideoStream, packets: Sequence[av.Packet], wanted: Sequence[int]) -> list[av.VideoFrame]:
    """Decodes up to the last frame wanted.

    Raises:
      av.FFmpegError: the decoder's.
      BadClip: the decoder gave no error, and not all frames.
    """
    context, frames, missing = stream.codec_context, {}, set(wanted)
    context.flush_buffers()
    for packet in [*packets, None]:
        if packet is not None and context.name in SKIPS_SAFELY:
            context.skip_frame = "DEFAULT" if packet.pts in missing else "NONREF"
        for frame in context.decode(packet):
            if frame.pts in missing and not frame.is_corrupt:
                missing.remove(frame.pts)
                frames[frame.pts] = frame
        if not missing:
            return [frames[time] for time in wanted]
    raise BadClip("frames missing", f"the decoder gave {len(frames)} of {len(wanted)} frames, and no error")


def resize(frames: Sequence[av.VideoFrame], cut: Cut, showing: Showing = WHOLE) -> UInt8[np.ndarray, "f h w 3"]:
    """Takes the largest middle part of each frame that has the clip's aspect to the clip's size, as it is shown: the
    right way up, with round circles, in SDR's colours.

    Each new pixel is a bicubic mean over all old ones that it covers.

    Raises:
      BadClip: they are to be shown in a way that is not known here, or are damaged.
    """
    graphs, pictures = {}, []
    for frame in frames:
        orientation = _orientation(frame)
        colour = frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries
        kind = frame.width, frame.height, frame.format.name, colour, orientation.transposes
        try:
            if kind not in graphs:
                if unknown := colours.unknown_colours(frame):
                    raise BadClip("unknown colours", unknown)
                graphs[kind] = _crop_and_scale(frame, showing, *orientation.sides(cut.height, cut.width))
            graphs[kind].push(frame)
            picture = graphs[kind].pull().to_ndarray()
        except av.FFmpegError as error:
            raise BadClip("damaged", str(error)) from None
        if not colours.are_plain(frame):
            picture = colours.to_sdr(picture, frame)
        pictures.append(orientation.apply(picture))
    return np.stack(pictures)


def _orientation(frame: av.VideoFrame) -> Orientation:
    try:
        return Orientation(frame)
    except ValueError as error:
        raise BadClip("unknown orientation", str(error)) from None


def _shown_size(frame: av.VideoFrame, showing: Showing) -> tuple[int, int]:
    """Height and width of a frame as it is shown."""
    height, width = showing.seen(frame.height, frame.width)
    return _orientation(frame).sides(height, max(1, round(width * showing.aspect)))


def _crop_and_scale(frame: av.VideoFrame, showing: Showing, height: int, width: int) -> av.filter.Graph:
    """Frames like this one are pushed into it, and pulled out of it cropped, scaled, RGB: of 8 bits, or of 16 where
    their colours are still to be converted."""
    high, wide = showing.seen(frame.height, frame.width)
    aspect = float(showing.aspect)
    scale = max(height / high, width / (wide * aspect))
    sides = min(wide, round(width / scale / aspect)), min(high, round(height / scale))
    size = ":".join(str(max(1, side)) for side in sides)  # the crop is central
    seen = [] if (high, wide) == (frame.height, frame.width) else [f"{wide}:{high}:{showing.left}:{showing.top}"]
    flags = "bicubic+accurate_rnd+full_chroma_int"
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base),
        *(graph.add("crop", part) for part in (*seen, size)),
        graph.add("scale", f"{width}:{height}:flags={flags}:in_color_matrix={colours.matrix(frame)}"),
        graph.add("format", "rgb24" if colours.are_plain(frame) else "rgb48le"),
        graph.add("buffersink"),
    ).configure()
    return graph
