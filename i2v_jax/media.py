"""Pictures in; mp4, gif and contact-sheet files out. Pictures and frames are uint8 RGB, channels last; only what
prepares a network's input, `to_model_range` and `clip_pixels`, returns float32."""

import contextlib
import errno
import io
import itertools
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Literal

import av
import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageOps
from skimage import color, exposure

from i2v_jax.errors import InputError, nearest
from i2v_jax.hub import check_no_address, on_disk

# From the preprocessor_config.json of every CLIP checkpoint.
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

FITS = ("crop", "pad", "stretch")
ANIMATED_FORMATS = ("GIF", "PNG", "WEBP", "AVIF", "TIFF")

LENIENT = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
"""For `av.open`: words in a file that are no UTF-8 do not keep its pictures from being read; PyAV 19 has no choice."""

Picture = UInt8[np.ndarray, "height width 3"]
Frames = UInt8[np.ndarray, "frames height width 3"]


def load_picture(path: str | Path) -> Picture:
    """Reads a picture file of any format Pillow knows, as a person sees it.

    The EXIF rotation is applied, transparency is laid on white, grey (8 or 16 bit), palette and CMYK become RGB. Colour
    profiles are not applied. Of a camera's multi-picture JPEG (MPO) the main picture is taken.

    Raises:
        InputError: no such file, a folder, no permission, not a picture, truncated or broken, animated or of several
            pages, 32 bits per channel, or too large for memory.
    """
    check_no_address(path)
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"No picture at {str(path)!r}. Check the path.")
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder, one picture file is wanted.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is raised
            with Image.open(path) as image:
                return to_picture(image, repr(str(path)))
    except InputError:
        raise
    except PermissionError:
        raise InputError(f"{str(path)!r} may not be read. Change its permissions.") from None
    except Image.UnidentifiedImageError:
        hint = " Save it as a JPEG or PNG first." if path.suffix.lower() in (".heic", ".heif", ".svg", ".raw") else ""
        raise InputError(f"{str(path)!r} is not a picture in a format known here.{hint}") from None
    except Image.DecompressionBombError:
        raise InputError(f"{str(path)!r} has more than {2 * Image.MAX_IMAGE_PIXELS} pixels. Scale it down.") from None
    except Exception as error:  # Pillow's decoders raise errors of a dozen types on broken files
        raise InputError(f"{str(path)!r} is truncated or broken ({error}). Save or copy it again.") from error


def to_picture(image: Image.Image, name: str = "The picture") -> Picture:
    """Returns an image of Pillow's as `load_picture` returns a file; `name` is what messages call it.

    Raises:
        InputError: animated or of several pages, or 32 bits per channel.
    """
    if image.format in ANIMATED_FORMATS and getattr(image, "n_frames", 1) > 1:
        raise InputError(
            f"{name} holds {image.n_frames} pictures (animated, or several pages), one is wanted."
            " Save one of them as a PNG or JPEG."
        )
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise InputError(f"{name} has 32 bits per channel, 8 or 16 are wanted. Save it as a PNG or JPEG.")
    return np.array(_to_rgb(image))


