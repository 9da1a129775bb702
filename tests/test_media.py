"""Pictures of every kind in, files that decode back out, and nothing lost or half-written."""

import io
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import skimage.data
from PIL import Image
from skimage import color
from transformers import CLIPImageProcessor

from i2v_jax import media
from i2v_jax.errors import InputError

CAT = skimage.data.chelsea()  # 300 x 451
ASTRONAUT = skimage.data.astronaut()[::4, ::4].copy()  # 128 x 128


def mean_error(a, b) -> float:
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


def moving_frames(count: int = 6) -> np.ndarray:
    return np.stack([np.roll(CAT[:96, :128], 3 * i, axis=1) for i in range(count)])


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff", "gif", "avif"])
def test_pictures_of_usual_formats_are_read(tmp_path, suffix):
    path = tmp_path / f"cat.{suffix}"
    Image.fromarray(CAT).save(path)
    picture = media.load_picture(path)
    assert picture.shape == CAT.shape and picture.dtype == np.uint8
    assert mean_error(picture, CAT) < 6


def test_every_colour_mode_becomes_the_rgb_a_person_sees(tmp_path):
    image = Image.fromarray(CAT)
    grey = np.array(image.convert("L"))
    grey_rgb = np.repeat(grey[..., None], 3, -1)
    image.convert("L").save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "grey16.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "grey16.tiff")
    image.convert("1").save(tmp_path / "bits.png")
    image.quantize(256).save(tmp_path / "palette.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    for name, wanted, bound in (
        ("grey.png", grey_rgb, 0),
        ("grey16.png", grey_rgb, 0),
        ("grey16.tiff", grey_rgb, 0),
        ("bits.png", np.repeat(np.array(image.convert("1").convert("L"))[..., None], 3, -1), 0),
        ("palette.png", np.array(image.quantize(256).convert("RGB")), 0),
        ("cmyk.jpg", CAT, 3),
    ):
        assert mean_error(media.load_picture(tmp_path / name), wanted) <= bound, name


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    path = tmp_path / "alpha.png"
    if mode == "P":
        image = Image.new("P", (4, 2), 0)
        image.putpalette([10, 20, 30, 200, 0, 0])
        image.putpixel((0, 0), 1)
        image.save(path, transparency=0)
        wanted, kept = (255, 255, 255), (200, 0, 0)
    elif mode == "RGB":
        image = Image.new("RGB", (4, 2), (1, 2, 3))
        image.putpixel((0, 0), (200, 0, 0))
        image.save(path, transparency=(1, 2, 3))
        wanted, kept = (255, 255, 255), (200, 0, 0)
    else:
        colour = (100, 50, 0, 51) if mode == "RGBA" else (100, 51)  # 51 is 20 % opaque
        image = Image.new(mode, (4, 2), colour)
        image.putpixel((0, 0), (*colour[:-1], 255))
        image.save(path)
        wanted = tuple(round(0.2 * c + 0.8 * 255) for c in ((100, 50, 0) if mode == "RGBA" else (100,) * 3))
        kept = (100, 50, 0) if mode == "RGBA" else (100,) * 3
    picture = media.load_picture(path)
    np.testing.assert_array_equal(picture[0, 0], kept)
    np.testing.assert_array_equal(picture[1, 3], wanted)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    stored = {  # how a camera held that way stores the upright picture
        1: CAT,
        2: CAT[:, ::-1],
        3: CAT[::-1, ::-1],
        4: CAT[::-1],
        5: CAT.transpose(1, 0, 2),
        6: np.rot90(CAT),
        7: CAT[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(CAT, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "cat.png", exif=exif)
    np.testing.assert_array_equal(media.load_picture(tmp_path / "cat.png"), CAT)


def test_the_main_picture_of_a_camera_file_is_taken(tmp_path):
    Image.fromarray(CAT).save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[Image.fromarray(CAT[::-1])])
    assert mean_error(media.load_picture(tmp_path / "phone.jpg"), CAT) < 5


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_an_animated_picture_is_refused(tmp_path, suffix):
    path = tmp_path / f"many.{suffix}"
    Image.fromarray(CAT).save(path, save_all=True, append_images=[Image.fromarray(CAT[::-1].copy())] * 2)
    with pytest.raises(InputError, match=r"many\..*holds [23] pictures.*Save one"):
        media.load_picture(path)


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    Image.fromarray(CAT[..., 0].astype(np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(CAT[..., 0].astype(np.int32)).save(tmp_path / "int.tiff")
    for name, message in (
        ("missing.png", "No picture at"),
        (".", "is a folder"),
        ("empty.png", "not a picture"),
        ("text.jpg", "not a picture"),
        ("photo.heic", "not a picture.*Save it as a JPEG"),
        ("float.tiff", "float.tiff.*32 bits"),
        ("int.tiff", "int.tiff.*32 bits"),
    ):
        with pytest.raises(InputError, match=message):
            media.load_picture(tmp_path / name)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_a_truncated_picture_is_refused(tmp_path, suffix):
    whole = io.BytesIO()
    Image.fromarray(CAT).save(whole, {"jpg": "jpeg"}.get(suffix, suffix))
    for share in (0.001, 0.02, 0.5, 0.9):
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(whole.getvalue()[: int(len(whole.getvalue()) * share)])
        with pytest.raises(InputError, match="truncated or broken|not a picture"):
            media.load_picture(path)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.fromarray(CAT).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match="more than 2000 pixels"):
        media.load_picture(tmp_path / "large.png")


def test_crop_keeps_the_middle_and_pad_keeps_all():
    stripes = np.zeros((60, 180, 3), np.uint8)
    stripes[:, :60, 0] = stripes[:, 60:120, 1] = stripes[:, 120:, 2] = 200
    cropped = media.fit_picture(stripes, 32, 32)
    np.testing.assert_array_equal(cropped[:, 4:-4], np.broadcast_to([0, 200, 0], (32, 24, 3)))
    padded = media.fit_picture(stripes, 90, 90, "pad")
    assert not padded[:30].any() and not padded[60:].any()
    np.testing.assert_array_equal(padded[45, [10, 45, 80]], 200 * np.eye(3))
    stretched = media.fit_picture(stripes, 90, 90, "stretch")
    np.testing.assert_array_equal(stretched[[0, 45, 89], [10, 45, 80]], 200 * np.eye(3))


@pytest.mark.parametrize("mode", media.FITS)
def test_fit_gives_the_size_for_any_aspect(mode):
    for height, width in ((300, 451), (1, 1000), (1000, 1), (1, 1), (64, 40)):
        picture = np.full((height, width, 3), 90, np.uint8)
        fitted = media.fit_picture(picture, 64, 40, mode)
        assert fitted.shape == (64, 40, 3) and fitted.dtype == np.uint8
        assert fitted.max() == 90
    np.testing.assert_array_equal(media.fit_picture(CAT, 300, 451, mode), CAT)


@pytest.mark.parametrize("mode", media.FITS)
def test_shrinking_is_antialiased(mode):
    checkerboard = np.indices((256, 256)).sum(0)[..., None].repeat(3, -1) % 2 * 255
    shrunk = media.fit_picture(checkerboard.astype(np.uint8), 60, 60, mode)
    assert abs(float(shrunk.mean()) - 127.5) < 2 and float(shrunk.std()) < 12


def test_a_bad_fit_is_an_input_error():
    with pytest.raises(InputError, match="Did you mean 'crop'"):
        media.fit_picture(CAT, 64, 64, "corp")
    with pytest.raises(InputError, match="0x64"):
        media.fit_picture(CAT, 0, 64)


def test_model_range_round_trip():
    values = np.arange(256, dtype=np.uint8)
    scaled = media.to_model_range(values)
    assert scaled.dtype == np.float32 and scaled[0] == -1 and scaled[-1] == 1
    np.testing.assert_array_equal(media.to_uint8(scaled), values)
    np.testing.assert_array_equal(media.to_uint8(np.array([-3.0, 2.0])), [0, 255])


@pytest.mark.parametrize("size", [224, 48])
def test_clip_pixels_equal_those_of_transformers(size):
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    for picture in (CAT, CAT.transpose(1, 0, 2), ASTRONAUT, CAT[:37, :41], CAT[:41, :37], np.zeros_like(CAT)):
        wanted = processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        pixels = media.clip_pixels(picture, size)
        assert pixels.dtype == np.float32
        np.testing.assert_allclose(pixels, wanted, rtol=0, atol=1e-6)


def test_matched_colours_have_frame_ones_distribution():
    tinted = color.rgb2lab(ASTRONAUT)
    tinted[..., 1:] = tinted[..., 1:] * 0.7 + [4, -6]
    tinted = np.round(color.lab2rgb(tinted) * 255).astype(np.uint8)
    frames = np.stack([ASTRONAUT, tinted, ASTRONAUT])
    matched = media.match_colours(frames)
    assert matched.dtype == np.uint8
    np.testing.assert_array_equal(matched[0], ASTRONAUT)
    assert mean_error(matched[2], ASTRONAUT) < 0.5  # up to rounding nothing is changed where nothing is to be
    reference, before, after = (color.rgb2lab(frame) for frame in (ASTRONAUT, tinted, matched[1]))
    quantiles = np.linspace(0, 1, 51)[1:-1]
    for channel in (1, 2):
        target, was, now = (np.quantile(lab[..., channel], quantiles) for lab in (reference, before, after))
        assert np.abs(now - target).mean() < 0.1 * np.abs(was - target).mean()
    assert np.abs(after[..., 0] - before[..., 0]).mean() < 0.3  # lightness, of 100


def decode(content: bytes):
    with av.open(io.BytesIO(content)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        stream = container.streams.video[0]
        told = SimpleNamespace(  # read while the container is open
            **{name: getattr(stream, name) for name in ("average_rate", "duration", "time_base")},
            codec_context=stream.codec_context,
            pix_fmt=stream.pix_fmt,
        )
        return told, np.stack(frames)


@pytest.mark.parametrize("fps", [8, 7.5, 30000 / 1001])
@pytest.mark.parametrize("count", [1, 6])
def test_a_video_decodes_to_its_frames(count, fps):
    frames = moving_frames(count)
    content = media.encode_video(frames, fps)
    stream, decoded = decode(content)
    assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
    assert float(stream.average_rate) == pytest.approx(fps, rel=1e-6)
    assert float(stream.duration * stream.time_base) == pytest.approx(count / fps, rel=1e-3)
    assert decoded.shape == frames.shape
    assert mean_error(decoded, frames) < 3
    assert content.index(b"moov") < content.index(b"mdat")  # plays while it loads


def test_a_video_keeps_its_colours_and_says_which_they_are():
    for colour in ((200, 30, 30), (30, 200, 30), (30, 30, 200), (0, 0, 0), (255, 255, 255)):
        stream, decoded = decode(media.encode_video(np.full((2, 64, 64, 3), colour, np.uint8), 8))
        assert mean_error(decoded, np.full((2, 64, 64, 3), colour)) < 3
    context = stream.codec_context
    assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)


def test_the_index_of_a_long_video_fits():
    stream, decoded = decode(
        media.encode_video(np.random.default_rng(0).integers(0, 255, (400, 16, 16, 3), np.uint8), 24)
    )
    assert len(decoded) == 400


def test_equal_frames_make_equal_videos_whatever_memory_held_before():
    make = (
        "import hashlib, numpy as np; from skimage.filters import gaussian; from i2v_jax import media;"
        "noise = gaussian(np.random.default_rng(0).normal(size=(8, 64, 64, 3)), (1, 2, 2, 0));"
        "frames = np.uint8(255 * (noise - noise.min()) / np.ptp(noise));"
        "print(hashlib.sha256(media.encode_video(frames, 8)).hexdigest())"
    )
    made = {  # glibc fills what it allocates with a byte
        subprocess.run(
            [sys.executable, "-c", make], env=os.environ | {"MALLOC_PERTURB_": byte}, capture_output=True, check=True
        ).stdout
        for byte in ("0", "85", "170")
    }
    assert len(made) == 1


@pytest.mark.parametrize("fps", [8, 12, 24, 30])
def test_a_gif_shows_its_frames_for_the_right_time(fps):
    frames = moving_frames(12)
    with Image.open(io.BytesIO(media.encode_gif(frames, fps))) as image:
        assert image.n_frames == 12 and image.info["loop"] == 0
        times, shown = [], []
        for index in range(12):
            image.seek(index)
            times.append(image.info["duration"])
            shown.append(np.array(image.convert("RGB")))
    assert sum(times) == pytest.approx(12_000 / fps, abs=10)
    assert max(times) - min(times) <= 10
    assert mean_error(np.stack(shown), frames) < 6


@pytest.mark.parametrize("encode", [media.encode_video, media.encode_gif])
def test_what_is_no_video_is_refused(encode):
    frames = moving_frames(2)
    for bad, fps, message in (
        (frames, 0, "fps"),
        (frames, float("nan"), "fps"),
        (frames[:0], 8, "frames"),
        (frames[0], 8, "frames"),
        (frames.astype(np.float32), 8, "float32"),
    ):
        with pytest.raises(InputError, match=message):
            encode(bad, fps)
    with pytest.raises(InputError, match="even sides.*95x128"):
        media.encode_video(frames[:, 1:], 8)


def test_a_contact_sheet_shows_the_picture_and_then_the_frames():
    frames = np.stack([np.full((40, 60, 3), 10 * i, np.uint8) for i in range(7)])
    sheet = media.contact_sheet(np.full((90, 90, 3), 200, np.uint8), frames, gap=2)
    assert sheet.shape == (3 * 40 + 4, 3 * 60 + 4, 3)
    seen = [sheet[row * 42 + 20, column * 62 + 30, 0] for row in range(3) for column in range(3)]
    assert seen == [200, 0, 10, 20, 30, 40, 50, 60, 255]
    assert np.all(sheet[40:42] == 255) and np.all(sheet[:, 60:62] == 255)
    few = media.contact_sheet(CAT, frames, max_frames=3, tile=30)
    assert few.shape == (2 * 20 + 4, 2 * 30 + 4, 3)
    assert [few[10, 49, 0], few[34, 15, 0], few[34, 49, 0]] == [0, 30, 60]


def test_written_files_read_back(tmp_path):
    frames = moving_frames(2)
    media.write_png(tmp_path / "new" / "folder" / "sheet.png", CAT)
    media.write_video(tmp_path / "video.mp4", frames, 8)
    media.write_gif(tmp_path / "video.gif", frames, 8)
    np.testing.assert_array_equal(media.load_picture(tmp_path / "new" / "folder" / "sheet.png"), CAT)
    assert decode((tmp_path / "video.mp4").read_bytes())[1].shape == frames.shape
    assert (tmp_path / "video.gif").read_bytes() == media.encode_gif(frames, 8)
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "video.gif").stat().st_mode == plain.stat().st_mode


def test_nothing_that_is_there_is_lost(tmp_path):
    (tmp_path / "b.txt").write_text("old")
    with pytest.raises(InputError, match="b.txt' is there already"):
        media.write_files({tmp_path / "a.txt": b"new", tmp_path / "b.txt": b"new"})
    assert [path.name for path in tmp_path.iterdir()] == ["b.txt"]
    assert (tmp_path / "b.txt").read_text() == "old"
    media.write_files({tmp_path / "b.txt": b"new"}, overwrite=True)
    assert (tmp_path / "b.txt").read_text() == "new"


def test_no_space_leaves_nothing_half_written(tmp_path):
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        with pytest.raises(InputError, match=f"No space for 10001 bytes in {str(tmp_path)!r}"):
            media.write_files({tmp_path / "small": b"1", tmp_path / "large": bytes(10_000)})
        with pytest.raises(InputError, match=f"Nothing can be written in {str(tmp_path)!r}: File too large"):
            media.check_folder(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").touch()
    for call in (
        lambda: media.write_files({tmp_path / "file" / "a.png": b""}),
        lambda: media.check_folder(tmp_path / "file"),
        lambda: media.check_folder(tmp_path / "file" / "new"),
        lambda: media.check_folder("/proc/nowhere"),
    ):
        with pytest.raises(InputError, match="Choose another folder"):
            call()
    with pytest.raises(InputError, match="'gs://bucket/videos' is an address"):
        media.check_folder("gs://bucket/videos")
    media.check_folder(tmp_path / "new" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_free_stem_is_free_for_every_suffix(tmp_path):
    suffixes = (".mp4", "-sheet.png")
    assert media.free_stem(tmp_path / "new", "cat", suffixes) == tmp_path / "new" / "cat"
    (tmp_path / "cat.mp4").touch()
    (tmp_path / "cat-2-sheet.png").touch()
    assert media.free_stem(tmp_path, "cat", suffixes) == tmp_path / "cat-3"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat-2-sheet.png", "cat.mp4"]


def test_the_bundled_picture_is_small_and_reads():
    path = Path(__file__).resolve().parent.parent / "assets" / "cat.jpg"
    assert path.stat().st_size < 300_000
    assert media.load_picture(path).shape == (300, 451, 3)


def test_torch_is_not_imported():
    """Nor by what training imports, such as the tokenizer and tensorboardX; it can be later."""
    check = "import sys, i2v_jax.cli.train as it; from i2v_jax.models import tokenizer; from i2v_jax import media; "
    check += "print({'torch', 'transformers', 'diffusers'} & set(sys.modules), it.Monitor.__module__)"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout
    assert found.strip() == "set() i2v_jax.training.monitor"
