"""Samplers: whole runs equal those of diffusers' schedulers, and what holds for every sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmarks.schedulers import cases, network, run_pair, worst_step_error
from i2v_jax.diffusion import samplers
from i2v_jax.diffusion.first_frame import hold
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError

SHAPE = (2, 3, 4, 5, 4)
EVERY = [("ddim", {}), ("ddim", {"eta": 0.7}), ("tcd", {"eta": 0.3})]
EVERY += [(name, {}) for name in samplers.SAMPLERS if name != "ddim"]
LINEAR = NoiseSchedule()


def name_of(value):
    return value.prediction_type if isinstance(value, NoiseSchedule) else None


def denoise(x, t):
    return network(x, t, jnp.tanh, jnp.sin)


def draw(seed=0, frames=3):
    rng = np.random.default_rng(seed)
    shape = (2, frames, 4, 5, 4)
    return rng.standard_normal((2, 1, 4, 5, 4), np.float32), *rng.standard_normal((2, *shape), np.float32)


@pytest.mark.parametrize("column, spacing, schedule", cases(LINEAR), ids=name_of)
def test_every_step_of_a_run_equals_diffusers(column, spacing, schedule):
    assert worst_step_error(*run_pair(column, spacing, schedule, num_steps=25)) <= 1e-5


@pytest.mark.parametrize("column, spacing, schedule", cases(NoiseSchedule(kind="scaled_linear")), ids=name_of)
def test_scaled_linear_and_another_number_of_steps(column, spacing, schedule):
    assert worst_step_error(*run_pair(column, spacing, schedule, num_steps=7)) <= 1e-5


FEW = [("euler", "trailing"), ("euler_ancestral", "trailing"), ("ddim", "trailing"), ("ddim, stops at 0", "trailing")]
FEW += [("lcm", "leading"), ("tcd", "leading"), ("tcd, eta 0.3", "leading"), ("tcd, eta 1", "leading")]


@pytest.mark.parametrize("column, spacing", FEW)
def test_runs_of_few_steps_equal_diffusers(column, spacing, measured):
    """As distilled models are sampled; on both noise schedules, whatever the network predicts."""
    worst = 0.0
    for steps in (1, 2, 4, 8):
        for kind, predicted in (("linear", "epsilon"), ("scaled_linear", "epsilon"), ("linear", "v_prediction")):
            schedule = NoiseSchedule(kind=kind, prediction_type=predicted)
            worst = max(worst, worst_step_error(*run_pair(column, spacing, schedule, steps)))
    measured(f"{column}, {spacing}: 1, 2, 4 and 8 steps against diffusers, every step", worst, 1e-5)


@pytest.mark.parametrize("column", ["lcm", "tcd, eta 0.3"])
@pytest.mark.parametrize("timesteps", [(800,), (999, 749, 499, 249), (399, 0)])
def test_timesteps_of_ones_own_equal_diffusers(column, timesteps):
    """Hyper-SD's UNet of one step starts at 800."""
    ours, theirs = run_pair(column, "leading", LINEAR, len(timesteps), timesteps=timesteps)
    assert len(ours) == len(timesteps) and worst_step_error(ours, theirs) <= 1e-5
    made = samplers.make(column[:3], LINEAR, len(timesteps), timesteps=timesteps)
    np.testing.assert_array_equal(made.timesteps, timesteps)


def test_a_network_that_predicts_the_picture_is_done_after_one_step():
    """SDXL-Lightning's UNet of one step; Euler's sampler ends at what the network says."""
    sampler = samplers.make("euler", NoiseSchedule(prediction_type="sample"), 1, spacing="trailing")
    _, clean, noise = draw()
    state = sampler.step(sampler.init(sampler.add_noise(clean, noise, 0)), 0, clean)
    np.testing.assert_array_equal(state.latents, clean)


# With a noise level of 4,096 (zero terminal SNR) or 20,291 (cosine), float32 diffusers is 1e-4 from its own float64.
@pytest.mark.usefixtures("ieee_sqrt")
@pytest.mark.parametrize("column, spacing, schedule", cases(NoiseSchedule(zero_terminal_snr=True)), ids=name_of)
def test_zero_terminal_snr_equals_diffusers_in_float64(column, spacing, schedule):
    assert worst_step_error(*run_pair(column, spacing, schedule, num_steps=5, dtype=torch.float64)) <= 1e-5