def fit_picture(picture: Picture, height: int, width: int, mode: Literal["crop", "pad", "stretch"] = "crop") -> Picture:
    """Resizes a picture to height x width with an antialiased Lanczos filter.

    Args:
        mode: what to do with another aspect. "crop" keeps the middle of the picture, "pad" keeps all of it between
            black bars, "stretch" changes its aspect.

    Raises:
        InputError: unknown mode, or a size below one pixel.
    """
    if mode not in FITS:
        raise InputError(f"Unknown way to fit a picture: {mode!r}, one of {FITS} is wanted.{nearest(str(mode), FITS)}")
    if height < 1 or width < 1:
        raise InputError(f"A picture cannot be fitted to {height}x{width} pixels.")
    image = Image.fromarray(picture)
    if mode == "stretch":
        return np.array(image.resize((width, height), Image.Resampling.LANCZOS))
    if mode == "crop":
        return np.array(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))
    scale = min(height / image.height, width / image.width)
    inside = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    padded = Image.new("RGB", (width, height))
    padded.paste(image.resize(inside, Image.Resampling.LANCZOS), ((width - inside[0]) // 2, (height - inside[1]) // 2))
    return np.array(padded)


def to_model_range(pictures: UInt8[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """Maps uint8 0..255 to float32 -1..1, what the VAE encodes."""
    return pictures.astype(np.float32) / 127.5 - 1


def to_uint8(images: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Maps -1..1, what the VAE decodes to, to uint8 0..255; values outside are clipped. Inverts `to_model_range`."""
    return np.round((np.clip(np.asarray(images, np.float32), -1, 1) + 1) * 127.5).astype(np.uint8)


def clip_pixels(picture: Picture, size: int = 224) -> Float32[np.ndarray, "size size 3"]:
    """Prepares a picture for a CLIP vision encoder, as transformers' `CLIPImageProcessor` does.

    Bicubic resize of the shorter edge to `size`, centre crop, CLIP's mean and standard deviation.
    """
    height, width = picture.shape[:2]
    short = min(height, width)
    height, width = size * height // short, size * width // short
    resized = np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - size) // 2, (width - size) // 2
    cropped = resized[top : top + size, left : left + size].astype(np.float32) / 255
    return (cropped - CLIP_MEAN) / CLIP_STD


def stretched_clip_pixels(picture: Picture, size: int = 224) -> Float32[np.ndarray, "size size 3"]:
    """Prepares a picture for a CLIP vision encoder as the original code of video models does, with kornia.

    A Gaussian blur against aliasing where a side is above `size`, bicubic resize of both sides to `size` with the
    corners in place, CLIP's mean and standard deviation; nothing is clipped.
    """
    rows, columns = (_bicubic(side, size) @ _blur(side, size, picture.shape[:2]) for side in picture.shape[:2])
    resized = np.einsum("ih,hwc,jw->ijc", rows, picture / 255, columns, optimize=True)
    return ((resized - CLIP_MEAN) / CLIP_STD).astype(np.float32)


def _bicubic(side: int, size: int) -> Float[np.ndarray, "size side"]:
    """Weights of a bicubic resize (Keys, a = -0.75) whose first and last pixels stay, edges repeated."""
    at = np.arange(size) * (side - 1) / max(size - 1, 1)
    weights = np.zeros((size, side))
    for offset in (-1, 0, 1, 2):
        pixel = np.floor(at).astype(int) + offset
        x = np.abs(at - pixel)
        near, far = 1.25 * x**3 - 2.25 * x**2 + 1, -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
        np.add.at(weights, (np.arange(size), np.clip(pixel, 0, side - 1)), np.where(x <= 1, near, far))
    return weights


def _blur(side: int, size: int, sides: tuple[int, int]) -> Float[np.ndarray, "side side"]:
    """Weights of kornia's Gaussian blur before a resize to `size`, edges mirrored; of none where no side shrinks."""
    if max(sides) <= size:
        return np.eye(side)
    sigma = max((side / size - 1) / 2, 0.001)
    half = int(max(4 * sigma, 3)) // 2
    offsets = np.arange(-half, half + 1)
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    weights = np.zeros((side, side))
    for offset, weight in zip(offsets, kernel / kernel.sum()):
        pixel = np.abs(np.arange(side) + offset)
        np.add.at(weights, (np.arange(side), np.minimum(pixel, 2 * (side - 1) - pixel)), weight)
    return weights


def match_colours(frames: Frames) -> Frames:
    """Gives every frame the colour distribution of frame 1, against slow drifts of hue.

    The histograms of the LAB channels a and b are matched to frame 1's; lightness stays, and so does frame 1. This is
    the optional step after sampling of the published I2V-Adapter code. That code works on 8-bit LAB of channels taken
    in reverse order; here LAB is computed in floating point from RGB, without those roundings.
    """
    return np.stack(list(matched_colours(frames)))


def matched_colours(frames: Iterable[Picture]) -> Iterator[Picture]:
    """As `match_colours`, of frames that come one by one."""
    reference = None
    for frame in frames:
        if reference is None:
            reference = color.rgb2lab(frame)
            yield frame
            continue
        lab = color.rgb2lab(frame)
        lab[..., 1:] = exposure.match_histograms(lab[..., 1:], reference[..., 1:], channel_axis=-1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # colours outside of RGB are clipped
            matched = np.round(color.lab2rgb(lab) * 255).astype(np.uint8)
        yield matched


def contact_sheet(picture: Picture, frames: Frames, max_frames: int = 24, tile: int = 256, gap: int = 4) -> Picture:
    """Lays the input picture and the frames out in a grid, row by row, with thin white gaps.

    Args:
        picture: the input, of any size; it comes first, cropped to the frames' aspect.
        max_frames: when there are more, so many are chosen evenly, the first and the last included.
        tile: longest side of a tile in pixels; smaller frames are not enlarged.
    """
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), max_frames)).round().astype(int))
    scale = min(1.0, tile / max(frames.shape[1:3]))
    height, width = (max(1, round(side * scale)) for side in frames.shape[1:3])
    tiles = [fit_picture(picture, height, width), *(fit_picture(frames[i], height, width, "stretch") for i in chosen)]
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, content in enumerate(tiles):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = content
    return sheet


def encode_png(picture: Picture) -> bytes:
    """Returns a PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def encode_gif(frames: Frames, fps: float) -> bytes:
    """Returns the bytes of a GIF that loops for ever, with one palette for all frames.

    GIF counts hundredths of a second: frame times are rounded so that the whole lasts len(frames) / fps. Viewers slow
    frames below 2/100 s down, so that is the shortest here.

    Raises:
        InputError: fps is not positive, or there are no frames.
    """
    _check_video(frames, fps)
    durations = [10 * hundredths for hundredths in gif_durations(len(frames), fps)]
    step = palette_step(*frames.shape[:3])
    palette = gif_palette(frames[:, ::step, ::step])
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return buffer.getvalue()


def gif_durations(count: int, fps: float) -> list[int]:
    """Returns how long a GIF shows each of `count` frames, in hundredths of a second."""
    return [max(2, int(duration)) for duration in np.diff(np.round(np.arange(count + 1) * 100 / fps))]


def palette_step(count: int, height: int, width: int) -> int:
    """Returns which rows and columns of each frame a GIF's palette is made of: every so many-th."""
    return max(1, round(math.sqrt(count * height * width / 2**18)))


def gif_palette(sample: Frames) -> Image.Image:
    """Returns a palette of pixels from all frames, so that colours do not jump from frame to frame."""
    return Image.fromarray(sample.reshape(-1, sample.shape[2], 3)).quantize(256, Image.Quantize.MEDIANCUT)


@contextlib.contextmanager
def gif_encoder(
    file: BinaryIO, count: int, height: int, width: int, palette: Image.Image, fps: float
) -> Iterator[Callable[[Picture], None]]:
    """As `encode_gif`, of frames that come one by one: gives what takes each of them, and writes as they come.

    Args:
        file: is written to.
        count, height, width: of the frames.
        palette: from `gif_palette`.
        fps: frames a second.
    """
    colours = np.array(palette.getpalette(), np.uint8).reshape(-1, 3)
    table = np.full((256, 4), 255, np.uint8)  # alpha, red, green, blue
    table[: len(colours), 1:] = colours
    durations, taken = gif_durations(count, fps), itertools.count()
    options = {"loop": "0", "final_delay": str(durations[-1])}
    with av.open(file, "w", format="gif", options=options) as container:
        stream = container.add_stream("gif", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "pal8"
        stream.codec_context.time_base = Fraction(1, 100)

        def add(frame: Picture) -> None:
            numbers = np.array(Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))
            image = av.VideoFrame.from_ndarray((numbers, table), format="pal8")
            image.pts, image.time_base = sum(durations[: next(taken)]), Fraction(1, 100)
            container.mux(stream.encode(image))

        yield add
        container.mux(stream.encode(None))


def encode_video(frames: Frames, fps: float) -> bytes:
    """Returns the bytes of an mp4 that every player shows: H.264, yuv420p, BT.709, index at the front.

    Raises:
        InputError: fps is not positive, there are no frames, or a side is odd (yuv420p halves them).
    """
    _check_video(frames, fps)
    buffer = io.BytesIO()
    with video_encoder(buffer, *frames.shape[:3], fps) as add:
        for frame in frames:
            add(frame)
    return buffer.getvalue()


@contextlib.contextmanager
def video_encoder(
    file: BinaryIO, count: int, height: int, width: int, fps: float
) -> Iterator[Callable[[Picture], None]]:
    """As `encode_video`, of frames that come one by one: gives what takes each of them, and writes as they come.

    Args:
        file: is written to.
        count, height, width: of the frames.
        fps: frames a second.
    """
    check_fps(fps)
    if height % 2 or width % 2:
        raise InputError(f"An H.264 video has even sides, the frames are {height}x{width}. Crop or pad them.")
    # Room for the index before the data; it takes at most 40 bytes a frame. ("+faststart" would want a file on disk.)
    index = {"moov_size": str(4096 + 64 * count)}
    with av.open(file, "w", format="mp4", options=index) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # Without mbtree: with it x264 reads memory that it never wrote, and equal small frames differ from run to run.
        stream.options = {"crf": "16", "preset": "medium", "x264-params": "mbtree=0"}
        bt709 = 1  # the code of BT.709 in H.264, for the matrix, the primaries and the transfer curve
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = bt709
        context.color_range = av.video.reformatter.ColorRange.MPEG

        def add(frame: Picture) -> None:
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            image = image.reformat(
                format="yuv420p",
                dst_colorspace=av.video.reformatter.Colorspace.ITU709,
                dst_color_range=av.video.reformatter.ColorRange.MPEG,
            )
            container.mux(stream.encode(image))

        yield add
        container.mux(stream.encode(None))


def write_png(path: str | Path, picture: Picture, overwrite: bool = False) -> None:
    """Writes a PNG; see `write_files`."""
    write_files({path: encode_png(picture)}, overwrite)


def write_gif(path: str | Path, frames: Frames, fps: float, overwrite: bool = False) -> None:
    """Writes a GIF; see `encode_gif` and `write_files`."""
    write_files({path: encode_gif(frames, fps)}, overwrite)


def write_video(path: str | Path, frames: Frames, fps: float, overwrite: bool = False) -> None:
    """Writes an mp4; see `encode_video` and `write_files`."""
    write_files({path: encode_video(frames, fps)}, overwrite)


def write_files(files: Mapping[str | Path, bytes], overwrite: bool = False) -> None:
    """Writes files that belong together, all or none.

    Everything is first written beside its place under a temporary name, and renamed when all of it is on the disk.
    Missing folders are made.

    Args:
        files: path -> content.
        overwrite: whether a file that is there already may be replaced.

    Raises:
        InputError: a file is there already and `overwrite` is False, no space, or a folder that cannot be written.
    """
    files = {Path(path): content for path, content in files.items()}
    temporary = {}
    try:
        for path, content in files.items():
            if path.exists() and not overwrite:
                raise InputError(f"{str(path)!r} is there already. Choose another name, or allow it to be overwritten.")
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary[path] = path.with_name(f"{path.name}.tmp{os.getpid()}")
            with open(temporary[path], "wb") as file:
                file.write(content)
                os.fsync(file.fileno())
        for path in files:
            os.replace(temporary[path], path)
    except OSError as error:
        size = sum(map(len, files.values()))
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise InputError(
                f"No space for {size} bytes in {str(path.parent)!r}. Free some, or write elsewhere."
            ) from error
        raise InputError(f"{str(path)!r} cannot be written: {error.strerror}. Choose another folder.") from error
    finally:
        for leftover in temporary.values():
            leftover.unlink(missing_ok=True)


def writing_failed(path: str | Path, error: OSError) -> InputError:
    """Returns what to say where something could not be written at a path."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return InputError(f"No space in {str(path)!r}. Free some, or write elsewhere.")
    return InputError(f"{str(path)!r} cannot be written: {error.strerror or error}. Choose another folder.")


def check_folder(folder: str | Path) -> None:
    """Raises InputError unless files can be written to a folder; one that is not there yet is not made by this.

    So a run need not end before it turns out that its folder cannot be written, or that the disk is full.
    """
    folder = on_disk(folder)
    try:
        place = next(place for place in (folder, *folder.parents) if place.exists())
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(2**16))
    except OSError as error:
        raise InputError(
            f"Nothing can be written in {str(folder)!r}: {error.strerror}. Choose another folder."
        ) from error


def free_stem(folder: str | Path, name: str, suffixes: tuple[str, ...]) -> Path:
    """Returns folder/name, or folder/name-2, -3 ... so that none of the suffixes appended to it is there already."""
    folder, number, stem = Path(folder).expanduser(), 1, name
    while any((folder / f"{stem}{suffix}").exists() for suffix in suffixes):
        number += 1
        stem = f"{name}-{number}"
    return folder / stem


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.float32) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def check_fps(fps: float) -> None:
    """Raises InputError unless `fps` is a frame rate."""
    if not (0 < fps < math.inf):
        raise InputError(f"fps (frames per second) is {fps}, a positive number is wanted.")


def _check_video(frames: Frames, fps: float) -> None:
    check_fps(fps)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise InputError(f"uint8 frames [frames height width 3] are wanted, {frames.dtype} {frames.shape} was given.")
