"""Extrapolating and Decoupling (EDG, CVPR 2025) on DynamiCrafter, against recorded runs of the published code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i2v_jax.diffusion.guidance import guide, rescale
from i2v_jax.models.attention import Attention
from i2v_jax.models.conditions import Conditions, join
from i2v_jax.models.dynamicrafter import DynamiCrafterUNet
from i2v_jax.models.image_projection import Resampler
from i2v_jax.sampling.denoiser import guided, unet_denoiser
from tests import dynamicrafter_oracle as oracle
from tests.helpers import relative_error
from tests.test_dynamicrafter import ddim

T = 500
"""Timesteps above it are the dynamic model's."""
MODELS = {"dyn": ("", "image_proj_model"), "con": ("con_unet", "con_image_proj_model")}
recorded = functools.partial(oracle.recorded, of="edg")


@functools.cache
def conditions(model: str, prompt: str, image: str) -> Conditions:
    """What a model is given of a prompt and a picture, by its own resampler."""
    io, (config, parameters) = recorded(), oracle.image_projection(MODELS[model][1])
    tokens = Resampler(config).apply({"params": parameters}, io[f"edg.{image}"])
    return oracle.conditions(np.concatenate([io[f"edg.{prompt}"], tokens], 1), io["edg.image_latents"], io["edg.fs"])


@functools.cache
def denoiser():
    """Both models' network under guidance, compiled: (parameters, latents, timestep, conditions) -> prediction."""
    denoise = guided(unet_denoiser(oracle.unet()[0], {}), 7.5, 0.7)
    return jax.jit(lambda parameters, x, t, both: denoise({"unet": parameters}, x, t, both))


@pytest.mark.parametrize("run", ["prompted", "edg"])
def test_runs_of_two_models_equal_the_published_ones(run, measured):
    """The dynamic model above T, then the consistent one; as published that one's prompt is the empty one."""
    io, sampler = recorded(), ddim()
    sides = {
        model: join(
            conditions(model, "text_empty", "image_tokens_uncond"),
            conditions(model, "text_empty" if (run, model) == ("edg", "con") else "text", "image_tokens"),
        )
        for model in MODELS
    }
    state = sampler.init(io["edg.initial"])
    for i, timestep in enumerate(sampler.timesteps):
        model = "dyn" if timestep > T else "con"
        assert (model == "dyn") == bool(io[f"{run}.is_dynamic"][i])
        parameters = oracle.unet(over=MODELS[model][0])[1]
        prediction = denoiser()(parameters, state.latents, jnp.float32(timestep), sides[model])
        state = sampler.step(state, i, prediction, io["edg.noise"][i])
        if (wanted := io.get(f"{run}.step{i}.x")) is not None:
            measured(f"EDG, two models, {run}", relative_error(state.latents, wanted), 2e-4)


def test_a_blend_of_two_models_equals_the_published_one(measured):
    """The published code's other step: both models' predictions, weighed by the timestep."""
    io, sampler = recorded(), ddim()
    t = int(io["blend.timestep"].reshape(-1)[0])
    i = list(sampler.timesteps).index(t)
    weight = 7.5 * t / 1000
    weights = {"dyn": weight, "con": 7.5 - weight}
    sides = {}
    for model in MODELS:
        config, parameters = oracle.unet(over=MODELS[model][0])
        network = functools.partial(jax.jit(DynamiCrafterUNet(config).apply), {"params": parameters})
        given = (("text_empty", "image_tokens_uncond"), ("text", "image_tokens"))
        sides[model] = [network(io["edg.initial"], jnp.full(1, float(t)), conditions(model, *side)) for side in given]
    without, conditional = (sum(weights[model] * np.asarray(sides[model][k]) for model in MODELS) / 7.5 for k in (0, 1))
    blended = without + sum(weights[m] * (np.asarray(sides[m][1]) - np.asarray(sides[m][0])) for m in MODELS)
    assert relative_error(blended, guide(jnp.asarray(conditional), jnp.asarray(without), 7.5)) < 1e-5
    prediction = rescale(jnp.asarray(blended), jnp.asarray(conditional), 0.7)
    state = sampler.step(sampler.init(io["edg.initial"]), i, prediction, io["edg.noise"][2])
    measured("EDG, a blend of two models", relative_error(state.latents, io["blend.x"]), 1e-5)


def test_text_in_time_equals_the_published_one(measured):
    """Stage 1: a vector of each frame joins its features in every transformer over frames."""
    io = recorded()
    config, parameters = oracle.unet(over="stage1_cc_projection")
    assert config.text_in_time and config.time_context_dim == 1024
    given = oracle.conditions(io["stage1.context"], io["stage1.image_latents"], io["stage1.fs"])
    given = given._replace(frame_context=io["stage1.temporal_context"])
    network = functools.partial(jax.jit(DynamiCrafterUNet(config).apply), {"params": parameters})
    out = network(io["stage1.latents"], io["stage1.timesteps"].astype(np.float32), given)
    measured("EDG, stage 1: the UNet", relative_error(out, io["stage1.output"]), 1e-5)


def test_the_q_former_equals_the_published_one(measured):
    """Stage 1: one learned query a frame attends to the prompt."""
    io = recorded()
    queries = jnp.broadcast_to(io["weights.queries"], (2, 1, *io["weights.queries"].shape))
    dense = {name: {"kernel": io[f"weights.qformer.{name}.weight"].T} for name in ("to_q", "to_k", "to_v")}
    out = {"kernel": io["weights.qformer.to_out.0.weight"].T, "bias": io["weights.qformer.to_out.0.bias"]}
    made = Attention(4).apply({"params": dense | {"to_out": out}}, queries, io["qformer.text"][:, None])
    measured("EDG, stage 1: the q-former", relative_error(made[:, 0], io["qformer.output"]), 1e-5)
