"""DOVER against recorded runs of the published code: its views, both networks, the scores; its weights in and out."""

import functools
import gc
import hashlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convert.__main__ import main
from i2v_jax.errors import InputError
from i2v_jax.evaluation import dover_views
from i2v_jax.models.dover import DOVER, DOVER_SCALE, EVALCRAFTER_SCALE, PUBLISHED, Maps, normalised, scores
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.video_convnext import depthwise
from i2v_jax.models.video_swin import relative_index
from i2v_jax.weights.assemble import return_freed_memory
from i2v_jax.weights.infer import infer_config
from i2v_jax.weights.whole import load_network
from tests import metric_oracles
from tests.helpers import relative_error
from tests.test_weights import bytes_of

STAGES = {"technical": ("technical_backbone", "layers"), "aesthetic": ("aesthetic_backbone", "stages")}
STAGE = re.compile(r"(technical|aesthetic)_backbone|patch_embed|blocks_0|(layers|stages|downsample)_\d")


def file_of(name, folder):
    path = folder / "DOVER.pth"
    torch.save({key: torch.from_numpy(array) for key, array in metric_oracles.dover_state(name).items()}, path)
    return path


@functools.cache
def loaded(name, convolution="winograd"):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        file = file_of(name, Path(folder))
        metric_oracles.dover_state.cache_clear()
        return load_network("dover", file, convolution=convolution)


@pytest.fixture
def lean():
    """What earlier tests have left is given back before a test that takes gigabytes."""
    loaded.cache_clear()
    jax.clear_caches()
    gc.collect()
    return_freed_memory()


def run(name, convolution="winograd", **views):
    """The maps, and the outputs of stages and first blocks by their paths; of all modules they would be gigabytes."""
    config, parameters = loaded(name, convolution)
    kept = dict(capture_intermediates=lambda module, _: STAGE.fullmatch(module.name or ""), mutable=["intermediates"])
    call = jax.jit(functools.partial(DOVER(config).apply, **kept))
    maps, captured = jax.device_get(call({"params": parameters}, **views))
    return_freed_memory()
    return maps, captured["intermediates"]


def output(captured, *path):
    node = functools.reduce(lambda node, name: node[name], path, captured)
    return np.asarray(node["__call__"][0])


def channels_second(x):
    return np.moveaxis(x, -1, 1)


def strided(x, strides):
    channel, time, space = strides
    return x[:1, ::channel, ::time, ::space, ::space]


def outputs_of(captured, branch):
    """Stages and features under the recordings' names, channels second."""
    backbone, stage = STAGES[branch]
    found = {f"stage{i}": output(captured, backbone, f"{stage}_{i}") for i in range(4)}
    found["features"] = output(captured, backbone)
    if branch == "technical":
        found["patch_embed"] = output(captured, backbone, "patch_embed")
    else:
        found |= {f"down{i}": output(captured, backbone, f"downsample_{i}") for i in range(4)}
    return {name: channels_second(array) for name, array in found.items()}


def check(measured, title, maps, captured, recorded, suffix="", change=lambda name, array: array):
    """Compares all that is recorded of the branches that were run."""
    for branch, ours in maps._asdict().items():
        if ours is None:
            continue
        error = relative_error(ours, recorded[f"{branch}.scores"][: len(ours), 0])
        measured(f"DOVER {title}: {branch} map", error, 1e-4)
        mean = float(np.mean(recorded[f"{branch}.scores"][: len(ours)]))
        measured(f"DOVER {title}: {branch} score", abs(float(ours.mean()) - mean), 1e-5)
        for name, array in outputs_of(captured, branch).items():
            if (key := f"{branch}.{name}{suffix}") in recorded:
                wanted = recorded[key]
                array = change(f"{branch}.{name}", array)[: len(wanted)]
                measured(f"DOVER {title}: {branch} {name}", relative_error(array, wanted[: len(array)]), 1e-4)


def clips_of(view, clips=1):
    """[3, frames, h, w] as our clips."""
    return np.moveaxis(view, 0, -1).reshape(clips, -1, *view.shape[2:], 3)


