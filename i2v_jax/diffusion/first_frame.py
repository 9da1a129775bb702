"""Holding the first frame: it is the picture, and stays clean at every step (I2V-Adapter, section 3.1)."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from i2v_jax.diffusion.samplers import Sampler, SamplerState


def pin(latents: Float[Array, "b f h w c"], first_frame: Float[Array, "b 1 h w c"]):
    """The latents with frame 1 replaced; chosen by frame index, so that frames may lie on different devices."""
    is_first = jnp.arange(latents.shape[-4])[:, None, None, None] == 0
    return jnp.where(is_first, first_frame.astype(latents.dtype), latents)


@dataclass(frozen=True, eq=False)
class FirstFrameSampler(Sampler):
    """A sampler of video whose first frame is clean at every step; made by `hold`."""

    first_frame: Float[Array, "b 1 h w c"]

    def init(self, latents: Float[Array, "b f h w c"]) -> SamplerState:
        return self._pinned(super().init(latents))

    def scale_input(self, latents: Float[Array, "b f h w c"], i: Int[Array, ""]) -> Float[Array, "b f h w c"]:
        return pin(super().scale_input(latents, i), self.first_frame)

    def add_noise(
        self, clean: Float[Array, "b f h w c"], noise: Float[Array, "b f h w c"], i: Int[Array, ""]
    ) -> Float[Array, "b f h w c"]:
        return pin(super().add_noise(clean, noise, i), self.first_frame)

    def step(
        self, state: SamplerState, i: Int[Array, ""], prediction: Float[Array, "b f h w c"], noise=None
    ) -> SamplerState:
        return self._pinned(super().step(state, i, prediction, noise))

    def _pinned(self, state: SamplerState) -> SamplerState:
        latents, x0 = (pin(x, self.first_frame) for x in (state.latents, state.x0))
        return state._replace(latents=latents, x0=x0)


def hold(sampler: Sampler, first_frame: Float[Array, "b 1 h w c"]) -> FirstFrameSampler:
    """The same sampler for video whose first frame stays clean (I2V-Adapter, section 3.1).

    The frame is pinned in the latents, before the first step and after each, and in what the network sees, where it is
    never scaled. May be called inside `jit`, with a traced `first_frame`.

    Args:
        sampler: from `make`.
        first_frame: clean latents of the picture.
    """
    return FirstFrameSampler(**vars(sampler), first_frame=first_frame)
