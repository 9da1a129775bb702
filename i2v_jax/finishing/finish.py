"""Finishes a video for posting: larger, smoother, another aspect, texts, a logo, music, another format.

    python -m i2v_jax.finishing.finish --video=output/cat.mp4 --output=cat.webm --config.aspect=9:16 \\
        --config.texts="('The cat',)" --config.music.source=song.mp3

Frames are read, changed and written one by one, so that memory does not grow with the video. The file says in its
comment how it was made; beside a record of `sample.py` (NAME.json by NAME.mp4) that is in it, too.
"""

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from tqdm import tqdm

import i2v_jax
from i2v_jax import commands
from i2v_jax.data import decoding
from i2v_jax.errors import InputError
from i2v_jax.families.arithmetic import choose_dtype
from i2v_jax.finishing import aspect, formats, music, overlays, smooth, upscale
from i2v_jax.hub import read_text
from i2v_jax.media import Picture

DEFAULT = commands.ROOT / "configs" / "finish" / "default.py"
SHORT = ("video", "output", "aspect", "codec")
MOST = 1000  # times a video is repeated


def main() -> None:
    print(finish(commands.read_config(DEFAULT, usage=__doc__, short=SHORT)))


def finish(config: ConfigDict) -> Path:
    """Writes the finished video of a config like configs/finish/default.py; returns its path.

    Raises:
      InputError: a setting out of range, a file that is not there or of another kind. Nothing is written then.
    """
    if not config.video:
        raise InputError("Wanted a video: --video=FILE.")
    source = Path(config.video).expanduser()
    output = Path(config.output or source.with_name(f"{source.stem}-finished.mp4"))
    if not 1 <= config.repeat <= MOST:
        raise InputError(f"repeat={config.repeat}: wanted 1 to {MOST}.")
    codec = formats.choose(output, config.codec, config.quality, bool(config.music.source))
    texts = [overlays.read_text(text) for text in config.texts]
    logo = overlays.read_logo(config.logo.to_dict()) if config.logo.picture else None
    tune = music.Music(**config.music) if config.music.source else None
    wanted = aspect.read_aspect(config.aspect) if config.aspect else None
    if output.exists() and not config.overwrite:
        raise InputError(f"{str(output)!r} is there already. Give another --output, or --config.overwrite=True.")

    video = _open(source)
    scale, enlarge = _enlarging(config.upscale)
    factor, smoothed = _smoothing(config.interpolate)
    fps = video.fps * factor
    if factor > 1:
        formats.check_rate(codec, fps)
    sides = video.height * scale, video.width * scale
    size = aspect.size_of(*sides, wanted, config.height, config.fit)
    formats.check_size(codec, *size)
    fit = aspect.fitter(*size, config.fit)
    count = video.count * config.repeat * factor
    seconds = float(count / fps)
    drawn = [overlays.draw_text(text, *size, seconds) for text in texts]
    drawn += [overlays.draw_logo(logo, *size, seconds)] if logo else []
    sound = music.sound_of(tune, seconds) if tune else None

    cuts: list[str] = []

    def frames() -> Iterator[Any]:
        again = (_open(source).frames for _ in range(config.repeat - 1))
        every = (smoothed(map(enlarge, once)) for once in itertools.chain([video.frames], again))
        whole = itertools.chain.from_iterable(every)
        for number, (frame, is_cut) in enumerate(tqdm(whole, "finishing", count, unit="frame", dynamic_ncols=True)):
            if is_cut:
                cuts.append(f"{float((number + factor) / fps):.2f}")
            yield overlays.lay_all(drawn, fit(frame), float(number / fps))

    try:
        written = formats.write(
            output,
            frames(),
            fps,
            codec=codec,
            quality=config.quality,
            sound=sound,
            about=_about(config, source),
            overwrite=config.overwrite,
        )
    except decoding.BadClip as error:
        raise _unreadable(source, error) from None
    if cuts:
        print(f"scenes end at {', '.join(cuts)} s: there frames are repeated, not made (interpolate.cuts)")
    return written


def _enlarging(settings: ConfigDict) -> tuple[int, upscale.Enlarge]:
    """By how much frames are enlarged, and what does it."""
    if not settings.by:
        return 1, lambda frame: frame
    dtype = jnp.dtype(choose_dtype(settings.dtype, jax.devices()[0].platform))
    return upscale.of_name(settings.by, settings.tile, settings.overlap, settings.factor, dtype)


def _smoothing(settings: ConfigDict) -> tuple[int, Callable[[Iterable[Picture]], Iterable[tuple[Picture, bool]]]]:
    """By how much there are more frames, and what makes them of frames, each with whether it stands before a cut."""
    if settings.factor not in smooth.FACTORS:
        raise InputError(f"interpolate.factor={settings.factor}: wanted 2 to {smooth.FACTORS[-1]}.")
    if not 0 <= settings.cuts <= 1:
        raise InputError(f"interpolate.cuts={settings.cuts}: wanted a number in [0, 1].")
    if not settings.by and settings.factor != 2:
        raise InputError(
            f"interpolate.factor={settings.factor} and no interpolate.by: wanted weights of an IFNet, such as "
            "rife47.pth, or flow."
        )
    if not settings.by:
        return 1, lambda frames: ((frame, False) for frame in frames)
    dtype = jnp.dtype(choose_dtype(settings.dtype, jax.devices()[0].platform))
    between = smooth.of_name(settings.by, settings.scale, settings.tile, settings.overlap, dtype)
    known = dict(between=between, factor=settings.factor, least=settings.cuts, loop=settings.loop)
    return settings.factor, functools.partial(smooth.smoothed, **known)


def _open(source: Path) -> decoding.Shown:
    try:
        return decoding.stream(source)
    except decoding.BadClip as error:
        raise _unreadable(source, error) from None


def _unreadable(source: Path, error: decoding.BadClip) -> InputError:
    detail = f": {error.detail}" if error.detail else ""
    return InputError(f"{str(source)!r} cannot be read as a video: {error.cause}{detail}. Check the file.")


def _about(config: ConfigDict, source: Path) -> dict[str, Any]:
    """How it was made: by what, from what, and how that was made where there is a record beside it."""
    about = {"made_by": f"i2v-jax {i2v_jax.__version__}", "synthetic": True, "finish": config.to_dict()}
    record = source.with_suffix(".json")
    if record.is_file():
        try:
            about["sample"] = json.loads(read_text(str(record)))
        except (ValueError, InputError):
            pass  # another file of that name
    return about


if __name__ == "__main__":
    commands.run(main)
