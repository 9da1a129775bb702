"""Context windows: every frame is covered and counts once; noise rescheduled as FreeNoise has it."""

import itertools

import numpy as np
import pytest

from i2v_jax.diffusion.windows import (
    SCHEDULES,
    WEIGHTINGS,
    Windows,
    bit_reversed,
    chunked,
    count,
    cut,
    free_noise_cut,
    noise_order,
    weights_of,
)
from i2v_jax.errors import InputError

SHAPES = [(16, 4), (16, 0), (8, 7), (24, 12), (5, 2), (1, 0), (64, 16)]


def every_cut(frames):
    for (length, overlap), weighting in itertools.product(SHAPES, WEIGHTINGS):
        for schedule in SCHEDULES:
            settings = Windows(length, overlap, schedule, weighting)
            steps = (0, 1, 2, 5, 24) if schedule != "standard" else (0,)
            for step in steps:
                yield settings, cut(settings, frames, step)
        settings = Windows(length, overlap, "standard", weighting, "attention")
        yield settings, free_noise_cut(settings, frames)


@pytest.mark.parametrize("frames", [*range(8, 201, 8), *range(9, 200, 13), 17, 31])
def test_every_frame_is_covered_and_counts_once(frames):
    """For every schedule, weighting and shape of windows; no window has a frame twice, each is of the same length."""
    for settings, (chosen, weights, first) in every_cut(frames):
        length = min(settings.length, frames)
        assert chosen.shape == weights.shape and chosen.shape[1] == length and (weights >= 0).all()
        assert all(len(set(window)) == length for window in chosen)
        assert chosen[0, first] == 0
        np.testing.assert_allclose(np.bincount(chosen.ravel(), weights.ravel(), frames), 1, atol=1e-6)
        if settings.average == "predictions":
            assert len(chosen) == count(settings, frames)
        gaps = (np.diff(chosen, axis=1) % frames == 1).all()
        assert gaps, "a window is of frames that follow each other"


def test_neighbours_overlap_by_what_was_asked_for():
    for settings in (Windows(16, 4), Windows(16, 12, "shifted"), Windows(16, 5, "looped")):
        starts = np.sort(cut(settings, 100, 3).frames[:, 0])
        assert np.diff(starts).max() <= settings.stride
    ends = cut(Windows(16, 4, "looped"), 100, 1).frames
    assert any({0, 99} <= set(window) for window in ends), "a loop's last frame is seen beside its first"
    assert not any({0, 99} <= set(window) for window in cut(Windows(16, 4, "shifted"), 100, 1).frames)


def test_seams_lie_elsewhere_at_each_step():
    assert [bit_reversed(step) for step in range(5)] == [0, 0.5, 0.25, 0.75, 0.125]
    for schedule, differ in (("standard", 1), ("shifted", 8), ("looped", 8)):
        settings = Windows(16, 8, schedule)
        found = {cut(settings, 64, step).frames.tobytes() for step in range(8)}
        assert len(found) == differ
        assert len({cut(settings, 64, step).frames.shape for step in range(8)}) == 1


def test_a_window_of_all_frames_is_the_plain_run():
    for settings in (Windows(16, 4), Windows(24, 4), Windows(16, 15, weighting="flat")):
        chosen, weights, first = cut(settings, 16)
        np.testing.assert_array_equal(chosen, np.arange(16)[None])
        np.testing.assert_array_equal(weights, np.ones((1, 16)))
        assert first == 0


def test_weightings():
    assert weights_of("pyramid", 5, 2).tolist() == [1, 2, 3, 2, 1]
    assert weights_of("pyramid", 4, 2).tolist() == [1, 2, 2, 1]
    assert weights_of("delayed_reverse_sawtooth", 4, 2).tolist() == [0.01, 2, 2, 1]
    assert weights_of("delayed_reverse_sawtooth", 5, 2).tolist() == [0.01, 0.01, 3, 2, 1]
    np.testing.assert_allclose(weights_of("overlap_linear", 6, 2), [1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3])


