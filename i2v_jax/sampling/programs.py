"""The jitted programs of a run: its first state, one step, and what begins it again (FreeInit)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from i2v_jax.devices.mesh import replicated, video_sharding
from i2v_jax.diffusion import free_init, samplers, windows
from i2v_jax.diffusion.first_frame import hold
from i2v_jax.diffusion.frame_similarity_prior import degrade, initial_latents
from i2v_jax.families.model import Model
from i2v_jax.sampling import feature_reuse
from i2v_jax.sampling.denoiser import sampling_step, step_noise
from i2v_jax.sampling.randomness import named_keys, prior

Attention = tuple[windows.Windows, int]
"""FreeNoise's windows, and the frames of the video."""


def make(
    model: Model,
    mesh: jax.sharding.Mesh,
    sampler_name: str,
    steps: int,
    sampler_options: tuple[tuple[str, Any], ...],
    is_guided: bool,
    guidance_rescale: float,
    deep_cache_every: int,
    is_windowed: bool = False,
    attention: Attention | None = None,
) -> tuple[Callable, Callable]:
    """Returns the program of a run's first state, and that of one step (or `feature_reuse.Steps`).

    Args:
      model, mesh: of the pipeline.
      sampler_name, steps, sampler_options, is_guided, guidance_rescale, deep_cache_every: of `Settings`.
      is_windowed: the network runs on windows, which are a step's last argument.
      attention: where the motion modules' attentions run on windows.
    """
    sampler = samplers.make(sampler_name, model.schedule, steps, **dict(sampler_options))
    places, whole = state_places(mesh, is_windowed), replicated(mesh)

    @functools.partial(jax.jit, static_argnums=(2, 3, 4), out_shardings=places)
    def begin(first_frame, seeds, start, p, frames, order=None, made=None):
        video = (frames, *first_frame.shape[2:])
        mask, noise = prior(seeds, video, p, order)
        if made is not None:  # a second pass, which goes on from it
            run = sampler if model.takes_picture else hold(sampler, first_frame)
            return run.init(run.add_noise(made, noise, start))
        if model.family.has_picture:
            return sampler.init(noise)
        if model.takes_picture:  # then frame 1 is noised as the others are
            return sampler.init(sampler.add_noise(degrade(first_frame, mask), noise, start))
        noisy = initial_latents(first_frame, mask, noise, sampler, start)
        return hold(sampler, first_frame).init(noisy)

    step = functools.partial(
        sampling_step,
        networks(model, is_windowed, attention),
        sampler,
        is_guided=is_guided,
        guidance_rescale=guidance_rescale,
    )
    if deep_cache_every > 1:
        return begin, feature_reuse.Steps(step, deep_cache_every, (places, whole))
    return begin, jax.jit(step, donate_argnums=1, out_shardings=(places, whole))


def make_begin_again(
    model: Model,
    mesh: jax.sharding.Mesh,
    sampler_name: str,
    steps: int,
    sampler_options: tuple[tuple[str, Any], ...],
    settings: free_init.FreeInit,
    is_windowed: bool = False,
) -> Callable:
    """Returns the program of a run's first state where FreeInit begins it anew from what the run before has made."""
    sampler = samplers.make(sampler_name, model.schedule, steps, **dict(sampler_options))

    @functools.partial(jax.jit, static_argnums=(3, 5), out_shardings=state_places(mesh, is_windowed))
    def begin_again(made, first_frame, seeds, start, number, p, order=None):
        mask, noise = prior(seeds, made.shape[1:], p, order)
        fresh = step_noise(named_keys(seeds, "free init"), number, made.shape[1:])
        noisy = free_init.begin_again(made, noise, first_frame, mask, fresh, sampler, start, settings)
        return hold(sampler, first_frame).init(noisy)

    return begin_again


def state_places(mesh: jax.sharding.Mesh, is_windowed: bool) -> samplers.SamplerState:
    """Returns where a run's state lies, before a step and after; whole on each device where windows are spread."""
    whole = replicated(mesh)
    spread = whole if is_windowed else video_sharding(mesh)
    return samplers.SamplerState(latents=spread, x0=spread, steps_taken=whole)


def networks(model: Model, is_windowed: bool, attention: Attention | None) -> Mapping[str, Any]:
    """Returns the configs of a step's networks, by component, as windows want them."""
    configs = {"unet": model.configs["unet"], **model.controls}
    if is_windowed and configs["unet"].scan_blocks:  # what is kept of frame 1 does not leave a loop
        configs["unet"] = dataclasses.replace(configs["unet"], scan_blocks=False)
    if attention is None:
        return configs
    cut = windows.free_noise_cut(*attention)
    tables = tuple(tuple(map(tuple, table.tolist())) for table in cut[:2])
    for name, config in configs.items():
        if getattr(config, "motion", None):
            configs[name] = dataclasses.replace(config, motion=dataclasses.replace(config.motion, windows=tables))
    return configs
