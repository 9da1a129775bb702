"""The IP-Adapter projections equal the published resampler's recorded outputs, and diffusers' on the same weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.loaders.unet import UNet2DConditionLoadersMixin
from diffusers.models.embeddings import ImageProjection as DiffusersImageProjection
from diffusers.models.embeddings import (
    IPAdapterFaceIDImageProjection,
    IPAdapterFaceIDPlusImageProjection,
    IPAdapterFullImageProjection,
    IPAdapterPlusImageProjection,
)

from i2v_jax.errors import InputError
from i2v_jax.models.image_projection import (
    IP_ADAPTER_FACEID_PLUS_SD15,
    IP_ADAPTER_FACEID_SD15,
    IP_ADAPTER_FULL_FACE_SD15,
    IP_ADAPTER_PLUS_SD15,
    IP_ADAPTER_SD15,
    FaceProjectionConfig,
    FaceResamplerConfig,
    ImageProjectionConfig,
    ResamplerConfig,
    StateProjectionConfig,
    config_from_shapes,
)
from i2v_jax.models.networks import module_of, parameter_shapes
from i2v_jax.tree import flatten
from i2v_jax.weights.formats import IMAGE_PROJECTION
from i2v_jax.weights.tensors import Tensors
from i2v_jax.weights.translate import export_tensors
from tests import oracles
from tests.helpers import relative_error

# Depth, head size and feed-forward as diffusers' loader takes for granted.
SMALL = ResamplerConfig(
    embed_dim=20, num_tokens=5, width=32, depth=4, num_heads=2, mlp_width=128, cross_attention_dim=24
)
SMALL_LINEAR = ImageProjectionConfig(embed_dim=20, cross_attention_dim=24)
SMALL_STATE = StateProjectionConfig(embed_dim=20, cross_attention_dim=24)
SMALL_FACE = FaceProjectionConfig(face_dim=16, face_width=32, cross_attention_dim=24)
SMALL_FACE_PLUS = FaceResamplerConfig(
    face_dim=16, face_width=32, embed_dim=20, width=64, num_heads=1, mlp_width=256, cross_attention_dim=64
)
CONFIGS = (
    *(SMALL, SMALL_STATE, SMALL_FACE, SMALL_FACE_PLUS, SMALL_LINEAR),
    *(IP_ADAPTER_PLUS_SD15, IP_ADAPTER_FULL_FACE_SD15, IP_ADAPTER_FACEID_SD15),
    *(IP_ADAPTER_FACEID_PLUS_SD15, IP_ADAPTER_SD15),
)


def shapes_of(config):
    return {path: leaf.shape for path, leaf in parameter_shapes(config).items()}


def random_parameters(model, *input_shape, states=None):
    """Draws every parameter, norms and biases included."""
    generator = np.random.default_rng(0)
    more = () if states is None else (jnp.zeros(states),)
    parameters = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(input_shape), *more)["params"]

    def draw(path, leaf):
        if leaf.ndim == 1:
            return (path[-1].key == "scale") + 0.2 * generator.normal(size=leaf.shape).astype(np.float32)
        return generator.normal(size=leaf.shape).astype(np.float32) * leaf.shape[0] ** -0.5

    return jax.tree_util.tree_map_with_path(draw, parameters)


def run(model, parameters, *x):
    return jax.jit(lambda p, *x: model.apply({"params": p}, *x))(parameters, *x)


def in_diffusers(parameters):
    """Returns diffusers' module for an IP-Adapter file of these weights, as its own loader makes it."""
    parameters = {path: np.asarray(leaf) for path, leaf in flatten(parameters).items()}
    file = export_tensors(Tensors.of(parameters), IMAGE_PROJECTION, Tensors.of({}))
    state = {name.removeprefix("image_proj."): torch.from_numpy(file[name].copy()) for name in file}
    convert = UNet2DConditionLoadersMixin._convert_ip_adapter_image_proj_to_diffusers
    return convert(None, state, low_cpu_mem_usage=False)