def test_weightings_and_windows_are_those_of_diffusers():
    """Frames and weights before they are normalised, for even lengths and, but for the sawtooth, odd ones."""
    attention = pytest.importorskip("diffusers.models.attention")
    for (length, overlap), weighting, frames in itertools.product(SHAPES[:5], WEIGHTINGS, (16, 33, 64)):
        is_known = weighting != "overlap_linear" and not (length % 2 and "sawtooth" in weighting)
        if not is_known or frames < length:
            continue
        block = object.__new__(attention.FreeNoiseTransformerBlock)
        block.context_length, block.context_stride, block.weighting_scheme = length, length - overlap, weighting
        theirs = block._get_frame_indices(frames)
        ours = free_noise_cut(Windows(length, overlap, weighting=weighting, average="attention"), frames)
        assert [(window[0], window[-1] + 1) for window in ours.frames][: len(theirs)] == theirs
        assert len(ours.frames) - len(theirs) == (theirs[-1][1] < frames)
        wanted = block._get_frame_weights(length, weighting)
        np.testing.assert_allclose(weights_of(weighting, length, overlap), wanted)


@pytest.mark.parametrize("frames", [16, 24, 39, 70])
def test_noise_is_rescheduled_as_in_diffusers(frames, monkeypatch):
    """With the same permutations; "repeat" of a given first window, too."""
    torch = pytest.importorskip("torch")
    from diffusers.pipelines.free_noise_utils import AnimateDiffFreeNoiseMixin

    length, overlap = 16, 12
    theirs, ours = np.random.default_rng(3), np.random.default_rng(3)

    monkeypatch.setattr(torch, "randperm", lambda size, generator: torch.as_tensor(theirs.permutation(size)))
    numbers = torch.arange(frames, dtype=torch.float32)[None, None, :, None, None]
    monkeypatch.setattr("diffusers.pipelines.free_noise_utils.randn_tensor", lambda *a, **k: numbers.clone())
    pipe = object.__new__(AnimateDiffFreeNoiseMixin)
    pipe._free_noise_context_length, pipe._free_noise_context_stride = length, length - overlap
    pipe.vae_scale_factor = 1
    kinds = (("shuffle_context", "shuffle", None), ("repeat_context", "repeat", numbers[:, :, :length]))
    for theirs_type, ours_type, given in kinds:
        pipe._free_noise_noise_type = theirs_type
        found = pipe._prepare_latents_free_noise(1, 1, frames, 1, 1, torch.float32, "cpu", latents=given)
        order = noise_order(Windows(length, overlap, noise=ours_type), frames, ours)
        np.testing.assert_array_equal(order, found[0, 0, :, 0, 0].numpy())
    assert (noise_order(Windows(length, overlap), frames, ours) == np.arange(frames)).all()


def test_chunks_have_all_windows_once():
    windows = cut(Windows(8, 4), 60)
    for size in (1, 2, 5, 14, 20):
        frames, weights = chunked(windows, size)
        assert frames.shape == weights.shape and frames.shape[1:] == (size, 8)
        assert (frames.reshape(-1, 8)[: len(windows.frames)] == windows.frames).all()
        np.testing.assert_allclose(np.bincount(frames.ravel(), weights.ravel(), 60), 1, atol=1e-6)


@pytest.mark.parametrize(
    "given, said",
    [
        (dict(length=16, overlap=16), "windows.overlap=16, and windows.length=16: wanted an overlap of 0 to 15"),
        (dict(length=-1), "windows.length=-1: wanted 0 or more"),
        (dict(length=16, schedule="loop"), "windows.schedule='loop'.*Did you mean 'looped'"),
        (dict(length=16, weighting="piramid"), "windows.weighting='piramid'.*Did you mean 'pyramid'"),
        (dict(length=16, average="attention", schedule="looped"), "FreeNoise.*its windows are 'standard'"),
        (dict(length=16, batch=0), "windows.batch=0: wanted 1 or more"),
    ],
)
def test_bad_settings(given, said):
    with pytest.raises(InputError, match=said):
        Windows(**given)
