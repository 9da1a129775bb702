"""FreeInit: filters and re-initialisations equal diffusers'; in the pipeline it goes with the held first frame."""

import dataclasses
import warnings

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines import free_init_utils
from ml_collections import ConfigDict

from i2v_jax.diffusion import free_init, samplers
from i2v_jax.diffusion.first_frame import hold
from i2v_jax.diffusion.frame_similarity_prior import degrade
from i2v_jax.diffusion.free_init import FILTERS, FreeInit
from i2v_jax.diffusion.noise_schedule import ANIMATEDIFF_SD15, NoiseSchedule
from i2v_jax.errors import InputError
from i2v_jax.sampling.settings import Settings
from i2v_jax.sampling.watch import Watch
from tests.helpers import relative_error
from tests.test_pipeline import SETTINGS, pictures, pipeline

SHAPE = (2, 6, 5, 8, 4)  # with an odd axis
SCHEDULE = NoiseSchedule()


def draw(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, *SHAPE), np.float32)


def channels_first(x):
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


@pytest.mark.parametrize("name", FILTERS[:3])
@pytest.mark.parametrize("order, spatial, temporal", [(4, 0.25, 0.25), (2, 0.7, 0.4), (1, 0.1, 1.0), (4, 0.0, 0.5)])
def test_filters_equal_diffusers(name, order, spatial, temporal, measured):
    shape = SHAPE[1:4]
    ours = free_init.low_pass(FreeInit(3, name, order, spatial, temporal), shape)
    make = free_init_utils.FreeInitMixin()._get_free_init_freq_filter
    theirs = make((1, 1, *shape), "cpu", name, order, spatial, temporal)[0, 0].numpy()
    assert ours.dtype == np.float32 and ours.shape == shape
    measured(f"FreeInit's filters against diffusers: {name}", np.abs(ours - theirs).max(), 1e-6)


def test_the_box_is_that_of_the_published_code():
    """Ones in the middle: of 16 frames 2 each way from 8, of 32 rows and columns 4 from 16, at a quarter."""
    box = free_init.low_pass(FreeInit(3, "box"), (16, 32, 32))
    wanted = np.zeros_like(box)
    wanted[6:10, 12:20, 12:20] = 1
    np.testing.assert_array_equal(box, wanted)


@pytest.mark.parametrize("name", FILTERS[:3])
def test_a_run_begins_again_as_in_diffusers(name, measured):
    """With DDIM from the last timestep on, where diffusers noises; without a picture, whose prior is pure noise."""
    made, noise, fresh = draw(3)
    sampler = samplers.make("ddim", SCHEDULE, 4, spacing="trailing")
    settings = FreeInit(2, name, 3, 0.3, 0.5)
    blank = np.zeros((2, 1, *SHAPE[2:]), np.float32)
    mask = np.ones(SHAPE, bool)
    ours = free_init.begin_again(made, noise, blank, mask, fresh / sampler.sigma[0], sampler, 0, settings)

    theirs = free_init_utils.FreeInitMixin()
    theirs.scheduler = diffusers.DDIMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012)
    theirs.enable_free_init(2, False, name, 3, 0.3, 0.5)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(free_init_utils, "randn_tensor", lambda *_, **__: channels_first(fresh))
        for iteration, latents in enumerate((noise, made)):
            found, _ = theirs._apply_free_init(channels_first(latents), iteration, 4, "cpu", torch.float32, None)
    error = relative_error(ours, np.moveaxis(found.numpy(), 1, -1))
    measured(f"FreeInit: latents of the second run against diffusers, {name}", error, 1e-5)


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_the_prior_keeps_its_share_of_the_picture(sampler):
    """What no frequency is kept of is the prior with fresh noise; all kept: what was made, noised as at first."""
    made, noise, fresh = draw(3)
    first = draw(1, 1)[0][:, :1]
    mask = np.random.default_rng(2).random(SHAPE) < 0.5
    run = samplers.make(sampler, SCHEDULE, 10)
    start = run.start_index(0.5)
    assert start > 0
    given = (made, noise, first, mask, fresh, run, start)
    nothing = free_init.begin_again(*given, FreeInit(2, spatial=0.0))
    np.testing.assert_allclose(nothing, run.add_noise(degrade(first, mask), fresh, start), atol=1e-4)
    everything = free_init.begin_again(*given, FreeInit(2, "ideal", spatial=1.0, temporal=1.0))
    kept = free_init.low_pass(FreeInit(2, "ideal", spatial=1.0, temporal=1.0), SHAPE[1:4])
    if kept.all():
        np.testing.assert_allclose(everything, run.add_noise(made, noise, start), atol=1e-4)
    held = hold(run, first).init(everything)
    np.testing.assert_array_equal(held.latents[:, :1], first)


