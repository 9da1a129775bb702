"""Music for a video: a part of a file as long as the video, looped, faded, and as loud as is wanted."""

import dataclasses
import math
import warnings
from pathlib import Path

import av
import numpy as np
import pyloudnorm
from jaxtyping import Float32

from i2v_jax.errors import InputError
from i2v_jax.media import LENIENT

RATE = 48_000  # samples a second
CHANNELS = 2
LONGEST = 3600.0  # seconds of a file
SEAM = 0.05  # seconds over which the end of a loop becomes its beginning
PEAK = 10 ** (-1 / 20)  # -1 dBFS: the loudest sample

Sound = Float32[np.ndarray, "samples 2"]


@dataclasses.dataclass(frozen=True)
class Music:
    """What is to be heard.

    Attributes:
      source: any file that FFmpeg reads sound of: mp3, m4a, ogg, flac, wav, a video.
      begin: seconds of it to leave out at its start.
      loop: whether it begins anew where the video is longer; otherwise silence follows.
      fade_in, fade_out: seconds.
      loudness: LUFS (ITU-R BS.1770) of what is heard; 0: as it is. Peaks stay below -1 dBFS, so that very uneven
        music may come out softer.
    """

    source: str
    begin: float = 0.0
    loop: bool = True
    fade_in: float = 0.0
    fade_out: float = 1.0
    loudness: float = -14.0

    def __post_init__(self):
        for name in ("begin", "fade_in", "fade_out"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"music.{name}={getattr(self, name)}: wanted 0 or more seconds.")
        if not -60 <= self.loudness <= 0:
            raise InputError(
                f"music.loudness={self.loudness}: wanted -60 to 0 LUFS; -14 is usual, 0 leaves it as it is."
            )


def sound_of(music: Music, seconds: float) -> Sound:
    """Returns the sound of a video, of -1 to 1, 48 kHz stereo.

    Args:
      music: what is heard.
      seconds: that the video lasts.

    Raises:
      InputError: a file that is not there, holds no sound, is longer than an hour, is damaged, or ends before `begin`.
    """
    count = round(seconds * RATE)
    sound = _repeated(read_sound(music.source, music.begin, seconds), count, music.loop)
    if music.loudness:
        sound = _as_loud(sound, music.loudness)
    return sound * _fades(count, music.fade_in, music.fade_out)[:, None]


def read_sound(source: str | Path, begin: float, seconds: float) -> Sound:
    """Returns at most so many seconds of a file's sound from `begin` on. Raises InputError as `sound_of` does."""
    path = Path(source).expanduser()
    if not path.is_file():
        raise InputError(f"No music at {str(path)!r}. Check the path.")
    pieces, skip, missing = [], round(begin * RATE), round(seconds * RATE)
    try:
        # a playlist that calls itself music must not lead to other files, or into the network
        with open(path, "rb") as file, av.open(file, options=_ALONE, **LENIENT) as container:
            if not container.streams.audio:
                raise InputError(f"{str(path)!r} holds no sound. Give a file of music, such as an mp3.")
            if container.duration and container.duration / av.time_base > LONGEST:
                minutes = container.duration / av.time_base / 60
                raise InputError(f"{str(path)!r} lasts {minutes:.0f} minutes, at most an hour is wanted. Cut it first.")
            resampler = av.AudioResampler("flt", "stereo", RATE)
            for frame in (*_decoded(container), None):
                for piece in resampler.resample(frame):
                    samples = piece.to_ndarray().reshape(-1, CHANNELS)
                    pieces.append(samples[skip : skip + missing])
                    missing -= len(pieces[-1])
                    skip = max(0, skip - len(samples))
                if not missing:
                    break
    except (av.FFmpegError, ValueError) as error:
        raise InputError(f"{str(path)!r} is no music that can be read ({error}). Save it as an mp3 or wav.") from None
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    sound = np.concatenate(pieces) if pieces else np.zeros((0, CHANNELS), np.float32)
    if not len(sound):
        raise InputError(f"{str(path)!r} has no sound after music.begin={begin} s.")
    return sound


_ALONE = {"protocol_whitelist": "none"}


def _decoded(container):
    yield from container.decode(container.streams.audio[0])


def _repeated(sound: Sound, count: int, loop: bool) -> Sound:
    """As many samples: the sound again and again, each time out of its own end, or silence after it."""
    if len(sound) >= count:
        return sound[:count]
    if not loop:
        return np.pad(sound, ((0, count - len(sound)), (0, 0)))
    seam = min(round(SEAM * RATE), len(sound) // 4)
    rising = np.linspace(0, 1, seam, endpoint=False, dtype=np.float32)[:, None]
    period = sound[: len(sound) - seam].copy()
    period[:seam] = rising * period[:seam] + (1 - rising) * sound[len(sound) - seam :]
    again = np.resize(period, (count, CHANNELS))
    again[:seam] = sound[:seam]  # nothing comes before the first one
    return again


def _as_loud(sound: Sound, loudness: float) -> Sound:
    """The sound at a loudness; silence stays."""
    meter = pyloudnorm.Meter(RATE, block_size=min(0.4, len(sound) / RATE))
    with warnings.catch_warnings(action="ignore"):
        measured = meter.integrated_loudness(sound.astype(np.float64))
    if not math.isfinite(measured):
        return sound
    gain = 10 ** ((loudness - measured) / 20)
    return sound * np.float32(min(gain, PEAK / np.abs(sound).max()))


def _fades(count: int, fade_in: float, fade_out: float) -> Float32[np.ndarray, " samples"]:
    time = np.arange(count, dtype=np.float32) / RATE
    rising = time / fade_in if fade_in else np.ones_like(time)
    falling = (count / RATE - time) / fade_out if fade_out else np.ones_like(time)
    return np.clip(np.minimum(rising, falling), 0, 1)
