"""Upscalers equal spandrel's recorded outputs; their files go in and out; tiles do not show; videos become larger."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from convert.__main__ import main as convert
from i2v_jax import media
from i2v_jax.data import decoding
from i2v_jax.errors import InputError
from i2v_jax.finishing import finish, tiles, upscale
from i2v_jax.models import upscaler
from i2v_jax.weights.whole import load_network
from tests import finish_runs, upscalers
from tests.helpers import relative_error

RECORDED = Path(__file__).parent / "data" / "oracles" / "upscalers" / "spandrel.safetensors"
SCALES = {kind: int(kind[-1]) if kind[-2] == "x" else 4 for kind in upscalers.SHAPES}


def write(folder, kind, nest="params_ema", more=None):
    """A pickle as the community has it: Real-ESRGAN's below a name, ESRGAN's plain."""
    tensors = {name: torch.from_numpy(array) for name, array in upscalers.state(kind).items()}
    path = folder / "upscaler.pth"
    torch.save(tensors if kind.startswith("ESRGAN") else {nest: tensors, **(more or {})}, path)
    return path


@pytest.mark.parametrize("kind", upscalers.SHAPES)
def test_equals_spandrel(kind, tmp_path, measured):
    config, parameters = load_network("upscaler", write(tmp_path, kind), convolution="winograd")
    assert config.scale == SCALES[kind] and config.compact == kind.startswith("SRVGG")
    made = upscaler.Upscaler(config).apply({"params": parameters}, upscalers.pictures())
    wanted = load_file(RECORDED)[kind.replace(" ", "_").replace("'", "")]
    measured(f"upscaler {kind} against spandrel", relative_error(made[:1], wanted), 1e-5)


@pytest.mark.parametrize("kind", upscalers.SHAPES)
def test_files_go_in_and_out(kind, tmp_path):
    """The same names, nesting and bytes again."""
    source, ours = write(tmp_path, kind), tmp_path / "ours.safetensors"
    assert convert(["import", str(source), str(ours)]) == 0
    to = "esrgan" if kind.startswith("ESRGAN") else "real-esrgan"
    assert convert(["export", str(ours), str(tmp_path / "again.pth"), "--to", to]) == 0
    before, after = (torch.load(path, weights_only=True) for path in (source, tmp_path / "again.pth"))
    if to == "real-esrgan":
        assert [*before] == [*after] == ["params_ema"]
        before, after = before["params_ema"], after["params_ema"]
    if kind == "ESRGAN's code":  # whose names are those of ESRGAN's first files now
        before = dict(zip(sorted(after), (before[name] for name in sorted(before))))
    assert after.keys() == before.keys()
    assert kind == "ESRGAN's code" or all(torch.equal(after[name], before[name]) for name in before)


def test_averaged_weights_are_taken_of_both(tmp_path):
    plain = {name: torch.zeros_like(torch.from_numpy(x)) for name, x in upscalers.state("SRVGGNet x2").items()}
    _, parameters = load_network("upscaler", write(tmp_path, "SRVGGNet x2", more={"params": plain}))
    assert np.asarray(parameters["body_0"]["kernel"]).any()
    _, parameters = load_network("upscaler", write(tmp_path, "SRVGGNet x2", nest="params"))
    assert np.asarray(parameters["body_0"]["kernel"]).any()


def test_inspect_names_it(tmp_path, capsys):
    assert convert(["inspect", str(write(tmp_path, "Real-ESRGAN x2"))]) == 0
    out = capsys.readouterr().out
    assert "RRDBNet, an upscaler by 2" in out


# Tiles.


def picture(height=40, width=57):
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 5), np.cos(y / 7), np.sin((x + y) / 9)], -1)
    return np.round(127.5 * (1 + waves)).astype(np.uint8)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write(tmp_path_factory.mktemp("weights"), "SRVGGNet x2")


def test_a_frame_no_larger_than_a_tile_is_enlarged_whole(small):
    config, parameters = load_network("upscaler", small)
    whole = np.asarray(upscaler.upscale(config, parameters, np.float32(picture())[None] / 255))[0]
    np.testing.assert_array_equal(
        upscale.in_tiles(config, parameters, picture(), 64, 8), np.round(255 * whole).astype(np.uint8)
    )


def test_tiles_do_not_show(small):
    """The network sees six pixels about it: with as much overlap, tiles are what the whole is, but at their edges."""
    config, parameters = load_network("upscaler", small)
    whole = upscale.in_tiles(config, parameters, picture(), 64, 8).astype(int)
    tiled = upscale.in_tiles(config, parameters, picture(), 24, 11).astype(int)
    assert tiled.shape == (80, 114, 3)
    apart = np.abs(tiled - whole)
    assert apart.mean() < 0.6 and np.abs(np.diff(tiled - whole, axis=1)).max() <= 8


@pytest.mark.parametrize("length", [16, 17, 31, 32, 33, 100, 257])
@pytest.mark.parametrize("side, overlap", [(16, 0), (16, 7), (32, 4)])
def test_tiles_cover_an_axis(length, side, overlap):
    side = min(side, length)
    starts = tiles.starts(length, side, overlap)
    assert starts[0] == 0 and starts[-1] == length - side
    assert all(0 < b - a <= side - overlap for a, b in zip(starts, starts[1:]))


def test_several_devices_make_the_same(small):
    config, parameters = load_network("upscaler", small)
    assert len(jax.devices()) == 8
    pieces = [np.float32(picture(16, 16) + n) / 300 for n in range(11)]
    each = [np.asarray(upscaler.upscale(config, parameters, piece[None]))[0] for piece in pieces]
    made = [*tiles.in_batches(functools.partial(upscaler.upscale, config, parameters), pieces)]
    assert len(made) == 11
    np.testing.assert_allclose(made, each, atol=1e-6)


# The command.


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    media.write_video(path, np.stack([picture(32, 48)] * 3), 8)
    return path


@pytest.mark.parametrize("by, scale", [("weights", 2), ("lanczos", 3)])
def test_a_video_becomes_larger(by, scale, small, video, tmp_path):
    by = str(small) if by == "weights" else by
    finish.finish(finish_runs.config(video, tmp_path / "large.mp4", upscale__by=by, upscale__factor=3))
    frames = decoding.read_frames(tmp_path / "large.mp4", range)
    assert frames.shape == (3, 32 * scale, 48 * scale, 3)
    if by == "lanczos":
        shown = decoding.read_frames(video, range)[0]
        assert np.abs(frames[0].astype(int) - media.fit_picture(shown, 96, 144, "stretch")).mean() < 3


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(upscale__by="lanczos", upscale__factor=5), "upscale.factor=5: wanted one of 2, 3, 4, 8"),
        (dict(upscale__by="lancsoz"), "lancsoz"),
        (dict(upscale__by="{small}", upscale__tile=20, upscale__overlap=10), "more than twice the overlap"),
        (dict(upscale__by="{here}/one.safetensors"), "does not enlarge pictures"),
        (dict(upscale__by="{here}/other.safetensors"), "holds no upscaler"),
        (dict(upscale__by="{small}", upscale__dtype="float64"), "dtype='float64'"),
    ],
)
def test_what_cannot_enlarge_is_said(changes, message, small, video, tmp_path):
    save_file(upscalers.state("ESRGAN x1"), tmp_path / "one.safetensors")
    save_file({"conv_in.weight": np.zeros((8, 4, 3, 3), np.float32)}, tmp_path / "other.safetensors")
    names = dict(here=tmp_path, small=small)
    changes = {key: it.format(**names) if isinstance(it, str) else it for key, it in changes.items()}
    with pytest.raises(InputError, match=message):
        finish.finish(finish_runs.config(video, tmp_path / "large.mp4", **changes))
    assert not (tmp_path / "large.mp4").exists()