@pytest.mark.parametrize("name", oracles.NAMES)
def test_resampler_equals_the_published_one(name, measured):
    config, parameters = oracles.image_projection(name)
    io = oracles.recorded(name)
    out = run(module_of(config), parameters, io["resampler.input"])
    measured(f"{name}: resampler", relative_error(out, io["resampler.output"]), 1e-5)


def equals_diffusers(measured, config, shape, kind, what=""):
    """Their module of the same weights makes the same of random numbers of that shape."""
    model, x = module_of(config), np.random.default_rng(1).normal(size=shape).astype(np.float32)
    parameters = random_parameters(model, *shape)
    theirs = in_diffusers(parameters)
    assert isinstance(theirs, kind)
    with torch.no_grad():
        error = relative_error(run(model, parameters, x), theirs(torch.from_numpy(x)))
    measured(f"diffusers {kind.__name__}{what}", error, 1e-5)


@pytest.mark.parametrize("states", [1, 257])
def test_resampler_equals_diffusers(states, measured):
    equals_diffusers(measured, SMALL, (2, states, 20), IPAdapterPlusImageProjection, f", {states} states")


def test_linear_projection_equals_diffusers(measured):
    equals_diffusers(measured, SMALL_LINEAR, (3, 20), DiffusersImageProjection)


def test_state_projection_equals_diffusers(measured):
    equals_diffusers(measured, SMALL_STATE, (2, 9, 20), IPAdapterFullImageProjection)


def test_face_projection_equals_diffusers(measured):
    equals_diffusers(measured, SMALL_FACE, (3, 16), IPAdapterFaceIDImageProjection)


@pytest.mark.parametrize("shortcut", [False, True])
def test_face_resampler_equals_diffusers(shortcut, measured):
    """With the shortcut it is version 2 of FaceID plus."""
    rng = np.random.default_rng(1)
    faces, states = (rng.normal(size=shape).astype(np.float32) for shape in [(2, 16), (2, 9, 20)])
    model = module_of(dataclasses.replace(SMALL_FACE_PLUS, shortcut=shortcut))
    parameters = random_parameters(model, *faces.shape, states=states.shape)
    theirs = in_diffusers(parameters)
    assert isinstance(theirs, IPAdapterFaceIDPlusImageProjection)
    theirs.shortcut, theirs.clip_embeds = shortcut, torch.from_numpy(states)[None]
    with torch.no_grad():
        error = relative_error(run(model, parameters, faces, states), theirs(torch.from_numpy(faces)))
    measured(f"diffusers IPAdapterFaceIDPlusImageProjection, shortcut={shortcut}", error, 1e-5)


@pytest.mark.parametrize(
    "config, shape",
    [
        (SMALL_FACE, (2, 16)),
        (SMALL, (2, 9, 20)),
        (SMALL_LINEAR, (2, 20)),
        (SMALL_STATE, (2, 9, 20)),
    ],
)
def test_bfloat16_is_near_float32(config, shape):
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    model, of_half = module_of(config), module_of(dataclasses.replace(config, dtype=jnp.bfloat16))
    parameters = random_parameters(model, *shape)
    half = run(of_half, parameters, x)
    assert half.dtype == jnp.bfloat16
    assert relative_error(half, run(model, parameters, x)) <= 3e-2


def test_config_is_read_off_the_parameters():
    for config in CONFIGS:
        assert config_from_shapes(shapes_of(config)) == config


def test_other_parameters_are_refused():
    whole = shapes_of(SMALL)
    with pytest.raises(InputError, match="proj_in/kernel"):
        config_from_shapes({path: shape for path, shape in whole.items() if path != "proj_in/kernel"})
    with pytest.raises(InputError, match="not a multiple of head_dim=48"):
        config_from_shapes(whole, head_dim=48)
