"""How much signal and how much noise a training timestep holds: x_t = alpha_t x_0 + sigma_t epsilon.

Discrete variance-preserving schedules (Ho et al. 2020), what a network may predict (Salimans & Ho 2022, section 4 and
appendix D), and the zero-terminal-SNR rescale (Lin et al. 2023, algorithm 1).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from i2v_jax.errors import InputError, check_known

KINDS = ("linear", "scaled_linear", "scaled_linear_double", "cosine")
SCALED_BEFORE = 400
"""Timesteps over which a dynamic rescale falls from 1 to its base scale."""
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
DIFFUSERS_KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}


@dataclass(frozen=True)
class NoiseSchedule:
    """A noise schedule by its settings; hashable, so it can be a static argument. Its tables equal those of diffusers.

    Attributes:
        kind: how beta grows: `linear`, `scaled_linear` (its root is linear), `scaled_linear_double` (the same in double
            precision, as the original code of latent diffusion has it) or `cosine` (Nichol & Dhariwal 2021).
        beta_start, beta_end: the first and last beta, in (0, 1); `cosine` has its own.
        num_train_timesteps: timesteps t are 0 .. num_train_timesteps - 1.
        prediction_type: what the network predicts: `epsilon`, `v_prediction` or `sample` (x_0).
        zero_terminal_snr: rescale so that the last timestep is pure noise.
        base_scale: clean latents are trained on times this at noisy timesteps, times 1 to this at the first 400
            (dynamic rescale, Xing et al. 2023); 0: not rescaled.

    Raises:
        InputError: an unknown kind or prediction type, betas or a number of timesteps out of range.
    """

    kind: str = "linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    num_train_timesteps: int = 1000
    prediction_type: str = "epsilon"
    zero_terminal_snr: bool = False
    base_scale: float = 0.0

    def __post_init__(self):
        for what, given, known in (
            ("noise schedule", self.kind, KINDS),
            ("prediction type", self.prediction_type, PREDICTION_TYPES),
        ):
            check_known(f"unknown {what} ", given, known)
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise InputError(f"betas {self.beta_start} .. {self.beta_end} given; wanted 0 < beta_start <= beta_end < 1")
        if not 0 <= self.base_scale <= 1:
            raise InputError(f"base_scale = {self.base_scale} given; wanted a number in [0, 1], 0 for no rescale")
        if self.num_train_timesteps < 2:
            raise InputError(f"num_train_timesteps = {self.num_train_timesteps} given; wanted 2 or more")

    @classmethod
    def from_diffusers(cls, config: dict) -> "NoiseSchedule":
        """Reads the schedule out of a diffusers `scheduler_config.json`; absent keys take diffusers' defaults.

        Raises:
            InputError: a beta schedule or prediction type we do not have, or a table of trained betas.
        """
        if config.get("trained_betas") is not None:
            raise InputError("the scheduler config has `trained_betas`; wanted a named `beta_schedule` and no table")
        kind = config.get("beta_schedule", "linear")
        check_known("the scheduler config has beta_schedule ", kind, DIFFUSERS_KINDS)
        return cls(
            kind=DIFFUSERS_KINDS[kind],
            beta_start=config.get("beta_start", 0.0001),
            beta_end=config.get("beta_end", 0.02),
            num_train_timesteps=config.get("num_train_timesteps", 1000),
            prediction_type=config.get("prediction_type", "epsilon"),
            zero_terminal_snr=config.get("rescale_betas_zero_snr", False),
        )

    @cached_property
    def betas(self) -> Float[np.ndarray, "t"]:
        """The variance added at each timestep, float32."""
        count = self.num_train_timesteps
        if self.kind == "scaled_linear_double":
            return self._betas_double.astype(np.float32)
        if self.kind == "linear":
            betas = _linspace(self.beta_start, self.beta_end, count)
        elif self.kind == "scaled_linear":
            betas = _linspace(self.beta_start**0.5, self.beta_end**0.5, count) ** 2
        else:
            bar = [math.cos((t / count + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(count + 1)]
            betas = np.array([min(1 - b / a, 0.999) for a, b in zip(bar, bar[1:])], np.float32)
        return _zero_terminal_snr(betas) if self.zero_terminal_snr else betas

    @cached_property
    def alphas_cumprod(self) -> Float[np.ndarray, "t"]:
        """alpha_t^2, the share of the signal in the variance of x_t, float32."""
        if self.kind == "scaled_linear_double":
            return np.cumprod(1 - self._betas_double).astype(np.float32)
        return _cumprod(1 - self.betas)

    @cached_property
    def _betas_double(self) -> Float[np.ndarray, "t"]:
        """Betas of `scaled_linear_double`, float64."""
        betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps) ** 2
        if not self.zero_terminal_snr:
            return betas
        alpha = np.sqrt(np.cumprod(1 - betas))
        alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
        return 1 - np.append(alpha[0] ** 2, alpha[1:] ** 2 / alpha[:-1] ** 2)

    @cached_property
    def scales(self) -> Float[np.ndarray, "t"]:
        """What clean latents are multiplied by at each timestep before noise is added, float32."""
        if not self.base_scale:
            return np.ones(self.num_train_timesteps, np.float32)
        falling = np.linspace(1, self.base_scale, SCALED_BEFORE)
        return np.append(falling, np.full(self.num_train_timesteps, self.base_scale))[
            : self.num_train_timesteps
        ].astype(np.float32)

    @cached_property
    def noise_to_signal(self) -> Float[np.ndarray, "t"]:
        """sigma_t / alpha_t, float32: the noise level of Karras et al. 2022, kept finite at a terminal SNR of zero."""
        alphas_cumprod = self.alphas_cumprod.copy()
        if self.zero_terminal_snr:
            alphas_cumprod[-1] = 2**-24  # diffusers' choice, the smallest positive float16
        return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)

    def alpha(self, timesteps: Int[Array, "*n"]) -> Float[Array, "*n"]:
        """The scale of the signal at these timesteps, float32."""
        return jnp.asarray(np.sqrt(self.alphas_cumprod))[timesteps]

    def sigma(self, timesteps: Int[Array, "*n"]) -> Float[Array, "*n"]:
        """The scale of the noise at these timesteps, float32."""
        return jnp.asarray(np.sqrt(1 - self.alphas_cumprod))[timesteps]

    def add_noise(
        self, clean: Float[Array, "b *shape"], noise: Float[Array, "b *shape"], timesteps: Int[Array, "b"]
    ) -> Float[Array, "b *shape"]:
        """The forward process: alpha_t clean + sigma_t noise, one timestep for each example of the batch, float32.

        `clean` is taken as it is: see `scaled`.
        """
        alpha, sigma = (jnp.expand_dims(scale(timesteps), range(1, clean.ndim)) for scale in (self.alpha, self.sigma))
        return alpha * _f32(clean) + sigma * _f32(noise)

    def scaled(self, clean: Float[Array, "b *shape"], timesteps: Int[Array, "b"]) -> Float[Array, "b *shape"]:
        """Clean latents as the dynamic rescale has them at these timesteps, float32: what is noised, and aimed at."""
        scale = jnp.asarray(self.scales)[timesteps]
        return jnp.expand_dims(scale, range(1, clean.ndim)) * _f32(clean)


# SD1.5 motion modules; SD1.5 pictures; SDXL-beta motion modules (the schedules they were trained with).
ANIMATEDIFF_SD15 = NoiseSchedule(kind="linear", beta_start=0.00085, beta_end=0.012)
SD15 = NoiseSchedule(kind="scaled_linear", beta_start=0.00085, beta_end=0.012)
ANIMATEDIFF_SDXL_BETA = NoiseSchedule(kind="scaled_linear", beta_start=0.00085, beta_end=0.020)


def to_x0(
    prediction_type: str, prediction: Float[Array, "*n"], x: Float[Array, "*n"], alpha: Float[Array, "*n"], sigma
) -> Float[Array, "*n"]:
    """The clean x_0 that a prediction stands for.

    Args:
        prediction_type: what the network predicts, one of `PREDICTION_TYPES`.
        prediction: the network's output for `x`, any float dtype.
        x: what the network saw, alpha x_0 + sigma epsilon with alpha^2 + sigma^2 = 1.
        alpha, sigma: scales of signal and noise in `x`, broadcastable to it.

    Returns:
        x_0, float32.
    """
    prediction, x = _f32(prediction), _f32(x)
    if prediction_type == "sample":
        return prediction
    if prediction_type == "v_prediction":
        return alpha * x - sigma * prediction
    return (x - sigma * prediction) / alpha


def to_epsilon(
    prediction_type: str, prediction: Float[Array, "*n"], x: Float[Array, "*n"], alpha: Float[Array, "*n"], sigma
) -> Float[Array, "*n"]:
    """The noise epsilon that a prediction stands for, float32; arguments as in `to_x0`."""
    prediction, x = _f32(prediction), _f32(x)
    if prediction_type == "sample":
        return (x - alpha * prediction) / sigma
    if prediction_type == "v_prediction":
        return alpha * prediction + sigma * x
    return prediction


def target(
    prediction_type: str, x0: Float[Array, "*n"], epsilon: Float[Array, "*n"], alpha: Float[Array, "*n"], sigma
) -> Float[Array, "*n"]:
    """What the network should predict for alpha x_0 + sigma epsilon, float32: inverse of `to_x0` and `to_epsilon`."""
    x0, epsilon = _f32(x0), _f32(epsilon)
    if prediction_type == "sample":
        return x0
    if prediction_type == "v_prediction":
        return alpha * epsilon - sigma * x0
    return epsilon


def _f32(x) -> Float[Array, "..."]:
    return jnp.asarray(x, jnp.float32)


def _linspace(start: float, stop: float, count: int) -> Float[np.ndarray, "count"]:
    """PyTorch's float32 linspace to the last bit: a float32 step, counted from the nearer end, rounded once."""
    start, stop = np.float32(start), np.float32(stop)
    step, i = np.float64((stop - start) / np.float32(count - 1)), np.arange(count)
    return np.where(i < count // 2, start + step * i, stop - step * (count - 1 - i)).astype(np.float32)


def _cumprod(alphas: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
    """PyTorch's float32 cumulative product to the last bit: carried in float64, each entry rounded once."""
    return np.cumprod(alphas, dtype=np.float64).astype(np.float32)


def _zero_terminal_snr(betas: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
    """Shifts and scales alpha_t so that the last is 0 and the first keeps its value (Lin et al. 2023, algorithm 1)."""
    alpha = np.sqrt(_cumprod(1 - betas))
    alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
    alphas_cumprod = alpha**2
    return 1 - np.concatenate([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