@pytest.mark.parametrize("convolution", ["xla", "winograd"])
def test_small_networks_are_the_published_codes(convolution, measured):
    recorded = metric_oracles.recorded("dover/dover_small")
    technical = normalised(clips_of(recorded["view.technical"], 2))
    aesthetic = normalised(clips_of(recorded["view.aesthetic"]))
    for name, ours in (("technical", technical), ("aesthetic", aesthetic)):
        wanted = recorded[f"input.{name}.clip0_frame0"]
        np.testing.assert_allclose(np.moveaxis(ours[0, 0], -1, 0), wanted, atol=1e-5)
    maps, captured = run("dover_small", convolution, technical=technical, aesthetic=aesthetic)
    check(measured, f"small, {convolution}", maps, captured, recorded)
    for path, name in (("layers_0", "stage0.block0"), ("layers_3", "stage3.block0")):
        block = output(captured, "technical_backbone", path, "blocks_0")
        measured(f"DOVER small: technical {name}", relative_error(block, recorded[f"technical.{name}"]), 1e-4)
    block = channels_second(output(captured, "aesthetic_backbone", "stages_3", "blocks_0"))
    measured("DOVER small: aesthetic block", relative_error(block, recorded["aesthetic.stage3.block0"]), 1e-4)
    wanted = metric_oracles.settings("dover/dover_small")["scores"]
    means = [float(part.mean()) for part in maps]
    ours = scores(*means)
    for name, value in wanted["evaluate_a_set"].items():
        measured(f"DOVER small: {name}, of 1", abs(getattr(ours, name) - value), 1e-4)
    theirs = scores(*means, EVALCRAFTER_SCALE)
    for name, value in wanted["evalcrafter"].items():
        measured(f"DOVER small: EvalCrafter's {name}, of 1", abs(getattr(theirs, name) - value), 1e-4)
    assert scores(wanted["technical_raw"], wanted["aesthetic_raw"], DOVER_SCALE).overall == pytest.approx(
        wanted["evaluate_one_video_fused"], abs=1e-12
    )


def test_odd_sizes_are_padded_and_cut_as_published(measured):
    recorded = metric_oracles.recorded("dover/dover_small", "irregular")
    inputs = {name: np.moveaxis(recorded[f"input.{name}"], 1, -1) for name in ("technical", "aesthetic")}
    maps, captured = run("dover_small", **inputs)
    check(measured, "odd sizes", maps, captured, recorded)


def test_the_published_size(measured, lean):
    """Weights by the rule, views of the recorded frames and offsets."""
    recorded, about = metric_oracles.recorded("dover/dover_full"), metric_oracles.settings("dover/dover_full")
    config, _ = loaded("dover_full")
    assert config.branches()[0] == PUBLISHED.branches()[0] and config.head == PUBLISHED.head
    views = metric_oracles.recorded("dover/views", "square_16x512x512")
    video = metric_oracles.video(about["video"])
    offsets = iter([recorded["offsets.h"], recorded["offsets.w"]])
    fragments = dover_views.fragments(
        video, recorded["frames.technical"], dover_views.Fragments(), lambda *_: next(offsets)
    )
    aesthetic = np.repeat(clips_of(views["aesthetic.frames"]), 32, 1)
    clips = np.split(fragments.reshape(3, 32, 224, 224, 3), 3)
    maps, features, captured = [], [], {}
    for clip in clips:
        found, outputs = run("dover_full", technical=normalised(clip))
        maps.append(found.technical)
        features.append(output(outputs, "technical_backbone"))
        captured = captured or outputs  # of a clip's stages the first one's alone are recorded
    captured["technical_backbone"]["__call__"] = [np.concatenate(features)]
    of_picture = run("dover_full", aesthetic=normalised(aesthetic))
    maps = Maps(np.concatenate(maps), of_picture[0].aesthetic)
    captured |= of_picture[1]
    strides = about["strides_channel_time_space"]

    def change(name, array):
        return strided(array, strides[name]) if name != "technical.features" else array[:, ::16, ::4]

    check(measured, "full size", maps, captured, recorded, ".strided", change)
    for name in ("technical", "aesthetic"):
        raw = about["scores"][f"{name}_raw"]
        measured(f"DOVER full size: {name}, raw", abs(float(getattr(maps, name).mean()) - raw), 1e-5)


@pytest.mark.parametrize("name", ["dover_small", "dover_full"])
def test_dover_pth_comes_back_byte_for_byte(name, tmp_path, lean):
    """From itself and from our own file, in which its index tables are made again."""
    state, file = metric_oracles.dover_state(name), file_of(name, tmp_path)
    assert main(["import", str(file), str(tmp_path / "ours.safetensors")]) == 0
    assert main(["import", str(file), str(tmp_path / "bare.safetensors"), "--only", r"dover/(?!.*_index).*"]) == 0
    for number, source in enumerate((file, tmp_path / "ours.safetensors", tmp_path / "bare.safetensors")):
        back = tmp_path / f"{number}.pth"
        assert main(["export", str(source), str(back), "--to", "dover"]) == 0
        read = {key: value.numpy() for key, value in torch.load(back, weights_only=True).items()}
        assert bytes_of(read) == bytes_of(state)
    config, parameters = load_network("dover", tmp_path / "ours.safetensors")
    jax.tree.map(np.testing.assert_array_equal, parameters, load_network("dover", file)[1])
    assert infer_config("dover", {path: leaf.shape for path, leaf in parameter_shapes(config).items()}) == config


def test_a_missing_tensor_is_named(tmp_path):
    state = dict(metric_oracles.dover_state("dover_small"))
    del state["technical_head.fc_last.weight"]
    path = tmp_path / "DOVER.pth"
    torch.save({key: torch.from_numpy(array) for key, array in state.items()}, path)
    with pytest.raises(InputError, match="missing 'technical_head.fc_last.weight'"):
        load_network("dover", path)


# Views.


