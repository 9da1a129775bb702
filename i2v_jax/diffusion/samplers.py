"""Samplers: from noisy latents to clean ones in a few steps, each step one formula of its paper.

Each is a `sampler.Sampler`. Timesteps and tables follow diffusers, so a run equals that of the scheduler of the same
name.
"""

import inspect

import numpy as np
from jaxtyping import Array, Float, Int

from i2v_jax.diffusion.ldm_ddim import check_eta, ldm_ddim
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.diffusion.sampler import Estimate, Sampler, SamplerState, gaussian_noise, sample
from i2v_jax.errors import InputError, check_known

__all__ = ("Estimate", "Sampler", "SamplerState", "gaussian_noise", "make", "sample")


def ddim_update(now: Estimate, alpha_next, direction, std) -> Float[Array, "*shape"]:
    """DDIM (Song et al. 2021, eq. 12); direction = sqrt(sigma_next^2 - std^2)."""
    return alpha_next * now.x0 + direction * now.epsilon + std * now.noise


def euler_update(now: Estimate, sigma_next) -> Float[Array, "*shape"]:
    """Euler's method on dx/dsigma = epsilon (Karras et al. 2022, algorithm 1 without the correction).

    x + (sigma_next - sigma) epsilon, written from x_0 = x - sigma epsilon so that a large sigma does not cancel.
    """
    return now.x0 + sigma_next * now.epsilon


def euler_ancestral_update(now: Estimate, sigma_down, sigma_up) -> Float[Array, "*shape"]:
    """Euler's method to sigma_down, then noise up to sqrt(sigma_down^2 + sigma_up^2) (k-diffusion's ancestral step)."""
    return now.x0 + sigma_down * now.epsilon + sigma_up * now.noise


def dpmpp_2m_update(now: Estimate, noise_ratio, gain, half_step_ratio) -> Float[Array, "*shape"]:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2).

    noise_ratio = sigma_next / sigma, gain = alpha_next (1 - e^-h), half_step_ratio = 1 / 2r, 0 where first order.
    """
    x0 = now.x0 + half_step_ratio * (now.x0 - now.previous_x0)
    return noise_ratio * now.x + gain * x0


def lcm_update(now: Estimate, c_skip, c_out, alpha_next, sigma_next) -> Float[Array, "*shape"]:
    """Multistep consistency sampling (Luo et al. 2023, algorithm 3): jump to x_0, add fresh noise for the next step."""
    return alpha_next * (c_skip * now.x + c_out * now.x0) + sigma_next * now.noise


def ddim(
    schedule: NoiseSchedule, num_steps: int, *, spacing: str, steps_offset: int, eta: float, set_alpha_to_one: bool
) -> Sampler:
    """DDIM's tables. As in diffusers, "next" lies T // num_steps below a timestep, whatever the spacing."""
    check_eta(eta)
    timesteps = _timesteps(schedule, num_steps, spacing, steps_offset).round().astype(int)
    alpha, sigma = _trained_scales(schedule, timesteps)
    below = timesteps - schedule.num_train_timesteps // num_steps
    alphas_cumprod = schedule.alphas_cumprod.astype(np.float64)
    last = 1.0 if set_alpha_to_one else alphas_cumprod[0]
    next_cumprod = np.where(below >= 0, alphas_cumprod[np.maximum(below, 0)], last)
    variance = (1 - next_cumprod) / sigma**2 * (1 - alpha**2 / next_cumprod)
    std = eta * np.sqrt(np.maximum(variance, 0))
    return _sampler(
        schedule,
        timesteps,
        alpha,
        sigma,
        ddim_update,
        {
            "alpha_next": np.sqrt(next_cumprod),
            "direction": np.sqrt(np.maximum(1 - next_cumprod - std**2, 0)),
            "std": std,
        },
        stochastic=eta > 0,
    )


def euler(schedule: NoiseSchedule, num_steps: int, *, spacing: str, steps_offset: int) -> Sampler:
    """Euler's tables, over noise levels sigma / alpha; the latents keep the signal's scale and let the noise grow."""
    timesteps, sigma, sigma_next = _noise_levels(schedule, _timesteps(schedule, num_steps, spacing, steps_offset))
    scale = np.hypot(1, sigma)
    return _sampler(schedule, timesteps, *_unit_variance(sigma), euler_update, {"sigma_next": sigma_next}, scale)


