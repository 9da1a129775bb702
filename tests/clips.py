"""Small videos for tests, whole ones and damaged ones."""

import io
import struct
from collections.abc import Callable, Sequence
from typing import Any

import av
import numpy as np

SIZE = 32
SLANTED = (56756, -32768, 0, 32768, 56756, 0, 0, 0, 1 << 30)  # a display matrix that turns by 30 degrees


def encode(frames: np.ndarray, times: Sequence[int] | None = None, **options: Any) -> bytes:
    """Returns an mp4 of uint8 RGB frames; frame i is shown at `times[i]`, in 24ths of a second, by default at i."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options=options.pop("container", {})) as container:
        stream = container.add_stream(options.pop("codec", "libx264"), rate=24)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for name, value in options.pop("colours", {}).items():
            setattr(stream.codec_context, name, value)
        if matrix := options.pop("matrix", None):
            stream.set_display_matrix(matrix)
        stream.options = {"preset": "ultrafast", "crf": "12", **options}
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = i if times is None else times[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def numbered(count: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """Frames [count h w 3]: frame i's red is 4 i everywhere, green grows to the right, blue downwards."""
    frames = np.zeros((count, height, width, 3))
    frames[..., 0] = 4 * np.arange(count)[:, None, None]
    frames[..., 1] = np.linspace(0, 255, width)
    frames[..., 2] = np.linspace(0, 255, height)[:, None]
    return frames.astype(np.uint8)


def noise(count: int, seed: int = 0) -> np.ndarray:
    """Frames that compress badly, so that a file is mostly picture data."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def sound() -> bytes:
    """Returns an mp4 without pictures."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def zeroed(video: bytes) -> bytes:
    """Overwrites the last two thirds of the picture data."""
    start = video.index(b"mdat") + 4
    end = start - 8 + int.from_bytes(video[start - 8 : start - 4], "big")
    middle = start + (end - start) // 3
    return video[:middle] + bytes(end - middle) + video[end:]


def cut_off(video: bytes) -> bytes:
    return video[: 2 * len(video) // 3]


NO_FILE = None
DAMAGES: dict[str, Callable[[], bytes | None]] = {
    "missing file": lambda: NO_FILE,
    "empty file": lambda: b"",
    "not a video": lambda: cut_off(encode(noise(8))),  # its index is at the end
    "no video stream": sound,
    "unknown codec": lambda: encode(noise(8)).replace(b"avc1", b"zzzz"),
    "damaged": lambda: zeroed(encode(noise(8))),
    "frames missing": lambda: cut_off(encode(noise(8), container={"moov_size": "4096"})),
    "timestamps jump": lambda: encode(noise(8), times=[0, 1, 2, 3, 400, 401, 402, 403]),
    "frozen": lambda: encode(np.full((8, SIZE, SIZE, 3), 99, np.uint8)),
    "too short": lambda: encode(noise(3)),
    "unknown orientation": lambda: encode(noise(8), matrix=SLANTED),
    "unknown colours": lambda: encode(noise(8), colours=dict(color_trc=9)),  # logarithmic
    "no caption": lambda: encode(noise(8)),
    "caption is no text": lambda: encode(noise(8)),
}
"""Cause -> a video that has to be found bad for it; where the caption is the cause, a good one."""


def with_clap(video: bytes, width: int, height: int, right: int = 0, down: int = 0) -> bytes:
    """Gives an mp4 of H.264, its index at the end, a clean aperture: a size, and by how much its middle is off."""
    clap = struct.pack(">I4s8i", 40, b"clap", width, 1, height, 1, right, 1, down, 1)
    end = video.rindex(b"avc1") - 4
    end += int.from_bytes(video[end : end + 4], "big")
    video = bytearray(video[:end] + clap + video[end:])
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        start = video.rindex(kind) - 4
        video[start : start + 4] = (int.from_bytes(video[start : start + 4], "big") + len(clap)).to_bytes(4, "big")
    return bytes(video)
