"""DDIM as the original code of latent video models has it (`lvdm`: VideoCrafter, DynamiCrafter), with dynamic rescale.

A step's next timestep is the next one of the run, not a fixed distance below; the last step ends at timestep 0's noise.
Models with a dynamic rescale (Xing et al. 2023) were trained on latents that are smaller at noisier timesteps.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.diffusion.sampler import Estimate, Sampler
from i2v_jax.errors import InputError

SPACINGS = ("leading", "trailing")


def rescaled_ddim_update(now: Estimate, alpha_next, direction, std, rescale) -> Float[Array, "*shape"]:
    """DDIM (Song et al. 2021, eq. 12) from x_0 brought to the next timestep's scale; epsilon is left as it is."""
    return alpha_next * (rescale * now.x0) + direction * now.epsilon + std * now.noise


def ldm_ddim(
    schedule: NoiseSchedule, num_steps: int, *, spacing: str, steps_offset: int, eta: float, noisiest: int
) -> Sampler:
    """The tables of a run that starts at (just below) timestep `noisiest`.

    1 - alpha_next^2 - std^2 is taken in float32, as published, where at zero terminal SNR and eta 1 it is 0 but for
    rounding; where that makes it negative, the published code returns no numbers, and this one takes 0.

    Raises:
        InputError: eta, spacing or `noisiest` out of range, or more steps than timesteps.
    """
    check_eta(eta)
    if spacing not in SPACINGS:
        raise InputError(f"sampler 'ldm_ddim' has spacing {' and '.join(SPACINGS)}; {spacing!r} given")
    if not num_steps <= noisiest <= schedule.num_train_timesteps:
        raise InputError(
            f"noisiest={noisiest} given, and {num_steps} steps; wanted at least as many as steps, and at most "
            f"{schedule.num_train_timesteps}"
        )
    if spacing == "trailing":
        timesteps = np.arange(noisiest, 0, -noisiest / num_steps).round()[:num_steps].astype(int) - 1
    else:
        timesteps = np.arange(num_steps)[::-1] * (noisiest // num_steps) + steps_offset
    if not 0 <= timesteps[-1] <= timesteps[0] < schedule.num_train_timesteps:
        raise InputError(
            f"timesteps {timesteps[-1]} .. {timesteps[0]} with steps_offset={steps_offset}; wanted 0 .. 999"
        )
    cumprod = schedule.alphas_cumprod[timesteps]
    following = np.append(cumprod[1:], schedule.alphas_cumprod[0])
    if schedule.prediction_type == "epsilon" and not cumprod.all():
        raise InputError(
            "this run starts at pure noise (zero terminal SNR), where a network that predicts epsilon says nothing of "
            "the picture; wanted prediction_type v_prediction or sample, or leading spacing"
        )
    exact, exact_next = cumprod.astype(np.float64), following.astype(np.float64)
    std = (eta * np.sqrt((1 - exact_next) / (1 - exact) * (1 - exact / exact_next))).astype(np.float32)
    scale = schedule.scales[timesteps]
    tables = dict(
        alpha_next=np.sqrt(following),
        direction=np.sqrt(np.maximum(np.float32(1) - following - std**2, 0)),
        std=std,
        rescale=np.append(scale[1:], scale[-1]) / scale,
    )
    return Sampler(
        schedule,
        timesteps.astype(np.float32),
        np.sqrt(cumprod),
        np.sqrt(1 - cumprod),
        np.ones(num_steps, np.float32),
        rescaled_ddim_update,
        {name: table.astype(np.float32) for name, table in tables.items()},
        stochastic=eta > 0,
    )


def analytic_initial(
    schedule: NoiseSchedule,
    noisiest: int,
    mean: Float[Array, "*video"],
    spread: Float[Array, ""],
    noise: Float[Array, "*video"],
) -> Float[Array, "*video"]:
    """Returns latents to start at a timestep below the last (Analytic-Init, Zhao et al. 2024, section 4.1).

    Args:
        schedule: of the model.
        noisiest: as of `ldm_ddim`.
        mean: of clean latents over many videos (`Expectation_X0`).
        spread: the mean of their variances (`Tr_Cov_d`).
        noise: standard normal.
    """
    cumprod = jnp.float32(schedule.alphas_cumprod[noisiest - 1])
    return jnp.sqrt(cumprod) * mean + jnp.sqrt(1 - cumprod + cumprod * spread) * noise


def check_eta(eta: float) -> None:
    """Raises InputError for a share of new noise that is none."""
    if not 0 <= eta <= 1:
        raise InputError(f"eta = {eta} given; wanted a number in [0, 1], 0 for a deterministic run")
