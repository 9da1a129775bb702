"""Noise schedules, guidance and the Frame Similarity Prior against diffusers and the published code's outputs."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from i2v_jax.diffusion import frame_similarity_prior as prior
from i2v_jax.diffusion import guidance, samplers
from i2v_jax.diffusion.noise_schedule import (
    ANIMATEDIFF_SD15,
    ANIMATEDIFF_SDXL_BETA,
    DIFFUSERS_KINDS,
    PREDICTION_TYPES,
    SD15,
    NoiseSchedule,
    target,
    to_epsilon,
    to_x0,
)
from i2v_jax.errors import InputError
from tests import oracles
from tests.helpers import relative_error


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# Noise schedules


@pytest.mark.usefixtures("ieee_sqrt")
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("kind", DIFFUSERS_KINDS)
@pytest.mark.parametrize("beta_end, num_train_timesteps", [(0.012, 1000), (0.020, 77)])
def test_tables_equal_diffusers(kind, beta_end, num_train_timesteps, zero_terminal_snr):
    settings = {
        "beta_schedule": kind,
        "beta_start": 0.00085,
        "beta_end": beta_end,
        "num_train_timesteps": num_train_timesteps,
        "rescale_betas_zero_snr": zero_terminal_snr,
    }
    ours, theirs = NoiseSchedule.from_diffusers(settings), diffusers.DPMSolverMultistepScheduler(**settings)
    assert ours.noise_to_signal.dtype == np.float32
    np.testing.assert_allclose(ours.noise_to_signal, theirs.sigmas, rtol=2e-6)
    np.testing.assert_array_equal(ours.betas, theirs.betas)
    last = -1 if zero_terminal_snr else None  # theirs keeps the last above 0
    np.testing.assert_array_equal(ours.alphas_cumprod[:last], theirs.alphas_cumprod[:last])


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_first_timestep():
    plain, rescaled = SD15, NoiseSchedule(kind="scaled_linear", zero_terminal_snr=True)
    assert rescaled.alpha(999) == 0 and rescaled.sigma(999) == 1
    np.testing.assert_allclose(rescaled.alpha(0), plain.alpha(0), rtol=1e-6)


def test_add_noise_equals_diffusers_and_keeps_the_variance():
    clean, noise, timesteps = normal(3, 2, 4, 5, 4), normal(3, 2, 4, 5, 4, seed=1), np.array([0, 500, 999])
    for schedule in (ANIMATEDIFF_SD15, SD15, ANIMATEDIFF_SDXL_BETA):
        theirs = diffusers.DDIMScheduler(
            beta_schedule=schedule.kind, beta_start=schedule.beta_start, beta_end=schedule.beta_end
        ).add_noise(*map(torch.from_numpy, (clean, noise, timesteps)))
        assert relative_error(schedule.add_noise(clean, noise, timesteps), theirs) <= 1e-6
        np.testing.assert_allclose(schedule.alpha(timesteps) ** 2 + schedule.sigma(timesteps) ** 2, 1, rtol=1e-6)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_predictions_convert_both_ways(prediction_type):
    x0, epsilon = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    for t in (1, 400, 900):
        alpha, sigma = SD15.alpha(t), SD15.sigma(t)
        prediction = target(prediction_type, x0, epsilon, alpha, sigma)
        x = alpha * x0 + sigma * epsilon
        np.testing.assert_allclose(to_x0(prediction_type, prediction, x, alpha, sigma), x0, atol=1e-5)
        np.testing.assert_allclose(to_epsilon(prediction_type, prediction, x, alpha, sigma), epsilon, atol=1e-4)


def test_v_target_equals_diffusers_velocity():
    x0, epsilon, t = normal(2, 3, 4), normal(2, 3, 4, seed=1), np.array([10, 900])
    scheduler = diffusers.DDIMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012)
    theirs = scheduler.get_velocity(*map(torch.from_numpy, (x0, epsilon, t)))
    alpha, sigma = (scale(t)[:, None, None] for scale in (ANIMATEDIFF_SD15.alpha, ANIMATEDIFF_SD15.sigma))
    assert relative_error(target("v_prediction", x0, epsilon, alpha, sigma), theirs) <= 1e-6


def test_presets_are_what_published_scheduler_configs_say():
    config = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
    assert NoiseSchedule.from_diffusers(config | {"steps_offset": 1, "clip_sample": False}) == ANIMATEDIFF_SD15
    assert NoiseSchedule.from_diffusers(config | {"beta_schedule": "scaled_linear"}) == SD15
    sdxl = config | {"beta_schedule": "scaled_linear", "beta_end": 0.020}
    assert NoiseSchedule.from_diffusers(sdxl) == ANIMATEDIFF_SDXL_BETA
    assert hash(ANIMATEDIFF_SD15) == hash(NoiseSchedule())


@pytest.mark.parametrize(
    "config, message",
    [
        ({"beta_schedule": "scaled_linea"}, "Did you mean 'scaled_linear'"),
        ({"prediction_type": "v-prediction"}, "Did you mean 'v_prediction'"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"beta_start": 0.1, "beta_end": 0.01}, "0 < beta_start <= beta_end < 1"),
        ({"num_train_timesteps": 1}, "2 or more"),
    ],
)
def test_a_schedule_we_do_not_have_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        NoiseSchedule.from_diffusers(config)


# Guidance


def test_guidance_of_a_doubled_batch():
    unconditional, conditional = normal(2, 3, 4, 5, 4), normal(2, 3, 4, 5, 4, seed=1)
    doubled = np.concatenate([unconditional, conditional])
    np.testing.assert_array_equal(guidance.classifier_free(doubled, 1.0), unconditional + (conditional - unconditional))
    np.testing.assert_array_equal(guidance.classifier_free(doubled, 0.0), unconditional)
    guided = unconditional + 7.5 * (conditional - unconditional)
    np.testing.assert_allclose(guidance.classifier_free(doubled, 7.5), guided, rtol=1e-6, atol=1e-6)
    in_bfloat16 = guidance.classifier_free(jnp.asarray(doubled, jnp.bfloat16), 7.5)
    assert in_bfloat16.dtype == jnp.float32


def test_guidance_by_picture_and_prompt():
    """The published formula of DynamiCrafter's `multiplecond` sampler, and its rescale to the prediction with both."""
    unconditional, of_picture, conditional = (normal(2, 3, 4, 5, 4, seed=seed) for seed in range(3))
    three = np.concatenate([unconditional, of_picture, conditional])
    wanted = unconditional + 2 * (of_picture - unconditional) + 7.5 * (conditional - of_picture)
    assert relative_error(guidance.guide_apart(three, 7.5, 2.0), wanted) <= 1e-6
    theirs = rescale_noise_cfg(torch.from_numpy(wanted), torch.from_numpy(conditional), guidance_rescale=0.7)
    assert relative_error(guidance.guide_apart(three, 7.5, 2.0, 0.7), theirs) <= 1e-6