def euler_ancestral(schedule: NoiseSchedule, num_steps: int, *, spacing: str, steps_offset: int) -> Sampler:
    """Euler's tables with part of each next noise level, sigma_up, made of fresh noise."""
    timesteps, sigma, sigma_next = _noise_levels(schedule, _timesteps(schedule, num_steps, spacing, steps_offset))
    return _sampler(
        schedule,
        timesteps,
        *_unit_variance(sigma),
        euler_ancestral_update,
        {
            "sigma_down": sigma_next**2 / sigma,
            "sigma_up": sigma_next * np.sqrt(sigma**2 - sigma_next**2) / sigma,
        },
        np.hypot(1, sigma),
        stochastic=True,
    )


def dpmpp_2m(
    schedule: NoiseSchedule, num_steps: int, *, spacing: str, steps_offset: int, karras_sigmas: bool
) -> Sampler:
    """DPM-Solver++(2M)'s tables. First order at a run's first step (no history) and last (to zero noise)."""
    if karras_sigmas:
        timesteps, sigma, sigma_next = _karras_noise_levels(schedule, num_steps)
    else:
        timesteps = _timesteps(schedule, num_steps, spacing, steps_offset, num_points=num_steps + 1).round()
        timesteps, sigma, sigma_next = _noise_levels(schedule, timesteps)
    alpha_next, _ = _unit_variance(sigma_next)
    half_step_ratio = np.zeros(num_steps)
    h = np.log(sigma[:-1] / sigma[1:])  # lambda_next - lambda, for every step but the last
    half_step_ratio[1:-1] = h[1:] / (2 * h[:-1])
    return _sampler(
        schedule,
        timesteps,
        *_unit_variance(sigma),
        dpmpp_2m_update,
        {
            "noise_ratio": alpha_next * sigma_next * np.hypot(1, sigma) / sigma,
            "gain": alpha_next * (1 - sigma_next / sigma),
            "half_step_ratio": half_step_ratio,
        },
    )


def lcm(schedule: NoiseSchedule, num_steps: int, *, original_steps: int, timesteps: tuple[int, ...]) -> Sampler:
    """LCM's tables: its timesteps are some of those it was distilled on, which end at the last training timestep."""
    timesteps = _distilled_timesteps(schedule, num_steps, original_steps, timesteps)
    alpha, sigma = _trained_scales(schedule, timesteps)
    sigma_data, scaled = 0.5, 10.0 * timesteps  # Luo et al. 2023, appendix; the timestep scaling is diffusers' default
    return _sampler(
        schedule,
        timesteps,
        alpha,
        sigma,
        lcm_update,
        {
            "c_skip": sigma_data**2 / (scaled**2 + sigma_data**2),
            "c_out": scaled / np.hypot(scaled, sigma_data),
            "alpha_next": np.append(alpha[1:], 1.0),
            "sigma_next": np.append(sigma[1:], 0.0),
        },
        stochastic=True,
    )


def tcd(
    schedule: NoiseSchedule, num_steps: int, *, original_steps: int, timesteps: tuple[int, ...], eta: float
) -> Sampler:
    """TCD's tables (Zheng et al. 2024, algorithm 4): to timestep s = (1 - eta) next, then noised up to the next.

    DDIM's update rule does both: alpha_next x_0 + (alpha_next / alpha_s) sigma_s epsilon + the rest of new noise. As in
    diffusers, timesteps are LCM's, and the run ends at timestep 0.
    """
    check_eta(eta)
    timesteps = _distilled_timesteps(schedule, num_steps, original_steps, timesteps)
    after = np.append(timesteps[1:], 0)
    # float32, as diffusers has it: a product just below a whole number is the timestep below
    alpha_s, sigma_s = _trained_scales(schedule, np.floor(np.float32(1 - eta) * after.astype(np.float32)).astype(int))
    alpha_next, _ = _trained_scales(schedule, after)
    ratio = alpha_next / alpha_s
    return _sampler(
        schedule,
        timesteps,
        *_trained_scales(schedule, timesteps),
        ddim_update,
        {"alpha_next": alpha_next, "direction": ratio * sigma_s, "std": np.sqrt(np.maximum(1 - ratio**2, 0))},
        stochastic=eta > 0,
    )


