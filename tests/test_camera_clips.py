"""Clips that a camera makes of pictures: they go as their captions say, and by as much as is said of them."""

import numpy as np
import pytest
from PIL import Image

from i2v_jax.data import camera, loader
from i2v_jax.data.decoding import BadClip, Cut
from i2v_jax.data.small_world.scene import CAMERA_MOTIONS
from i2v_jax.data.sources import check_files, open_source
from i2v_jax.data.stored import is_stored
from i2v_jax.errors import InputError
from i2v_jax.evaluation import direction, flow
from tests import train_runs

CUT = Cut(6, 4, 48, 48)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two pictures of soft noise, wide and tall."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, (width, height) in enumerate(((160, 100), (90, 120))):
        noise = np.random.default_rng(number).integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
        Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"thing number {number}, ink")
    return folder


def clip_of(source, number, cut=CUT, seed=0):
    return source[number].video(cut, np.random.default_rng(seed))


@pytest.mark.parametrize("number", range(12))
def test_a_clip_goes_as_its_caption_says(number, pictures):
    """By optical flow, and in the small world's words."""
    clip, name = open_source(f"camera:{pictures}")[number], list(CAMERA_MOTIONS)[number % 6]
    assert clip.caption == f"thing number {number // 6}, the camera {name}, ink"
    assert clip.id == f"{number // 6}, {name}"
    frames = clip.video(CUT, np.random.default_rng(0))
    assert frames.video.shape == (6, 48, 48, 3) and frames.video.dtype == np.uint8
    flows = flow.estimated(frames.video, flow.dis)[0]
    moved = direction.movements(flows, np.ones((1, 48, 48), bool))[0]
    effect = CAMERA_MOTIONS[name]
    found = dict(right=moved.right, down=moved.down, growth=moved.growth)
    wanted = {axis: getattr(effect, axis) for axis in found}
    for axis, sign in wanted.items():
        assert found[axis] * sign > 0.03 if sign else abs(found[axis]) < 0.02, (axis, moved)


@pytest.mark.parametrize("size", [(96, 96), (200, 80), (70, 150)])
def test_a_move_goes_as_far_as_is_said(size, tmp_path):
    """On a picture whose colours are coordinates: red grows to the right, green downwards, by 1 a pixel."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8)).save(tmp_path / "a.png")

    for name, move in camera.MOVES.items():
        video = camera.read_moved(tmp_path / "a.png", move, Cut(8, 1, 40, 32), np.random.default_rng(1)).video
        sides = video.astype(float)[:, 5:-5, 5:-5]  # what lies beyond the picture's rim is repeated
        wide, tall = np.ptp(sides[..., 0], (1, 2)) * 32 / 21, np.ptp(sides[..., 1], (1, 2)) * 40 / 29
        np.testing.assert_allclose(tall / wide, 40 / 32, rtol=0.1)
        x, y = sides[..., 0].mean((1, 2)), sides[..., 1].mean((1, 2))
        if move.nearer:
            assert 1.4 < (wide[0] / wide[-1]) ** move.nearer < 1.65, name
            assert max(np.ptp(x), np.ptp(y)) < 1
            continue
        gone = (x[-1] - x[0]) / wide.mean() * move.right + (y[-1] - y[0]) / tall.mean() * move.down
        assert 0.23 < gone < 0.32, name
        steps = np.diff(x + y)
        np.testing.assert_allclose(steps, steps.mean(), atol=0.8)  # of 255: an even pace


@pytest.mark.parametrize(
    "there, back", [("pans left", "pans right"), ("pans up", "pans down"), ("zooms in", "zooms out")]
)
def test_a_move_and_its_opposite_show_the_same_frames(there, back, pictures):
    source, names = open_source(f"camera:{pictures}"), list(camera.MOVES)
    first, second = (clip_of(source, names.index(name)).video for name in (there, back))
    np.testing.assert_array_equal(first, second[::-1])
    assert not np.array_equal(first, second)


def test_batches_are_made_of_them(pictures):
    config = dict(
        source=f"camera:{pictures}", videos=None, frames=4, stride=1, height=32, width=48, workers=0, buffer=1,
        max_bad=0.0, bad_list="",
    )  # fmt: skip
    batches = loader.make(config, 12, seed=0)
    batch, ids = next(batches)
    assert batch["video"].shape == (12, 4, 32, 48, 3) and len(set(ids)) == 12
    assert not is_stored(config["source"])  # whose folder stands behind a colon: that is no address
    source = open_source(config["source"])
    assert sorted(ids) == sorted(source.id_of(number) for number in range(len(source)))


def test_what_cannot_be_filmed_is_refused(pictures, tmp_path):
    train_runs.write_clips(tmp_path / "videos", 1)
    with pytest.raises(InputError, match=r"camera:.*videos.*wanted a folder of pictures.*moves of itself"):
        open_source(f"camera:{tmp_path / 'videos'}")
    with pytest.raises(InputError, match="camera:small_world:train"):
        open_source("camera:small_world:train")
    with pytest.raises(InputError, match="No data at"):
        open_source(f"camera:{tmp_path / 'nothing'}")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes((pictures / "0.png").read_bytes()[:300])
    with pytest.raises(InputError, match="1 of 1 clips looked at cannot be used"):
        check_files(open_source(f"camera:{broken}"))  # it has no caption
    with pytest.raises(BadClip, match="not a picture"):
        clip_of(open_source(f"camera:{broken}"), 0)
    (broken / "a.txt").write_text("a thing")
    source = open_source(f"camera:{broken}")
    assert source[5].caption == "a thing, the camera zooms out"
    (broken / "a.png").unlink()
    with pytest.raises(BadClip, match="missing file"):
        clip_of(source, 0)