def test_mixing_keeps_the_middle_of_the_low_and_the_rest_of_the_high():
    """Each video's mean is of the low one, and a video mixed with itself stays."""
    low, high = draw(2)[:, :, :, :4]  # with an odd number of rows none of them is in the middle
    for name in FILTERS:
        kept = free_init.low_pass(FreeInit(2, name, spatial=0.5, temporal=0.5), low.shape[1:4])
        mixed = free_init.mix(low, high, kept)
        np.testing.assert_allclose(mixed.mean((1, 2, 3)), low.mean((1, 2, 3)), atol=1e-6)
        assert np.abs(mixed - low).max() > 0.1 and np.abs(mixed - high).max() > 0.1
        np.testing.assert_allclose(free_init.mix(low, low, kept), low, atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(iterations=-1), "free_init.iterations=-1: wanted 0 or more"),
        (dict(filter="buterworth"), "free_init.filter='buterworth'; known: .*Did you mean 'butterworth'"),
        (dict(order=0), "free_init.order=0: wanted 1 or more"),
        (dict(spatial=1.5), r"free_init.spatial=1.5: wanted a number in \[0, 1\]"),
        (dict(temporal=float("nan")), "free_init.temporal=nan"),
    ],
)
def test_bad_settings_say_what_to_mend(change, message):
    with pytest.raises(InputError, match=message):
        FreeInit(**change)


def test_few_frames_of_which_nothing_is_kept_are_warned_of():
    schedule = ANIMATEDIFF_SD15
    few = dataclasses.replace(SETTINGS, frames=3, free_init=FreeInit(3))
    with pytest.warns(UserWarning, match="keeps 9% of the lowest frequency of 3 frames"):
        few.check_values(schedule)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataclasses.replace(few, frames=16).check_values(schedule)
        dataclasses.replace(few, free_init=FreeInit()).check_values(schedule)


def test_configs_have_it_and_earlier_records_need_not():
    old = ConfigDict(dict(steps=3, sampler_options={}))
    assert Settings.of_config(old).free_init == FreeInit() and FreeInit().runs == FreeInit(1).runs == 1
    old.free_init = dict(iterations=3, filter="gaussian")
    assert Settings.of_config(old).free_init == FreeInit(3, "gaussian")


def test_runs_begin_again_in_the_pipeline():
    """The first frame stays the picture's to the bit, the others change; steps are counted on; once is not at all."""
    settings = dataclasses.replace(SETTINGS, steps=2, frames=4, guidance_scale=1.0)
    run = pipeline()
    seen = []
    plain = run.latents(pictures()[:1], "a cat", 1, settings=settings)
    made = {}
    for iterations in (1, 3):
        watch = Watch(on_step=lambda *it: seen.append(it))
        again = dataclasses.replace(settings, free_init=FreeInit(iterations))
        made[iterations] = np.asarray(run.latents(pictures()[:1], "a cat", 1, settings=again, watch=watch))
    np.testing.assert_array_equal(made[1], plain)
    np.testing.assert_array_equal(made[3][:, :1], plain[:, :1])
    assert relative_error(made[3][:, 1:], plain[:, 1:]) > 1e-3 and np.isfinite(made[3]).all()
    assert seen == [(1, 2), (2, 2)] + [(i, 6) for i in range(1, 7)]
