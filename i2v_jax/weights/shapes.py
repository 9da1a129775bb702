"""What parameters a config's network has: paths, shapes and dtypes, found without making them."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from i2v_jax.models.clip import CLIPTextConfig, CLIPTextEncoder, CLIPVisionConfig, CLIPVisionEncoder
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.controlnet import ControlNet, ControlNetConfig
from i2v_jax.models.image_projection import AnyConfig, projection_of
from i2v_jax.models.unet import UNet, UNetConfig
from i2v_jax.models.vae import AutoencoderKL, VAEConfig
from i2v_jax.tree import flatten

Shapes = dict[str, jax.ShapeDtypeStruct]


@functools.cache  # tracing takes seconds
def unet_shapes(config: UNetConfig) -> Shapes:
    """Returns {path: shape and dtype} of a UNet's parameters."""
    return _shapes(UNet(config), **_inputs(config))


@functools.cache
def controlnet_shapes(config: ControlNetConfig) -> Shapes:
    """Returns {path: shape and dtype} of a ControlNet's parameters."""
    size = config.downscale * config.picture_scale
    return _shapes(ControlNet(config), **_inputs(config), picture=_array((1, 1, size, size, 3)))


def _inputs(config: UNetConfig) -> dict[str, Any]:
    """The smallest that a UNet or a ControlNet takes."""
    size, added = config.downscale, config.added_conditioning
    tokens = _array((1, 1, 1, config.cross_attention_dim))
    conditions = Conditions(text=tokens, image_tokens=tokens)
    if added:
        conditions = conditions._replace(pooled=_array((1, 1, added.pooled_dim)), sizes=_array((1, 1, 6)))
    sample = _array((1, 1, size, size, config.in_channels))
    return dict(sample=sample, timesteps=_array((1,)), conditions=conditions)


@functools.cache
def vae_shapes(config: VAEConfig) -> Shapes:
    """Returns {path: shape and dtype} of an autoencoder's parameters."""
    return _shapes(AutoencoderKL(config), _array((1, config.downscale, config.downscale, 3)))


@functools.cache
def text_encoder_shapes(config: CLIPTextConfig) -> Shapes:
    """Returns {path: shape and dtype} of a text encoder's parameters."""
    return _shapes(CLIPTextEncoder(config), _array((1, 1), jnp.int32))


@functools.cache
def image_encoder_shapes(config: CLIPVisionConfig) -> Shapes:
    """Returns {path: shape and dtype} of an image encoder's parameters."""
    return _shapes(CLIPVisionEncoder(config), _array((1, config.image_size, config.image_size, 3)))


@functools.cache
def image_projection_shapes(config: AnyConfig) -> Shapes:
    """Returns {path: shape and dtype} of an image projection's parameters."""
    shape = (1, config.embed_dim) if config.reads == "image_embeds" else (1, 1, config.embed_dim)
    return _shapes(projection_of(config), _array(shape))


def _array(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """An input that takes no memory, whatever size a config asks for."""
    return jax.ShapeDtypeStruct(shape, dtype)


def _shapes(model: nn.Module, *inputs, **named_inputs) -> Shapes:
    return flatten(jax.eval_shape(model.init, jax.random.key(0), *inputs, **named_inputs)["params"])
