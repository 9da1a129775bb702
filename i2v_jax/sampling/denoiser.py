"""Denoisers: functions `(parameters, x, t, conditions) -> prediction`, and what wraps them; and one sampling step."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from i2v_jax.diffusion import guidance, samplers
from i2v_jax.diffusion.first_frame import hold
from i2v_jax.encoders import controls
from i2v_jax.errors import InputError
from i2v_jax.models.adapters.windows import KEPT
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.networks import module_of
from i2v_jax.models.residuals import Residuals, total
from i2v_jax.sampling.randomness import named_keys, normal
from i2v_jax.sampling.windowed import Chunks, windowed

Denoise = Callable[
    [Mapping[str, Any], Float[Array, "b f h w c"], Float[Array, ""], Conditions], Float[Array, "b f h w c"]
]
"""Its parameters are those of every network that it runs, by component."""


def unet_denoiser(config: Any, strengths: Mapping[str, Any], network: Callable[[Any], Any] = module_of) -> Denoise:
    """Returns a UNet, which `network` makes of its config, as a denoiser; `strengths` are of its adapters, by name."""
    unet = network(config)

    def denoise(parameters, x, t, conditions, residuals=None, window=None, kept=None):
        given = x, t, conditions, strengths, residuals
        if window is None:
            return unet.apply({"params": parameters["unet"]}, *given)
        return unet.apply({"params": parameters["unet"], **kept}, *given, window=window, mutable=[KEPT])

    return denoise


def controlled(denoise: Callable, configs: Mapping[str, Any], weights: Float[Array, "n f"] | None) -> Denoise:
    """Returns a denoiser that control networks correct: what they add to the UNet's features is summed.

    Args:
      denoise: a UNet's, which takes `Residuals` as its last argument.
      configs: component -> config, of the control networks in the order of `Conditions.controls`.
      weights: strength of each network on each frame at this step; a network whose strengths are all 0 does not run.
    """
    if not configs:
        return denoise

    def corrected(parameters, x, t, conditions, weights=weights, **window):
        plain, added = conditions._replace(controls=()), []
        for (component, config), encoded, weight in zip(configs.items(), conditions.controls, weights, strict=True):
            run = functools.partial(controls.residuals, config, parameters[component], x, t, plain, encoded)
            added.append(weighted(run, weight))
        return denoise(parameters, x, t, plain, total(added), **window)

    return corrected


def weighted(run: Callable[[], Residuals], weight: Float[Array, "*b f"]) -> Residuals:
    """Returns what a control network adds, times its strength on each frame; with 0 on all it does not run."""

    def scaled() -> Residuals:
        return jax.tree.map(lambda x: x * jnp.asarray(weight, x.dtype)[..., None, None, None], run())

    def nothing() -> Residuals:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(scaled))

    return jax.lax.cond(jnp.any(weight != 0), scaled, nothing)


def guided(
    denoise: Denoise,
    guidance_scale: Any,
    guidance_rescale: float = 0.0,
    where: Bool[Array, "..."] | None = None,
    image_guidance_scale: Any = None,
) -> Denoise:
    """Returns a denoiser under classifier-free guidance, whose conditions are `[unconditional, conditional]`, or
    `[unconditional, of the picture alone, conditional]`.

    Args:
      denoise: is called once, with twice or three times as many videos.
      guidance_scale, guidance_rescale, where: see `diffusion.guidance.classifier_free`.
      image_guidance_scale: see `diffusion.guidance.guide_apart`, for three.
    """

    def all_sides(parameters, x, t, conditions):
        sides = conditions.text.shape[0] // x.shape[0]
        predictions = denoise(parameters, jnp.concatenate([x] * sides), t, conditions)
        if sides == 3:
            return guidance.guide_apart(predictions, guidance_scale, image_guidance_scale, guidance_rescale)
        return guidance.classifier_free(predictions, guidance_scale, guidance_rescale, where=where)

    return all_sides


def sampling_step(
    configs: Mapping[str, Any],
    sampler: samplers.Sampler,
    parameters: Mapping[str, Any],
    state: samplers.SamplerState,
    i: Int[Array, ""],
    conditions: Conditions,
    first_frame: Float[Array, "n 1 h w c"] | None,
    seeds: Int[Array, " n"],
    strengths: Mapping[str, Any],
    windows: Chunks | None = None,
    *,
    is_guided: bool,
    guidance_rescale: float,
    network: Callable[[Any], Any] = module_of,
) -> tuple[samplers.SamplerState, Bool[Array, ""]]:
    """Takes one step of a run.

    Args:
      configs, parameters: of the UNet and of the control networks, by component.
      sampler: of the run.
      state: of the run so far.
      i: the step.
      conditions: of the videos; with guidance, of its two or three sides, see `guided`.
      first_frame: clean latents that frame 1 is held at; None where it is sampled like the others.
      seeds: one per video.
      strengths: of the adapters, by name, `guidance_scale`, perhaps `image_guidance_scale`, and with control networks
        `controls`, see `controlled`.
      windows: of the step, which the networks see one after the other; None: they see whole videos.
      is_guided, guidance_rescale: classifier-free guidance.
      network: makes the UNet of its config.

    Returns:
      The state after the step, and whether all of its latents are finite.
    """
    run = sampler if first_frame is None else hold(sampler, first_frame)
    networks = {component: configs[component] for component in controls.components(configs)}
    weights = strengths.get("controls")
    denoise = controlled(unet_denoiser(configs["unet"], strengths, network), networks, weights)
    denoise = windowed(denoise, windows, weights if networks else None)
    if is_guided:
        frames, predicted = state.latents.shape[1], None
        if first_frame is not None and frames > 1:  # its prediction means nothing, and should not move others' spread
            predicted = jnp.arange(frames)[:, None, None, None] > 0
        scales = strengths["guidance_scale"], guidance_rescale, predicted, strengths.get("image_guidance_scale")
        denoise = guided(denoise, *scales)
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


def stop_unless(finite: Any, step: int, total: int) -> None:
    """Raises InputError where the latents after a step are not finite."""
    if not finite:
        raise InputError(
            f"The latents are no longer finite after step {step} of {total}. Try dtype float32 or a lower "
            "guidance_scale, or check the weights."
        )
