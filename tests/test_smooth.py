"""Videos with more frames a second: what lies between, scenes, loops, the command, bad input."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from i2v_jax import media
from i2v_jax.data import decoding
from i2v_jax.errors import InputError
from i2v_jax.finishing import finish, smooth
from i2v_jax.models import ifnet
from i2v_jax.weights.whole import load_network
from tests import finish_runs, ifnets


def waves(right=0.0, height=96, width=128):
    """A picture of smooth waves, moved to the right by pixels."""
    y, x = np.mgrid[:height, :width].astype(float)
    x = x - right
    turns = [np.sin(x / 6) * np.cos(y / 9), np.cos((x + y) / 8), np.sin((x - 2 * y) / 13)]
    return np.round(127.5 + 100 * np.stack(turns, -1)).astype(np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "rife46.pth"
    torch.save({name: torch.from_numpy(array) for name, array in ifnets.state("4.6").items()}, path)
    return path


def test_flow_finds_what_lies_between():
    """Waves that move by eight pixels have moved by two, four and six; a blend alone would not have."""
    first, second, times = waves(), waves(8), (0.25, 0.5, 0.75)
    for t, made in zip(times, smooth.by_flow(first, second, times), strict=True):
        wanted = waves(8 * t).astype(float)
        inside = slice(12, -12)
        error = np.abs(made - wanted)[inside, inside].mean()
        blend = np.abs((1 - t) * first + t * second - wanted)[inside, inside].mean()
        assert error < 2 and error < blend / 3


@pytest.mark.parametrize("tile, overlap", [(2048, 128), (64, 24)])
def test_a_network_gives_its_own_frames(tile, overlap, weights):
    """Whole, they are the network's; in tiles they are nearly so, and of the same size."""
    config, parameters = load_network("ifnet", weights)
    pair = [np.float32(frame)[None] / 255 for frame in (waves(), waves(3))]
    between = smooth.of_name(str(weights), 1.0, tile, overlap)
    made = [*between(waves(), waves(3), (0.25, 0.5))]
    for t, frame in zip((0.25, 0.5), made, strict=True):
        whole = np.round(255 * np.asarray(ifnet.between(config, parameters, *pair, np.float32([t])))[0])
        assert frame.shape == (96, 128, 3) and frame.dtype == np.uint8
        # eight devices compile another program, which rounds otherwise
        assert np.abs(frame - whole).max() <= 1 if tile == 2048 else np.abs(frame - whole).mean() < 25
    assert np.abs(made[0].astype(int) - made[1]).mean() > 0.5, "the moment counts"


def mean(first, second, times):
    return [np.round((1 - t) * first + t * second).astype(np.uint8) for t in times]


def plain(*values):
    """Frames of the same noise at different brightness: alike, but told apart."""
    noise = np.random.default_rng(0).integers(0, 100, (40, 40, 3))
    return [(noise + value).astype(np.uint8) for value in values]


def shades(found):
    lowest = plain(0)[0].astype(int)
    return [int(np.round((frame - lowest).mean())) for frame, _ in found]


def test_each_frame_becomes_as_many():
    assert shades(smooth.smoothed(plain(0, 40, 80), mean, 4, 0.2)) == [0, 10, 20, 30, 40, 50, 60, 70, 80, 80, 80, 80]
    assert shades(smooth.smoothed(plain(0, 40), mean, 2, 0.2, loop=True)) == [0, 20, 40, 20]
    assert shades(smooth.smoothed(plain(7), mean, 3, 0.2)) == [7, 7, 7]


def test_scenes_end_where_frames_are_unlike():
    other = [255 - frame[::-1] for frame in plain(0)]
    found = [*smooth.smoothed([*plain(0, 40), *other], mean, 2, 0.2)]
    assert [is_cut for _, is_cut in found] == [False, False, True, False, False, False]
    np.testing.assert_array_equal(found[3][0], found[2][0])
    assert not any(is_cut for _, is_cut in smooth.smoothed([*plain(0, 40), *other], mean, 2, 0.0))


# The command.


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Two scenes of two frames."""
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    frames = [waves(), waves(4), *(255 - waves(right)[:, ::-1] for right in (0, 4))]
    media.write_video(path, np.stack(frames), 8)
    return path


@pytest.mark.parametrize("by, scale", [("flow", 2), ("{weights}", 1)])
def test_a_video_becomes_smoother(by, scale, weights, video, tmp_path, capsys):
    changes = dict(interpolate__by=by.format(weights=weights), interpolate__factor=4, repeat=2)
    changes |= dict(upscale__by="lanczos") if scale == 2 else {}
    finish.finish(finish_runs.config(video, tmp_path / "smooth.mp4", **changes))
    found = decoding.stream(tmp_path / "smooth.mp4")
    assert (found.count, found.fps) == (2 * 4 * 4, Fraction(32))
    frames = np.stack([*found.frames]).astype(int)
    assert frames.shape[1:] == (96 * scale, 128 * scale, 3)
    assert "scenes end at 0.25, 0.75 s" in capsys.readouterr().out
    frames = frames.reshape(len(frames), 96, scale, 128, scale, 3).mean((2, 4))
    shown = decoding.read_frames(video, range).astype(int)
    # every fourth is a frame of the video, and so are those before a cut
    assert np.abs(frames[:16:4] - shown).mean() < 3 and np.abs(frames[4:8] - shown[1]).mean() < 3
    if by == "flow":
        assert np.abs(frames[2] - waves(2))[12:-12, 12:-12].mean() < 5


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(interpolate__by="flow", interpolate__factor=9), "interpolate.factor=9: wanted 2 to 8"),
        (dict(interpolate__factor=4), "interpolate.factor=4 and no interpolate.by"),
        (dict(interpolate__by="flwo"), "flwo"),
        (dict(interpolate__by="flow", interpolate__cuts=2.0), "interpolate.cuts=2.0"),
        (
            dict(interpolate__by="{weights}", interpolate__scale=0.3),
            "interpolate.scale=0.3: wanted one of 0.25, 0.5",
        ),
        (dict(interpolate__by="{weights}", interpolate__tile=100, interpolate__overlap=50), "more than twice the over"),
        (dict(interpolate__by="{weights}", upscale__by="{weights}"), "holds no upscaler"),
        (dict(interpolate__by="flow", interpolate__factor=8, output="{here}/a.gif"), "A GIF shows 50 frames"),
    ],
)
def test_what_cannot_smooth_is_said(changes, message, weights, video, tmp_path):
    names = dict(here=tmp_path, weights=weights)
    changes = {key: value.format(**names) if isinstance(value, str) else value for key, value in changes.items()}
    with pytest.raises(InputError, match=message):
        finish.finish(finish_runs.config(video, **{"output": tmp_path / "smooth.mp4"} | changes))
    assert not [*tmp_path.iterdir()]


def test_frames_too_small_for_flow_are_said():
    small = waves()[: smooth.SMALLEST, : smooth.SMALLEST]
    assert len([*smooth.by_flow(small, small, (0.5,))]) == 1
    with pytest.raises(InputError, match="too small for optical flow"):
        next(smooth.by_flow(small[1:], small[1:], (0.5,)))
