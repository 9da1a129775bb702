"""What a sampler is: static tables, one entry per step, and a pure update rule; it knows no network and no frames."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from i2v_jax.diffusion.noise_schedule import NoiseSchedule, to_epsilon, to_x0
from i2v_jax.errors import InputError


class SamplerState(NamedTuple):
    """What a run carries from step to step.

    Attributes:
        latents: the noisy latents, in the sampler's own scaling, float32.
        x0: the clean latents estimated at the last step (zeros before the first), float32.
        steps_taken: number of steps taken so far, int32.
    """

    latents: Float[Array, "*shape"]
    x0: Float[Array, "*shape"]
    steps_taken: Int[Array, ""]


class Estimate(NamedTuple):
    """What an update rule sees, all float32: the latents x, the x_0 and epsilon the network's prediction stands for,
    the x_0 of the step before (this step's own at the first one), and fresh Gaussian noise."""

    x: Float[Array, "*shape"]
    x0: Float[Array, "*shape"]
    epsilon: Float[Array, "*shape"]
    previous_x0: Float[Array, "*shape"]
    noise: Float[Array, "*shape"] | float


@dataclass(frozen=True, eq=False)
class Sampler:
    """A run's steps; made by `make`. In the sampler's own scaling, latents at step i are
    scale_i (alpha_i x_0 + sigma_i epsilon) with alpha_i^2 + sigma_i^2 = 1; the network sees them divided by scale_i.

    Attributes:
        schedule: the network's noise schedule.
        timesteps: the network's at each step, descending, float32 (Euler's `linspace` is not whole).
        alpha, sigma, scale: tables of the line above, float32.
        update: the update rule, called with an `Estimate` and this step's entries of `coefficients` by name.
        coefficients: the update rule's own tables, each of `num_steps` float32 entries.
        stochastic: whether steps need fresh noise.
    """

    schedule: NoiseSchedule
    timesteps: Float[np.ndarray, "n"]
    alpha: Float[np.ndarray, "n"]
    sigma: Float[np.ndarray, "n"]
    scale: Float[np.ndarray, "n"]
    update: Callable[..., Float[Array, "*shape"]]
    coefficients: dict[str, Float[np.ndarray, "n"]]
    stochastic: bool

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    def start_index(self, t0: float, name: str = "t0") -> int:
        """The first step whose timestep is at most t0 num_train_timesteps: where a run of prior strength t0 starts.

        Args:
            t0: in (0, 1]; 1 is the whole run, less starts later, from less noise, and takes fewer steps.
            name: of it in messages.

        Raises:
            InputError: t0 out of range, or so small that no step is left.
        """
        if not 0 < t0 <= 1:
            raise InputError(f"{name} = {t0} given; wanted a number in (0, 1], 1 for the whole run")
        late_enough = np.flatnonzero(self.timesteps <= t0 * self.schedule.num_train_timesteps)
        if not len(late_enough):
            least = self.timesteps[-1] / self.schedule.num_train_timesteps
            raise InputError(f"{name} = {t0} leaves none of the {self.num_steps} steps; wanted {least:.4g} or more")
        return int(late_enough[0])

    def init(self, latents: Float[Array, "*shape"]) -> SamplerState:
        """The state a run starts from, given noisy latents in the sampler's own scaling, as `add_noise` makes them."""
        latents = jnp.asarray(latents, jnp.float32)
        return SamplerState(latents, jnp.zeros_like(latents), jnp.zeros((), jnp.int32))

    def scale_input(self, latents: Float[Array, "*shape"], i: Int[Array, ""]) -> Float[Array, "*shape"]:
        """What the network sees at step i: the latents with unit variance, float32."""
        return jnp.asarray(latents, jnp.float32) / _at(self.scale, i)

    def add_noise(
        self, clean: Float[Array, "*shape"], noise: Float[Array, "*shape"], i: Int[Array, ""]
    ) -> Float[Array, "*shape"]:
        """The noisy latents at step i, in the sampler's own scaling, float32."""
        clean, noise = jnp.asarray(clean, jnp.float32), jnp.asarray(noise, jnp.float32)
        return _at(self.scale, i) * (_at(self.alpha, i) * clean + _at(self.sigma, i) * noise)

    def step(
        self,
        state: SamplerState,
        i: Int[Array, ""],
        prediction: Float[Array, "*shape"],
        noise: Float[Array, "*shape"] | None = None,
    ) -> SamplerState:
        """One step, from step i's noise level to the next.

        Args:
            state: the run so far.
            i: the step, 0 .. num_steps - 1; may be traced.
            prediction: the network's output for `scale_input(state.latents, i)` at `timesteps[i]`, any float dtype.
            noise: standard Gaussian noise; needed when `stochastic`, else not used.

        Raises:
            ValueError: a stochastic sampler without noise.
        """
        if self.stochastic and noise is None:
            raise ValueError("this sampler is stochastic: each step needs `noise`, Gaussian, of the latents' shape")
        scaled, alpha, sigma = self.scale_input(state.latents, i), _at(self.alpha, i), _at(self.sigma, i)
        x0 = to_x0(self.schedule.prediction_type, prediction, scaled, alpha, sigma)
        now = Estimate(
            x=state.latents,
            x0=x0,
            epsilon=to_epsilon(self.schedule.prediction_type, prediction, scaled, alpha, sigma),
            previous_x0=jnp.where(state.steps_taken > 0, state.x0, x0),
            noise=jnp.asarray(noise, jnp.float32) if self.stochastic else 0.0,
        )
        latents = self.update(now, **{name: _at(table, i) for name, table in self.coefficients.items()})
        return SamplerState(latents, x0, state.steps_taken + 1)


def sample(
    denoise: Callable[[Float[Array, "*shape"], Float[Array, ""]], Float[Array, "*shape"]],
    sampler: Sampler,
    state: SamplerState,
    noise: Callable[[Int[Array, ""]], Float[Array, "*shape"]] | None = None,
    start_index: int = 0,
) -> SamplerState:
    """Runs a sampler from `start_index` to its end in one `lax.scan`.

    Args:
        denoise: the network with its guidance: (scaled latents, timestep float32) -> prediction.
        sampler: from `make`, or from `first_frame.hold`.
        state: from `sampler.init`, with latents as noisy as step `start_index` wants.
        noise: the noise of step i, say `gaussian_noise(key, shape)`; for stochastic samplers.
        start_index: first step, from `sampler.start_index(t0)`.

    Returns:
        The state after the last step; its latents are clean.
    """

    def body(state, i):
        prediction = denoise(sampler.scale_input(state.latents, i), _at(sampler.timesteps, i))
        return sampler.step(state, i, prediction, noise(i) if sampler.stochastic and noise else None), None

    return jax.lax.scan(body, state, jnp.arange(start_index, sampler.num_steps))[0]


def gaussian_noise(key: Key[Array, ""], shape: tuple[int, ...]) -> Callable[[Int[Array, ""]], Float[Array, "*shape"]]:
    """The noise of each step as a function of the step alone, so that a scan and a loop draw the same."""
    return lambda i: jax.random.normal(jax.random.fold_in(key, i), shape, jnp.float32)


def _at(table: Float[np.ndarray, "n"], i: Int[Array, ""]) -> Float[Array, ""]:
    return jnp.asarray(table)[i]