@pytest.mark.parametrize("column, spacing, schedule", cases(NoiseSchedule(kind="cosine")), ids=name_of)
def test_cosine_equals_diffusers_in_float64(column, spacing, schedule):
    assert worst_step_error(*run_pair(column, spacing, schedule, num_steps=2, dtype=torch.float64)) <= 1e-5


@pytest.mark.parametrize("column", ["ddim", "euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m, Karras", "lcm", "tcd"])
def test_a_run_that_starts_late_equals_diffusers(column):
    ours, theirs = run_pair(column, "leading", LINEAR, num_steps=10, t0=0.6)
    assert 1 < len(ours) < 10
    assert worst_step_error(ours, theirs) <= 1e-5


@pytest.mark.parametrize("name, options", EVERY)
def test_scan_equals_a_loop_of_one_jitted_step(name, options):
    sampler = samplers.make(name, LINEAR, 6, **options)
    first, clean, noise = draw()
    sampler = hold(sampler, first)
    start = sampler.start_index(0.7)
    initial = sampler.init(sampler.add_noise(clean, noise, start))
    step_noise = samplers.gaussian_noise(jax.random.key(1), SHAPE)
    scanned = jax.jit(lambda state: samplers.sample(denoise, sampler, state, step_noise, start))(initial)

    @jax.jit
    def step(state, i):
        t = jnp.asarray(sampler.timesteps)[i]
        return sampler.step(state, i, denoise(sampler.scale_input(state.latents, i), t), step_noise(i))

    state = initial
    for i in range(start, sampler.num_steps):
        state = step(state, i)
    np.testing.assert_allclose(scanned.latents, state.latents, rtol=1e-5, atol=1e-5)
    assert int(scanned.steps_taken) == sampler.num_steps - start


@pytest.mark.parametrize("name, options", EVERY)
def test_the_first_frame_is_held_at_every_step_and_seen_unscaled(name, options):
    first, clean, noise = draw()
    sampler = hold(samplers.make(name, LINEAR, 4, **options), first)
    state = sampler.init(sampler.add_noise(clean, noise, 0))
    for i in range(sampler.num_steps):
        seen = sampler.scale_input(state.latents, i)
        np.testing.assert_array_equal(seen[:, :1], first)
        state = sampler.step(state, i, denoise(seen, sampler.timesteps[i]), noise)
        np.testing.assert_array_equal(state.latents[:, :1], first)
        np.testing.assert_array_equal(state.x0[:, :1], first)