def test_frames_are_the_published_samplers():
    """Of every recorded count of frames, with the recorded draws."""
    about = metric_oracles.settings("dover/views", "sampling")
    for recorded in about["runs"]:
        settings = about["settings"][recorded["setting"]][recorded["view"]]
        if recorded["view"] == "technical":
            sampling = dover_views.Sampling(settings["num_clips"], settings["clip_len"], settings["frame_interval"])
        else:
            frames = settings["clip_len"] // settings["t_frag"]
            sampling = dover_views.Sampling(
                settings["t_frag"], frames, settings["frame_interval"], settings["num_clips"]
            )
        draws = iter(recorded["draws"])

        def draw(below, shape, draws=draws):
            low, high, values = next(draws)
            assert (low, high, len(values)) == (0, below, *shape)
            return np.array(values)

        found = dover_views.choose_frames(recorded["num_frames"], sampling, draw)
        assert found.tolist() == recorded["indices"]
        assert next(draws, None) is None


@pytest.mark.parametrize("case", ["upsample_20x96x128", "square_16x512x512", "wide_200x256x400"])
def test_views_are_the_published_ones(case, measured):
    about, recorded = (
        metric_oracles.settings("dover/views", "cases")[case],
        metric_oracles.recorded("dover/views", case),
    )
    video = metric_oracles.video(about["video"])
    drawn = iter([recorded[f"offsets.{axis}"] for axis in "hw"][: len(about["draws"]["torch"])])

    def draw(below, shape):
        offsets = next(drawn)
        assert offsets.shape == shape and offsets.max() < below
        return offsets

    technical = dover_views.fragments(video, recorded["frames.technical"], dover_views.Fragments(), draw)
    digest = hashlib.sha256(np.ascontiguousarray(np.moveaxis(technical, -1, 0)).tobytes()).hexdigest()
    exact = "upsampled_size" not in about
    assert (digest == about["technical"]["sha256_uint8"]) == exact
    stored = recorded["technical.frames"]
    places = about["technical"]["stored_frames"][: stored.shape[1]]
    compare(measured, f"{case}, technical", technical[places], stored)
    for name, antialias in (("aesthetic", False), ("aesthetic_antialias", True)):
        if f"{name}.frames" in recorded:
            (place,) = about[name]["stored_frames"]
            view = dover_views.small(video[recorded["frames.aesthetic"][[place]]], 224, 224, antialias)
            bar = 0.03 if antialias and not exact else 0.005  # where exact halves are common
            compare(measured, f"{case}, {name}", view, recorded[f"{name}.frames"], bar)


def compare(measured, title, ours, stored, bar=0.005):
    apart = np.abs(ours.astype(int) - np.moveaxis(stored, 0, -1))
    assert apart.max() <= 1
    measured(f"DOVER view {title}: share of places that differ, by 1 of 255", np.mean(apart > 0), bar)


@pytest.mark.parametrize("shape", [(1, 20, 30, 3), (16, 48, 48, 3), (33, 240, 230, 3)])
def test_a_video_of_any_size_and_length_has_views_that_a_seed_repeats(shape):
    video = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    one, same, other = (dover_views.views(video, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.technical.shape == (3, 32, 224, 224, 3) and one.aesthetic.shape == (1, 32, 224, 224, 3)
    np.testing.assert_array_equal(one.technical, same.technical)
    assert one.technical.any() and (shape[1] < 7 * 33 or not np.array_equal(one.technical, other.technical))


# Parts.


def test_depthwise_convolutions_agree():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 5, 9, 8, 4)).astype(np.float32), rng.normal(size=(3, 7, 7, 1, 4)).astype(np.float32)
    plain, rows = (np.asarray(depthwise(jnp.asarray(x), jnp.asarray(kernel), name)) for name in ("xla", "winograd"))
    weights = torch.from_numpy(np.transpose(kernel, (4, 3, 0, 1, 2)).copy())
    wanted = torch.nn.functional.conv3d(
        torch.from_numpy(np.moveaxis(x, -1, 1).copy()), weights, padding=(1, 3, 3), groups=4
    )
    np.testing.assert_allclose(np.moveaxis(plain, -1, 1), wanted, atol=1e-4)
    np.testing.assert_allclose(rows, plain, atol=1e-4)


def test_a_video_does_not_depend_on_its_batch():
    """Windows of all videos are attended to in one loop."""
    _, parameters = loaded("dover_small")
    x = np.random.default_rng(0).normal(size=(2, 6, 40, 52, 3)).astype(np.float32)
    both, _ = run("dover_small", technical=x)
    alone, _ = run("dover_small", technical=x[1:])
    np.testing.assert_allclose(both.technical[1:], alone.technical, rtol=1e-4, atol=1e-5)


def test_every_pair_of_a_window_has_the_row_of_its_offset():
    index = relative_index((2, 3, 3))
    assert index.shape == (18, 18) and index.max() == 3 * 5 * 5 - 1 and index.min() == 0
    assert (index + index.T == index.max()).all()  # opposite offsets lie opposite
