"""Denoisers: functions `(parameters, x, t, conditions) -> prediction`, and what wraps them; and one sampling step."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from i2v_jax.diffusion import guidance, samplers
from i2v_jax.diffusion.first_frame import hold
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.unet import UNet, UNetConfig
from i2v_jax.sampling.randomness import named_keys, normal

Denoise = Callable[
    [Mapping[str, Any], Float[Array, "b f h w c"], Float[Array, ""], Conditions], Float[Array, "b f h w c"]
]


def unet_denoiser(config: UNetConfig, strengths: Mapping[str, Any]) -> Denoise:
    """Returns a UNet as a denoiser; `strengths` are those of its adapters, by name."""
    unet = UNet(config)

    def denoise(parameters, x, t, conditions):
        return unet.apply({"params": parameters}, x, t, conditions, strengths)

    return denoise


def guided(
    denoise: Denoise, guidance_scale: Any, guidance_rescale: float = 0.0, where: Bool[Array, "..."] | None = None
) -> Denoise:
    """Returns a denoiser under classifier-free guidance, whose conditions are `[unconditional, conditional]`.

    Args:
      denoise: is called once, with twice as many videos.
      guidance_scale, guidance_rescale, where: see `diffusion.guidance.classifier_free`.
    """

    def both(parameters, x, t, conditions):
        predictions = denoise(parameters, jnp.concatenate([x, x]), t, conditions)
        return guidance.classifier_free(predictions, guidance_scale, guidance_rescale, where=where)

    return both


def sampling_step(
    config: UNetConfig,
    sampler: samplers.Sampler,
    parameters: Mapping[str, Any],
    state: samplers.SamplerState,
    i: Int[Array, ""],
    conditions: Conditions,
    first_frame: Float[Array, "n 1 h w c"] | None,
    seeds: Int[Array, " n"],
    strengths: Mapping[str, Any],
    *,
    is_guided: bool,
    guidance_rescale: float,
) -> tuple[samplers.SamplerState, Bool[Array, ""]]:
    """Takes one step of a run.

    Args:
      config, parameters: of the UNet.
      sampler: of the run.
      state: of the run so far.
      i: the step.
      conditions: of the videos; with guidance, `[unconditional, conditional]`.
      first_frame: clean latents that frame 1 is held at; None where it is sampled like the others.
      seeds: one per video.
      strengths: of the adapters, by name, and `guidance_scale`.
      is_guided, guidance_rescale: classifier-free guidance.

    Returns:
      The state after the step, and whether all of its latents are finite.
    """
    run = sampler if first_frame is None else hold(sampler, first_frame)
    denoise = unet_denoiser(config, strengths)
    if is_guided:
        frames, predicted = state.latents.shape[1], None
        if first_frame is not None and frames > 1:  # its prediction means nothing, and should not move others' spread
            predicted = jnp.arange(frames)[:, None, None, None] > 0
        denoise = guided(denoise, strengths["guidance_scale"], guidance_rescale, predicted)
    x = run.scale_input(state.latents, i)
    prediction = denoise(parameters, x, jnp.asarray(sampler.timesteps)[i], conditions)
    noise = None
    if sampler.stochastic:
        noise = step_noise(named_keys(seeds, "sampler noise"), i, state.latents.shape[1:])
    state = run.step(state, i, prediction, noise)
    return state, jnp.isfinite(state.latents).all()


def step_noise(keys: Key[Array, " n"], i: Int[Array, ""], shape: tuple[int, ...]) -> Float[Array, "n ..."]:
    """Returns the noise that stochastic samplers add at step i."""
    return normal(jax.vmap(functools.partial(jax.random.fold_in, data=i))(keys), shape)