@pytest.mark.parametrize("name, options", EVERY)
def test_holding_the_first_frame_leaves_the_others_alone(name, options):
    """Frames meet only in the network: with one that treats each by itself, the others run as without the holding."""
    first, clean, noise = draw()
    free = samplers.make(name, LINEAR, 4, **options)
    held = hold(free, first)
    alone, beside = (
        samplers.sample(denoise, sampler, sampler.init(sampler.add_noise(clean, noise, 0)), lambda i: noise * (i + 1))
        for sampler in (free, held)
    )
    np.testing.assert_allclose(alone.latents[:, 1:], beside.latents[:, 1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name, options", EVERY)
def test_the_true_epsilon_leads_back_to_the_clean_latents(name, options):
    sampler = samplers.make(name, LINEAR, 8, **options)
    _, clean, noise = draw()
    state = sampler.init(sampler.add_noise(clean, noise, 0))
    for i in range(sampler.num_steps):
        alpha, sigma = sampler.alpha[i], sampler.sigma[i]
        epsilon = (sampler.scale_input(state.latents, i) - alpha * clean) / sigma
        state = sampler.step(state, i, epsilon, noise)
        np.testing.assert_allclose(state.x0, clean, atol=2e-4)
    if name in ("tcd", "ldm_ddim"):  # their runs end at timestep 0, as diffusers and the original code have it
        cumprod = LINEAR.alphas_cumprod[0]
        clean = np.sqrt(cumprod) * clean + np.sqrt(1 - cumprod) * epsilon
    # LCM's c_skip keeps some of the noise of its last step, 0.25 / (10 t)^2 of it
    np.testing.assert_allclose(state.latents, clean, atol=2e-4)


def test_ddim_is_deterministic_without_eta_and_only_then():
    _, clean, noise = draw()
    for eta, same in ((0.0, True), (0.5, False)):
        sampler = samplers.make("ddim", LINEAR, 4, eta=eta)
        assert sampler.stochastic is not same
        state = sampler.init(sampler.add_noise(clean, noise, 0))
        a, b = (
            samplers.sample(denoise, sampler, state, samplers.gaussian_noise(jax.random.key(seed), SHAPE)).latents
            for seed in (0, 1)
        )
        assert np.array_equal(a, b) is same


@pytest.mark.parametrize("name, options", EVERY)
def test_arithmetic_is_float32_whatever_comes_in(name, options):
    sampler = samplers.make(name, LINEAR, 4, **options)
    clean, noise = (jnp.asarray(x, jnp.bfloat16) for x in draw()[1:])
    state = sampler.init(sampler.add_noise(clean, noise, 0))
    state = sampler.step(state, 0, clean, noise)
    upcast = sampler.init(sampler.add_noise(clean.astype(jnp.float32), noise.astype(jnp.float32), 0))
    upcast = sampler.step(upcast, 0, clean.astype(jnp.float32), noise.astype(jnp.float32))
    assert state.latents.dtype == jnp.float32
    np.testing.assert_array_equal(state.latents, upcast.latents)


def test_start_index_is_the_first_step_at_or_below_t0():
    sampler = samplers.make("ddim", LINEAR, 5)  # 801, 601, 401, 201, 1
    assert [sampler.start_index(t0) for t0 in (1, 0.801, 0.8, 0.601, 0.6, 0.001)] == [0, 0, 1, 1, 2, 4]
    for t0 in (0, -0.1, 1.01, float("nan")):
        with pytest.raises(InputError, match=r"\(0, 1\]"):
            sampler.start_index(t0)
    with pytest.raises(InputError, match="0.001 or more"):
        sampler.start_index(0.0005)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("eulr", {}, "Did you mean 'euler'"),
        ("ddim", {"spacing": "trailling"}, "Did you mean 'trailing'"),
        ("dpmpp_2m", {"spacing": "lead", "karras_sigmas": True}, "unknown spacing 'lead'"),
        ("lcm", {"spacing": "trailing"}, "'lcm' has no spacing"),
        ("ddim", {"karras_sigma": True}, "Did you mean 'karras_sigmas'"),
        ("ddim", {"karras_sigmas": True}, "'ddim' has no karras_sigmas"),
        ("euler", {"eta": 0.5}, "'euler' has no eta"),
        ("ddim", {"eta": 1.5}, r"eta = 1.5 given; wanted a number in \[0, 1\]"),
        ("ddim", {"num_steps": 0}, "0 sampling steps"),
        ("ddim", {"num_steps": 1001}, "1001 sampling steps"),
        ("ddim", {"num_steps": 1000}, "1 .. 1000; wanted 0 .. 999"),
        ("dpmpp_2m", {"num_steps": 1000}, "fewer than 1000"),
        ("lcm", {"num_steps": 51}, "steps <= original_steps"),
        ("tcd", {"num_steps": 51}, "steps <= original_steps"),
        ("tcd", {"eta": -0.1}, r"eta = -0.1 given; wanted a number in \[0, 1\]"),
        ("ddim", {"timesteps": (800,)}, "'ddim' has no timesteps"),
        ("lcm", {"timesteps": (800,)}, r"timesteps = \(800,\) given, and 10 steps; wanted as many"),
        ("lcm", {"timesteps": (400, 800), "num_steps": 2}, "each smaller than the one before"),
        ("lcm", {"timesteps": (1000,), "num_steps": 1}, "whole numbers, 999 .. 0"),
        ("tcd", {"timesteps": (800.5,), "num_steps": 1}, "whole numbers"),
    ],
)
def test_bad_input_says_what_to_mend(name, options, message):
    with pytest.raises(InputError, match=message):
        samplers.make(name, LINEAR, **{"num_steps": 10} | options)


def test_epsilon_cannot_start_at_pure_noise():
    with pytest.raises(InputError, match="pure noise"):
        samplers.make("ddim", NoiseSchedule(zero_terminal_snr=True), 5, spacing="trailing")


def test_a_stochastic_step_wants_noise():
    sampler = samplers.make("lcm", LINEAR, 4)
    _, clean, noise = draw()
    with pytest.raises(ValueError, match="noise"):
        sampler.step(sampler.init(noise), 0, clean)