def test_guidance_rescale_equals_diffusers():
    unconditional, conditional = normal(2, 3, 4, 5, 4), normal(2, 3, 4, 5, 4, seed=1)
    doubled = np.concatenate([unconditional, conditional])
    guided = unconditional + 7.5 * (conditional - unconditional)
    theirs = rescale_noise_cfg(torch.from_numpy(guided), torch.from_numpy(conditional), guidance_rescale=0.7)
    assert relative_error(guidance.classifier_free(doubled, 7.5, 0.7), theirs) <= 1e-6
    matched = guidance.rescale(guided, conditional, 1.0)
    np.testing.assert_allclose(matched.std((1, 2, 3, 4)), conditional.std((1, 2, 3, 4)), rtol=1e-5)


# Frame Similarity Prior


@pytest.mark.parametrize("name", oracles.NAMES)
def test_the_prior_equals_the_published_code(name, measured):
    """Blur, degraded latents and initial latents, given the mask and the noise."""
    io = oracles.recorded(name)
    sampler = samplers.make("ddim", NoiseSchedule.from_diffusers(oracles.settings(name)["scheduler"]), 5)
    first, mask, noise = io["prior.first_frame"], io["prior.mask"] > 0.5, io["prior.noise"]
    blurred = jnp.broadcast_to(prior.gaussian_blur(first), io["prior.blurred"].shape)
    measured(f"{name}: prior, blur", relative_error(blurred, io["prior.blurred"]), 1e-6)
    degraded = prior.degrade(first, mask)
    measured(f"{name}: prior, degraded latents", relative_error(degraded, io["prior.degraded"]), 1e-6)
    initial = prior.initial_latents(first, mask, noise, sampler)
    measured(f"{name}: prior, initial latents", relative_error(initial, io["ddim.initial"]), 1e-6)
    np.testing.assert_array_equal(initial[:, :1], first)


def test_p_of_one_keeps_the_picture_and_p_of_zero_blurs_it():
    first, shape = normal(2, 1, 6, 7, 4), (2, 3, 6, 7, 4)
    kept = prior.degrade(first, prior.sample_mask(jax.random.key(0), shape, 1.0))
    np.testing.assert_array_equal(kept, np.broadcast_to(first, shape))
    blurred = prior.degrade(first, prior.sample_mask(jax.random.key(0), shape, 0.0))
    np.testing.assert_array_equal(blurred[:, :1], first)
    np.testing.assert_array_equal(blurred[:, 1:], np.broadcast_to(prior.gaussian_blur(first), shape)[:, 1:])


def test_the_mask_keeps_each_element_with_probability_p():
    mask = prior.sample_mask(jax.random.key(0), (2, 8, 16, 16, 4), 0.3)
    assert mask.dtype == bool
    assert abs(mask.mean() - 0.3) < 0.02
    assert not np.array_equal(mask[:, 0], mask[:, 1])


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_p_out_of_range_is_refused(p):
    with pytest.raises(InputError, match=r"wanted a probability in \[0, 1\]"):
        prior.sample_mask(jax.random.key(0), (1, 2, 3, 4, 4), p)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 9), (4, 5), (2, 16)])
def test_the_blur_takes_latents_of_any_size(height, width):
    picture = normal(2, 1, height, width, 4)
    blurred = prior.gaussian_blur(picture)
    assert blurred.shape == picture.shape
    np.testing.assert_allclose(prior.gaussian_blur(np.ones_like(picture)), 1, rtol=1e-6)
    if height == width == 1:
        np.testing.assert_array_equal(blurred, picture)
    turned = prior.gaussian_blur(picture.swapaxes(-3, -2)).swapaxes(-3, -2)
    np.testing.assert_allclose(turned, blurred, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_a_weaker_prior_starts_from_less_noise(name):
    sampler = samplers.make(name, ANIMATEDIFF_SD15, 10)
    first, noise = normal(1, 1, 8, 8, 4), normal(1, 3, 8, 8, 4, seed=1)
    mask = np.ones(noise.shape, bool)
    spread = []
    for t0 in (1.0, 0.7, 0.3):
        start = sampler.start_index(t0)
        initial = prior.initial_latents(first, mask, noise, sampler, start)
        np.testing.assert_array_equal(initial[:, :1], first)
        spread.append(float(np.abs(sampler.scale_input(initial, start) - sampler.alpha[start] * first)[:, 1:].std()))
    assert spread[0] > spread[1] > spread[2]