SAMPLERS = {
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "dpmpp_2m": dpmpp_2m,
    "lcm": lcm,
    "tcd": tcd,
    "ldm_ddim": ldm_ddim,
}
# What `make` can be given, and what it takes otherwise. A sampler gets the options its builder names.
OPTIONS = {
    "spacing": "leading",
    "steps_offset": 1,
    "eta": 0.0,
    "set_alpha_to_one": True,
    "karras_sigmas": False,
    "original_steps": 50,
    "timesteps": (),
    "noisiest": 1000,
}
SPACINGS = ("leading", "trailing", "linspace")


def make(name: str, schedule: NoiseSchedule, num_steps: int, **options) -> Sampler:
    """Makes a sampler.

    Args:
        name: one of `SAMPLERS`.
        schedule: the noise schedule and prediction type of the network.
        num_steps: number of steps, 1 .. `schedule.num_train_timesteps`.
        **options: any of `OPTIONS`:
            spacing: how timesteps are spread (Lin et al. 2023, table 2): `leading`, `trailing` or `linspace`; lcm and
                tcd have their own.
            steps_offset: added to `leading` timesteps; 1 for Stable Diffusion.
            eta: in [0, 1]; ddim and ldm_ddim: 0 is deterministic, 1 as noisy as DDPM; tcd: its gamma, 0 is
                deterministic, 1 takes all noise anew at each step, as lcm does.
            set_alpha_to_one: ddim, whether the last step ends in clean latents or in those of timestep 0.
            karras_sigmas: dpmpp_2m, the noise levels of Karras et al. 2022, eq. 5, whatever the spacing.
            original_steps: lcm and tcd, the number of steps it was distilled on, of which `num_steps` are taken.
            timesteps: lcm and tcd, timesteps of one's own in place of those, descending, as many as `num_steps`.
            noisiest: ldm_ddim, the timestep that the run starts below.

    Raises:
        InputError: unknown sampler, spacing or option, an option or a dynamic rescale that this sampler does not have,
            a number out of range, or a start at pure noise for a network that predicts epsilon, which says nothing
            there.
    """
    check_known("unknown sampler ", name, SAMPLERS)
    if not 1 <= num_steps <= schedule.num_train_timesteps:
        raise InputError(f"{num_steps} sampling steps given; wanted 1 .. {schedule.num_train_timesteps}")
    own = inspect.signature(SAMPLERS[name]).parameters
    for option, value in options.items():
        check_known("unknown sampler option ", option, OPTIONS)
        if option not in own and value != OPTIONS[option]:
            raise InputError(f"sampler {name!r} has no {option}, {value!r} given; leave it at {OPTIONS[option]!r}")
    if schedule.base_scale and name != "ldm_ddim":
        raise InputError(
            f"sampler {name!r} knows no dynamic rescale, which the model was trained with "
            f"(noise_schedule.base_scale={schedule.base_scale}); wanted ldm_ddim"
        )
    settings = OPTIONS | options
    check_known("unknown spacing ", settings["spacing"], SPACINGS)
    return SAMPLERS[name](schedule, num_steps, **{option: settings[option] for option in OPTIONS if option in own})


def _sampler(schedule, timesteps, alpha, sigma, update, coefficients, scale=None, stochastic=False) -> Sampler:
    if schedule.prediction_type == "epsilon" and not alpha.all():
        raise InputError(
            "this run starts at pure noise (zero terminal SNR), where a network that predicts epsilon says nothing of "
            "the picture; wanted prediction_type v_prediction or sample, or leading spacing"
        )
    scale = np.ones(len(timesteps)) if scale is None else scale
    tables = (np.asarray(table, np.float32) for table in (timesteps, alpha, sigma, scale))
    coefficients = {name: np.asarray(table, np.float32) for name, table in coefficients.items()}
    return Sampler(schedule, *tables, update, coefficients, stochastic)


