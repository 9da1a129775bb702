"""A second pass at a larger size: what it begins from, a plain run where nothing is kept, bad input, records."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch

from i2v_jax import commands
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError
from i2v_jax.families.model import Model
from i2v_jax.finishing import upscale
from i2v_jax.media import fit_picture, to_model_range
from i2v_jax.models.vae import AutoencoderKL
from i2v_jax.sampling import batches, record
from i2v_jax.sampling import run as command
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.randomness import prior
from i2v_jax.sampling.second_pass import SecondPass
from i2v_jax.sampling.settings import Settings
from i2v_jax.sampling.watch import Watch
from tests import upscalers
from tests.helpers import relative_error
from tests.test_pipeline import PROMPTS, WEIGHTS, pictures

SETTINGS = Settings(
    height=64, width=48, frames=3, steps=4, guidance_scale=1.0, sampler_options=(("spacing", "trailing"),), vae_slice=4
)
ZERO = NoiseSchedule("linear", 0.00085, 0.012, prediction_type="v_prediction", zero_terminal_snr=True)


def with_second(**changes):
    return dataclasses.replace(SETTINGS, second_pass=SecondPass(**{"scale": 1.5, "by": "latents"} | changes))


@functools.cache
def pipeline():
    """Its last timestep is noise alone, so that a run from there keeps nothing of what it is given."""
    mesh = make_mesh({}, jax.devices()[:1])
    return Pipeline(dataclasses.replace(Model.load(WEIGHTS, mesh=mesh), schedule=ZERO), mesh)


def latents(settings, rows=(0, 1), **given):
    of_rows = [[texts[row] for row in rows] for texts in (pictures(), PROMPTS, [5, 2**32 - 1])]
    return np.asarray(pipeline().latents(*of_rows, settings=settings, **given))


@functools.cache
def made():
    """A run with a second pass, the steps that were told of, and how much its latents moved."""
    told, seen = [], []
    watch = Watch(on_step=lambda *step: told.append(step), on_latents=lambda *step: seen.append(step[2].shape))
    return latents(with_second(strength=0.5), watch=watch), told, seen


def test_all_of_the_noise_is_a_plain_run_at_that_size(measured):
    plain = latents(dataclasses.replace(SETTINGS, height=96, width=72))
    whole = latents(with_second(strength=1.0))
    measured("a second pass from noise alone against a plain run", relative_error(whole, plain), 1e-6)
    assert relative_error(made()[0][:, 1:], plain[:, 1:]) > 1e-2, "a part of the noise keeps something"


def test_its_first_frame_is_the_picture_at_the_larger_size():
    found, told, seen = made()
    assert found.shape == (2, 3, 12, 9, 4) and np.isfinite(found).all()
    larger = dataclasses.replace(SETTINGS, height=96, width=72)
    wanted = pipeline().encode_first_frame(pictures()[:2], np.array([5, 2**32 - 1], np.uint32), larger)
    np.testing.assert_array_equal(found[:, :1], wanted)
    assert told == [(done, 6) for done in range(1, 7)], "4 steps, and those 2 that half of the noise leaves"
    assert seen == 4 * [(2, 3, 8, 6, 4)] + 2 * [(2, 3, 12, 9, 4)]


def test_a_video_does_not_depend_on_its_batch(measured):
    alone = latents(with_second(strength=0.5), rows=[1], batch_size=2)
    measured("a second pass of a row alone against in a batch", relative_error(alone[0], made()[0][1]), 1e-5)


@pytest.mark.parametrize("by", ["latents", "lanczos", "weights"])
def test_it_begins_from_what_was_made(by, tmp_path, monkeypatch):
    """alpha x + sigma noise, x being the first pass's latents enlarged, but for frame 1; no network runs."""
    torch.save({k: torch.from_numpy(v) for k, v in upscalers.state("SRVGGNet x2").items()}, tmp_path / "x2.pth")
    first = np.random.default_rng(0).normal(size=(2, 3, 8, 6, 4)).astype(np.float32)
    begun = []

    def seen(state, start, conditions, first_frame, seeds, settings, watch, count):
        begun.append((np.asarray(state.latents), start, settings))
        return first if len(begun) == 1 else state.latents

    monkeypatch.setattr(pipeline(), "_run", seen)
    name = str(tmp_path / "x2.pth") if by == "weights" else by
    settings = with_second(strength=0.6, by=name, steps=5)
    latents(settings)
    (_, (found, start, own)) = begun
    assert (own.height, own.width, own.steps) == (96, 72, 5)
    sampler = own.check(pipeline().model)
    assert sampler.timesteps[start] <= 600 < sampler.timesteps[start - 1]

    larger = jax.image.resize(first, (2, 3, 12, 9, 4), "bilinear")
    if by != "latents":
        frames = pipeline().decode(first, settings).reshape(-1, 64, 48, 3)
        if by == "weights":
            frames = [upscale.of_name(name, 256, 16, 2)[1](frame) for frame in frames]
        shown = np.stack([to_model_range(fit_picture(frame, 96, 72, "stretch")) for frame in frames])
        config, vae = pipeline().model.configs["vae"], pipeline().model.parameters["vae"]
        mean, _ = AutoencoderKL(config).apply({"params": vae}, shown, method="encode")
        larger = config.scaling_factor * mean.reshape(2, 3, 12, 9, 4)
    noise = prior(np.array([5, 2**32 - 1], np.uint32), (3, 12, 9, 4), 0.5)[1]
    wanted = sampler.alpha[start] * larger + sampler.sigma[start] * noise
    assert relative_error(found[:, 1:], wanted[:, 1:]) < 1e-5
    assert relative_error(found[:, :1], wanted[:, :1]) > 1e-2, "frame 1 is held"


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(strength=0.0), r"second_pass.strength=0.0: wanted a number in \(0, 1\]"),
        (dict(strength=1.1), r"second_pass.strength=1.1: wanted a number in \(0, 1\]"),
        (dict(strength=0.1), r"second_pass.strength = 0.1 leaves none of the 4 steps"),
        (dict(scale=0.5), r"second_pass.scale=0.5: wanted 1 \(no second pass\) to 8"),
        (dict(scale=1.3), "scale=1.3 makes 64x48 83.2x62.4: wanted multiples of 8, as second_pass.scale=1.5 gives"),
        (dict(steps=-1), "second_pass.steps=-1"),
        (dict(by="nowhere.pth"), "nowhere.pth"),
    ],
)
def test_what_cannot_be_is_said_before_the_first_pass(changes, message, monkeypatch):
    monkeypatch.setattr(pipeline(), "_run", lambda *given: pytest.fail("a pass began"))
    with pytest.raises(InputError, match=message):
        latents(with_second(**changes))


def test_without_one_settings_are_those_of_one_pass():
    assert SETTINGS.passes == [SETTINGS]
    assert Settings.of_config(commands.load_config(record.KEYS)).passes[1:] == []


def test_the_command_counts_its_steps_and_records_its_upscaler(tmp_path):
    weights = tmp_path / "x2.pth"
    torch.save({k: torch.from_numpy(v) for k, v in upscalers.state("SRVGGNet x2").items()}, weights)
    config = commands.load_config(record.KEYS)
    config.second_pass.scale, config.second_pass.by = 2.0, str(weights)
    assert record.further_files(config) == [weights]
    assert record.travelling(config)["second_pass"]["by"] == str(weights)
    batch = batches.Batch([None], with_second(strength=0.5), 2)
    (work,) = command.works_of([batch], pipeline().model)
    assert work.steps == 6 and work.size == 2 * 3 * 96 * 72
    config.second_pass.scale = 1.0
    assert record.further_files(config) == []
