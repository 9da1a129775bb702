"""Files of long videos: the same as those of short ones, written as frames come; going on from a video."""

import errno
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageSequence

from i2v_jax import media
from i2v_jax.errors import InputError
from i2v_jax.sampling import batches, going_on, inputs, record, writing
from i2v_jax.sampling.settings import Settings

COUNT, FPS = 70, 7.3


def frames(count=COUNT, size=(32, 48)):
    """A square that moves over a shaded background."""
    shade = np.linspace(0, 255, size[1]).astype(np.uint8)
    for number in range(count):
        frame = np.zeros((*size, 3), np.uint8)
        frame[..., 0], frame[..., 1] = shade, number
        frame[number % size[0] :, :10, 2] = 250
        yield frame


def written(folder, given=None, count=COUNT):
    picture = next(frames())
    return writing.write(folder / "cat", batches.SUFFIXES, picture, given or frames(), count, FPS, {"seed": 1})


def test_files_of_a_long_video_are_those_of_a_short_one(tmp_path):
    """mp4 and contact sheet to the bit; the GIF's frames are the same pictures for the same times."""
    stem, held = written(tmp_path / "new" / "folder"), np.stack(list(frames()))
    assert sorted(path.name for path in stem.parent.iterdir()) == ["cat.gif", "cat.json", "cat.mp4", "cat.png"]
    assert stem.with_suffix(".mp4").read_bytes() == media.encode_video(held, FPS)
    sheet = media.encode_png(media.contact_sheet(held[0], held))
    assert stem.with_suffix(".png").read_bytes() == sheet
    assert json.loads(stem.with_suffix(".json").read_text()) == {"seed": 1}
    (tmp_path / "held.gif").write_bytes(media.encode_gif(held, FPS))
    seen = []
    for path in (stem.with_suffix(".gif"), tmp_path / "held.gif"):
        with Image.open(path) as image:
            assert image.info["loop"] == 0
            every = [(frame.info["duration"], frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
        seen.append(every)
    ours, theirs = seen
    assert len(ours) == COUNT and sum(time for time, _ in ours) == sum(time for time, _ in theirs)
    assert [time for time, _ in ours] == [time for time, _ in theirs]
    for (_, one), (_, other) in zip(ours, theirs):
        np.testing.assert_array_equal(one, other)
    assert written(stem.parent).name == "cat-2"


def test_frames_are_written_as_they_come(tmp_path):
    """When the last frame is asked for, all but a few before it are on the disk already, and none is held."""
    count, size, found = 200, (64, 64), []

    def watched():
        for number, frame in enumerate(frames(count, size)):
            if number == count - 1:
                found.extend(path.stat().st_size for path in tmp_path.rglob("*.mp4"))
            yield frame

    stem = writing.write(tmp_path / "cat", batches.SUFFIXES, next(frames()), watched(), count, FPS, {})
    assert found and found[0] > 0.5 * stem.with_suffix(".mp4").stat().st_size


@pytest.mark.parametrize("what", ["frames", "gif", "fsync"])
def test_nothing_half_written_is_left(tmp_path, what, monkeypatch):
    def broken():
        yield from list(frames())[:50]
        raise InputError("The VAE decodes to numbers that are not finite.")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    given = broken() if what == "frames" else frames()
    if what == "gif":
        monkeypatch.setattr(media, "gif_encoder", full)
    if what == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="not finite" if what == "frames" else "No space in .*Free some"):
        written(tmp_path / "new" / "folder", given)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="60 frames were made of a video of 70"):
        written(tmp_path, frames(60))
    assert list(tmp_path.iterdir()) == []


def test_a_video_is_written_by_its_length(tmp_path, monkeypatch):
    """Up to 64 frames as ever; with join, the frames of the video before stand before the new ones."""
    monkeypatch.setattr(record, "about", lambda config, weights: {})
    before = tmp_path / "before.mp4"
    media.write_video(before, np.stack(list(frames(6))), FPS)
    settings = Settings(frames=5, height=32, width=48, fit="crop")
    config = SimpleNamespace(fps=FPS, join=True, get=lambda key: True)
    video = batches.Video(1, SimpleNamespace(picture=before), config, settings, tmp_path / "out")
    start = going_on.load_start(before)
    new = [start, *(np.full((32, 48, 3), 40 * number, np.uint8) for number in range(1, 5))]
    stem = batches.write(video, iter(new), {})
    joined = list(going_on.frames_of(f"{stem}.mp4", 32, 48, "crop"))
    assert len(joined) == 6 + 4
    for number, frame in enumerate(frames(6)):
        assert np.abs(joined[number].astype(int) - frame).mean() < 8
    for number in range(1, 5):
        assert np.abs(joined[5 + number].astype(int) - 40 * number).mean() < 8


def test_the_last_frame_of_a_video_is_the_picture(tmp_path):
    shown = np.stack(list(frames(40)))
    media.write_video(tmp_path / "clip.mp4", shown, FPS)
    start = going_on.load_start(tmp_path / "clip.mp4")
    assert np.abs(start.astype(int) - shown[-1]).mean() < 8 < np.abs(start.astype(int) - shown[0]).mean()
    (given,), _, _ = inputs.batch_of(tmp_path / "clip.mp4", "a cat", 1)
    np.testing.assert_array_equal(given, start)
    every = list(going_on.frames_of(tmp_path / "clip.mp4", 16, 24, "crop"))
    assert len(every) == going_on.length(tmp_path / "clip.mp4") == 40 and every[0].shape == (16, 24, 3)
    np.testing.assert_array_equal(every[-1], media.fit_picture(start, 16, 24))


def test_videos_that_cannot_be_gone_on_from(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(InputError, match="text.mp4' cannot be gone on from"):
        going_on.load_start(tmp_path / "text.mp4")
    with pytest.raises(InputError, match="No video at .*none.mp4"):
        going_on.load_start(tmp_path / "none.mp4")
    with pytest.raises(InputError, match="join=True, and 'cat.jpg' is no video"):
        going_on.check("cat.jpg", True)
    going_on.check("cat.jpg", False)