def _timesteps(
    schedule: NoiseSchedule, num_steps: int, spacing: str, steps_offset: int, num_points: int | None = None
) -> Float[np.ndarray, "n"]:
    """Descending timesteps: the first `num_steps` of a grid of `num_points`, by default all of it."""
    last, num_points = schedule.num_train_timesteps, num_points or num_steps
    if num_points > last:
        raise InputError(f"{num_steps} steps given; this sampler wants fewer than {last}, the training timesteps")
    if spacing == "leading":
        timesteps = np.arange(num_points)[::-1] * (last // num_points) + float(steps_offset)
    elif spacing == "trailing":
        timesteps = np.arange(last, 0, -last / num_steps).round() - 1
    else:
        timesteps = np.linspace(0, last - 1, num_points)[::-1]
    timesteps = timesteps[:num_steps]
    if not 0 <= timesteps[-1] <= timesteps[0] < last:
        raise InputError(
            f"{num_steps} steps with steps_offset {steps_offset} run over timesteps {timesteps[-1]:.0f} .. "
            f"{timesteps[0]:.0f}; wanted 0 .. {last - 1}: take fewer steps or a smaller offset"
        )
    return timesteps


def _distilled_timesteps(
    schedule: NoiseSchedule, num_steps: int, original_steps: int, given: tuple[int, ...]
) -> Int[np.ndarray, "n"]:
    """Of the `original_steps` timesteps that a model was distilled on, `num_steps` ones; or those given by hand."""
    train_steps = schedule.num_train_timesteps
    if given:
        timesteps = np.asarray(given)
        falling = timesteps.dtype.kind == "i" and (np.diff(timesteps) < 0).all()
        if not falling or len(timesteps) != num_steps or not 0 <= timesteps[-1] <= timesteps[0] < train_steps:
            raise InputError(
                f"timesteps = {given} given, and {num_steps} steps; wanted as many whole numbers, {train_steps - 1} .. "
                "0, each smaller than the one before"
            )
        return timesteps
    if not 1 <= num_steps <= original_steps <= train_steps:
        raise InputError(
            f"{num_steps} steps of {original_steps} original_steps given; "
            f"wanted 1 <= steps <= original_steps <= {train_steps}"
        )
    distilled = np.arange(original_steps, 0, -1) * (train_steps // original_steps) - 1
    return distilled[np.linspace(0, original_steps, num_steps, endpoint=False).astype(int)]


def _trained_scales(schedule: NoiseSchedule, timesteps: Int[np.ndarray, "n"]):
    """alpha and sigma at whole timesteps."""
    alphas_cumprod = schedule.alphas_cumprod[timesteps].astype(np.float64)
    return np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)


def _unit_variance(noise_level: Float[np.ndarray, "n"]):
    """alpha and sigma with alpha^2 + sigma^2 = 1 and sigma / alpha = noise_level."""
    return 1 / np.hypot(1, noise_level), noise_level / np.hypot(1, noise_level)


def _noise_levels(schedule: NoiseSchedule, timesteps: Float[np.ndarray, "n"]):
    """The timesteps, with the noise level sigma / alpha of each and of the one after; the run ends at 0."""
    train_steps = np.arange(schedule.num_train_timesteps)
    levels = np.interp(timesteps, train_steps, schedule.noise_to_signal).astype(np.float32).astype(np.float64)
    return timesteps, levels, np.append(levels[1:], 0.0)


def _karras_noise_levels(schedule: NoiseSchedule, num_steps: int):
    """As `_noise_levels`, over the whole of the schedule by Karras et al. 2022, eq. 5, with rho = 7."""
    trained = schedule.noise_to_signal.astype(np.float64)
    first, last = trained[-1] ** (1 / 7), trained[0] ** (1 / 7)
    levels = (first + np.linspace(0, 1, num_steps) * (last - first)) ** 7
    timesteps = np.interp(np.log(levels), np.log(schedule.noise_to_signal), np.arange(len(trained)))
    # diffusers rounds to the nearest trained timestep, but for the cosine schedule rounds down
    timesteps = np.floor(timesteps) if schedule.kind == "cosine" else timesteps.round()
    levels = levels.astype(np.float32).astype(np.float64)
    return timesteps, levels, np.append(levels[1:], 0.0)
