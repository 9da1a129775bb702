"""Frames of one clip out of a video file: only what is needed is decoded, and what cannot be had has a named cause.

PyAV (FFmpeg) decodes, crops and resizes.
"""

import dataclasses
import io
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import Float32, UInt8

from i2v_jax.errors import InputError

CAUSES = {
    "missing file": "there is no file, or it may not be read",
    "empty file": "it has no bytes",
    "not a video": "no container that FFmpeg knows, or one whose header is damaged or cut off",
    "no video stream": "sound or text alone",
    "unknown codec": "no decoder here knows how its pictures are coded",
    "damaged": "the decoder raised an error",
    "frames missing": "the file ends early, or the decoder gave fewer frames than asked, without an error",
    "timestamps jump": "frames without a time, two at one time, or a gap of ten frames and of a second between two",
    "frozen": "all frames of the clip are the same picture, as failing decoders repeat it",
    "kills the decoder": "the decoder's process died of it, or had not finished it in time",
    "too short": "fewer frames than a clip wants",
    "no caption": "no text, or an empty one",
}
"""Why a clip cannot be used."""

UNSPECIFIED, HD_LINES = 2, 720  # AVCOL_SPC_UNSPECIFIED; pictures of so many lines and more are taken to be BT.709
SKIPS_SAFELY = ("h264", "hevc")  # one packet is one picture, and a picture that no other needs says so


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


class Frames(NamedTuple):
    """The frames of a cut, and how they were taken (SDXL, Podell et al. 2023, section 2.2).

    Attributes:
      video: RGB.
      sizes: in pixels, the video's height and width before it was scaled, upright as it is displayed; top and left of
        the crop in the scaled picture; height and width of the crop.
    """

    video: UInt8[np.ndarray, "f h w 3"]
    sizes: Float32[np.ndarray, "6"]


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

    The file's packets are read without decoding, which gives every frame's time; then the packets from the key frame
    before the clip to its last frame are decoded, without those pictures in between that no other picture needs.

    Args:
      video: a file, or a file's bytes.
      cut: what a clip is.
      rng: draws the start.

    Raises:
      BadClip: says why the clip cannot be used.
    """
    with _open(read_bytes(video)) as container:
        stream = _video_stream(container)
        packets = _packets(container, stream)
        times = _times(stream, packets)
        wanted = [times[number] for number in choose_frames(len(times), cut, rng)]
        starts = [i for i, packet in enumerate(packets) if packet.is_keyframe and packet.pts <= wanted[0]]
        first = max(starts, default=0)
        try:
            try:
                frames = _decode(stream, packets[first:], wanted)
            except av.FFmpegError:
                if not first:
                    raise
                frames = _decode(stream, packets, wanted)  # a key frame that wants what came before it
            pictures = resize(frames, cut)
        except av.FFmpegError as error:
            raise BadClip("damaged", str(error)) from None
    if cut.frames > 1 and (pictures == pictures[0]).all():
        raise BadClip("frozen", f"{cut.frames} equal frames")
    return Frames(pictures, central_sizes(*_upright_size(frames[0]), cut))


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
        return av.open(io.BytesIO(video), metadata_errors="ignore", options=options)
    except (av.FFmpegError, ValueError) as error:
        raise BadClip("not a video", str(error)) from None


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    if not container.streams.video:
        raise BadClip("no video stream")
    stream = container.streams.video[0]
    context = stream.codec_context
    if context is None:
        raise BadClip("unknown codec")
    context.thread_count = 1  # processes decode side by side; threads would only wait for each other
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


def resize(frames: Sequence[av.VideoFrame], cut: Cut) -> UInt8[np.ndarray, "f h w 3"]:
    """Takes the largest middle part of each frame that has the clip's aspect to the clip's size, turned upright.

    Each new pixel is a bicubic mean over all old ones that it covers.
    """
    graphs, pictures = {}, []
    for frame in frames:
        turns = _quarter_turns(frame)
        kind = frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, turns
        if kind not in graphs:
            height, width = (cut.width, cut.height) if turns % 2 else (cut.height, cut.width)
            graphs[kind] = _crop_and_scale(frame, height, width)
        graphs[kind].push(frame)
        pictures.append(np.rot90(graphs[kind].pull().to_ndarray(), turns))
    return np.stack(pictures)


def _quarter_turns(frame: av.VideoFrame) -> int:
    """By how many, counterclockwise, a frame is turned to be shown."""
    return round(frame.rotation / 90)


def _upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """Height and width of a frame as it is shown."""
    return (frame.width, frame.height) if _quarter_turns(frame) % 2 else (frame.height, frame.width)


def _crop_and_scale(frame: av.VideoFrame, height: int, width: int) -> av.filter.Graph:
    """Frames like this one are pushed into it, and pulled out of it cropped, scaled, RGB."""
    scale = max(height / frame.height, width / frame.width)
    size = f"{min(frame.width, round(width / scale))}:{min(frame.height, round(height / scale))}"  # the crop is central
    matrix = "bt709" if frame.colorspace == UNSPECIFIED and frame.height >= HD_LINES else "auto"
    flags = "bicubic+accurate_rnd+full_chroma_int"
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base),
        graph.add("crop", size),
        graph.add("scale", f"{width}:{height}:flags={flags}:in_color_matrix={matrix}"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ).configure()
    return graph
