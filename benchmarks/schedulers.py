"""Whole sampling runs against diffusers' schedulers: `python -m benchmarks.schedulers` prints the relative errors.

Both sides run the same made-up network from the same latents, with the same noise injected at every step.
"""

import contextlib
import dataclasses
import itertools
import logging
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

from i2v_jax.diffusion import samplers
from i2v_jax.diffusion.noise_schedule import DIFFUSERS_KINDS, PREDICTION_TYPES, NoiseSchedule

SHAPE = (2, 3, 4, 5, 4)
# Column of the table -> sampler, its options, diffusers' scheduler, its options.
SAMPLERS = {
    "ddim": ("ddim", {}, diffusers.DDIMScheduler, {"clip_sample": False}),
    "ddim, eta 0.7": ("ddim", {"eta": 0.7}, diffusers.DDIMScheduler, {"clip_sample": False}),
    "ddim, stops at 0": (
        "ddim",
        {"set_alpha_to_one": False},
        diffusers.DDIMScheduler,
        {"clip_sample": False, "set_alpha_to_one": False},
    ),
    "euler": ("euler", {}, diffusers.EulerDiscreteScheduler, {}),
    "euler_ancestral": ("euler_ancestral", {}, diffusers.EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": ("dpmpp_2m", {}, diffusers.DPMSolverMultistepScheduler, {}),
    "dpmpp_2m, Karras": (
        "dpmpp_2m",
        {"karras_sigmas": True},
        diffusers.DPMSolverMultistepScheduler,
        {"use_karras_sigmas": True},
    ),
    "lcm": ("lcm", {}, diffusers.LCMScheduler, {"clip_sample": False}),
    "tcd": ("tcd", {"eta": 0.0}, diffusers.TCDScheduler, {}),
    "tcd, eta 0.3": ("tcd", {"eta": 0.3}, diffusers.TCDScheduler, {}),
    "tcd, eta 1": ("tcd", {"eta": 1.0}, diffusers.TCDScheduler, {}),
}
OWN_TIMESTEPS = ("dpmpp_2m, Karras", "lcm", "tcd", "tcd, eta 0.3", "tcd, eta 1")


def cases(schedule: NoiseSchedule):
    """Every (column, spacing, schedule with a prediction type) that is meaningful, and in diffusers too."""
    for column, spacing, prediction_type in itertools.product(SAMPLERS, samplers.SPACINGS, PREDICTION_TYPES):
        if column in OWN_TIMESTEPS and spacing != "leading":
            continue
        if column == "euler_ancestral" and prediction_type == "sample":
            continue  # not implemented in diffusers
        from_the_last = column[:3] in ("lcm", "tcd") or spacing != "leading"
        at_pure_noise = schedule.zero_terminal_snr and from_the_last
        if at_pure_noise and prediction_type == "epsilon":
            continue  # epsilon says nothing of x_0 there: we refuse it, diffusers gives NaN
        yield column, spacing, dataclasses.replace(schedule, prediction_type=prediction_type)


def run_pair(column, spacing, schedule: NoiseSchedule, num_steps, t0=1.0, dtype=torch.float32, timesteps=()):
    """Runs one case on both sides; returns ours and theirs, each the latents after every step, [steps, *SHAPE].

    Theirs computes in `dtype`, from the same float32 tables: float64 shows our rounding alone. `timesteps` are given by
    hand, to samplers that take them.
    """
    name, options, scheduler_class, scheduler_options = SAMPLERS[column]
    sampler = samplers.make(name, schedule, num_steps, spacing=spacing, timesteps=timesteps, **options)
    kind = {ours: theirs for theirs, ours in DIFFUSERS_KINDS.items()}[schedule.kind]
    scheduler = scheduler_class(
        beta_schedule=kind,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        num_train_timesteps=schedule.num_train_timesteps,
        prediction_type=schedule.prediction_type,
        rescale_betas_zero_snr=schedule.zero_terminal_snr,
        timestep_spacing=spacing,
        steps_offset=1,
        **scheduler_options,
    )
    rng = np.random.default_rng(0)
    clean, noise, *step_noise = rng.standard_normal((2 + num_steps, *SHAPE), np.float32)
    start = sampler.start_index(t0)
    ours = run_ours(sampler, clean, noise, step_noise, start)
    scheduler.set_timesteps(**({"timesteps": list(timesteps)} if timesteps else {"num_inference_steps": num_steps}))
    theirs = run_diffusers(scheduler, clean, noise, step_noise, start, options.get("eta"), dtype)
    return ours, theirs


def network(x, t, tanh, sin):
    """A made-up network for either library: not linear, mixes channels, knows the time."""
    mixed = 0.6 * x + 0.4 * x[..., [1, 2, 3, 0]]
    return tanh(mixed) + 0.3 * x * sin(t / 100)


def run_ours(sampler, clean, noise, step_noise, start):
    @jax.jit
    def step(state, i, noise):
        t = jnp.asarray(sampler.timesteps)[i]
        prediction = network(sampler.scale_input(state.latents, i), t, jnp.tanh, jnp.sin)
        return sampler.step(state, i, prediction, noise)

    state, trajectory = sampler.init(sampler.add_noise(clean, noise, start)), []
    for i in range(start, sampler.num_steps):
        state = step(state, i, step_noise[i])
        trajectory.append(np.asarray(state.latents))
    return np.stack(trajectory)


def run_diffusers(scheduler, clean, noise, step_noise, start, eta, dtype):
    timesteps = scheduler.timesteps[start:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    for table in ("alphas_cumprod", "sigmas"):
        if hasattr(scheduler, table):
            setattr(scheduler, table, getattr(scheduler, table).to(dtype))
    clean, noise, step_noise = (torch.from_numpy(np.asarray(x)).to(dtype) for x in (clean, noise, step_noise))
    latents, trajectory = scheduler.add_noise(clean, noise, timesteps[:1]), []
    options = {} if eta is None else {"eta": eta}
    for i, t in enumerate(timesteps, start):
        prediction = network(scheduler.scale_model_input(latents, t), t.to(dtype), torch.tanh, torch.sin)
        with injected(scheduler, step_noise[i], dtype):
            latents = scheduler.step(prediction, t, latents, **options).prev_sample
        trajectory.append(latents.numpy())
    return np.stack(trajectory)


@contextlib.contextmanager
def injected(scheduler, noise, dtype):
    """Makes diffusers draw this noise, and compute in this dtype where it asks for float32."""
    with (
        mock.patch(f"{type(scheduler).__module__}.randn_tensor", lambda *args, **kwargs: noise),
        mock.patch.object(torch, "float32", dtype),
    ):
        yield


def worst_step_error(ours, theirs) -> float:
    """The largest relative error ||ours - theirs|| / ||theirs|| of any step."""
    axes = tuple(range(1, ours.ndim))
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    return float((np.sqrt(((ours - theirs) ** 2).sum(axes)) / np.sqrt((theirs**2).sum(axes))).max())


def main():
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    worst = 0.0
    print("Relative error after the last of 25 steps, and at the worst step. Bar: 1e-5.")
    print("At noise levels in the thousands diffusers in float32 is itself 1e-4 off; its float64 is taken there.\n")
    print("| schedule | yardstick | sampler | spacing | prediction | last | worst |\n|---|---|---|---|---|---|---|")
    for title, schedule, dtype in (
        ("linear", NoiseSchedule(), torch.float32),
        ("scaled_linear", NoiseSchedule(kind="scaled_linear"), torch.float32),
        ("linear, zero SNR", NoiseSchedule(zero_terminal_snr=True), torch.float64),
        ("cosine", NoiseSchedule(kind="cosine"), torch.float64),
    ):
        for column, spacing, case in cases(schedule):
            ours, theirs = run_pair(column, spacing, case, num_steps=25, dtype=dtype)
            last, highest = worst_step_error(ours[-1:], theirs[-1:]), worst_step_error(ours, theirs)
            worst = max(worst, highest)
            row = (title, str(dtype)[6:], column, spacing, case.prediction_type, f"{last:.1e}", f"{highest:.1e}")
            print(f"| {' | '.join(row)} |", flush=True)
    print(f"\nworst of all: {worst:.1e}")


if __name__ == "__main__":
    main()
