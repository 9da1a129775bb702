"""What parameters a config's network has: paths, shapes and dtypes, found without making them."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from i2v_jax.models.clip import CLIPTextConfig, CLIPTextEncoder, CLIPVisionConfig, CLIPVisionEncoder
from i2v_jax.models.controlnet import ControlNet, ControlNetConfig
from i2v_jax.models.image_projection import ImageProjection, ImageProjectionConfig, Resampler, ResamplerConfig
from i2v_jax.models.unet import UNet, UNetConfig
from i2v_jax.models.vae import AutoencoderKL, VAEConfig
from i2v_jax.weights.tree import flatten

Shapes = dict[str, jax.ShapeDtypeStruct]


@functools.cache  # tracing a UNet takes seconds
def unet_shapes(config: UNetConfig) -> Shapes:
    """Returns {path: shape and dtype} of a UNet's parameters."""
    tokens = jnp.zeros((1, 1, config.cross_attention_dim))
    return _shapes(UNet(config), **_inputs(config), image_tokens=tokens)


@functools.cache
def controlnet_shapes(config: ControlNetConfig) -> Shapes:
    """Returns {path: shape and dtype} of a ControlNet's parameters."""
    size = config.downscale * config.picture_scale
    return _shapes(ControlNet(config), **_inputs(config), picture=jnp.zeros((1, 1, size, size, 3)))


def _inputs(config: UNetConfig) -> dict[str, Any]:
    """The smallest that a UNet or a ControlNet takes."""
    size = config.downscale
    inputs = dict(
        sample=jnp.zeros((1, 1, size, size, config.in_channels)),
        timesteps=jnp.zeros((1,)),
        text=jnp.zeros((1, 1, config.cross_attention_dim)),
    )
    if added := config.added_conditioning:
        pooled = jnp.zeros((1, added.projection_input_dim - 6 * added.time_dim))
        inputs["added"] = dict(text_embeds=pooled, time_ids=jnp.zeros((1, 6)))
    return inputs


def vae_shapes(config: VAEConfig) -> Shapes:
    """Returns {path: shape and dtype} of an autoencoder's parameters."""
    return _shapes(AutoencoderKL(config), jnp.zeros((1, config.downscale, config.downscale, 3)))


def text_encoder_shapes(config: CLIPTextConfig) -> Shapes:
    """Returns {path: shape and dtype} of a text encoder's parameters."""
    return _shapes(CLIPTextEncoder(config), jnp.zeros((1, 1), jnp.int32))


def image_encoder_shapes(config: CLIPVisionConfig) -> Shapes:
    """Returns {path: shape and dtype} of an image encoder's parameters."""
    return _shapes(CLIPVisionEncoder(config), jnp.zeros((1, config.image_size, config.image_size, 3)))


def image_projection_shapes(config: ImageProjectionConfig | ResamplerConfig) -> Shapes:
    """Returns {path: shape and dtype} of an image projection's parameters."""
    if isinstance(config, ResamplerConfig):
        return _shapes(Resampler(config), jnp.zeros((1, 1, config.embed_dim)))
    return _shapes(ImageProjection(config), jnp.zeros((1, config.embed_dim)))


def _shapes(model: nn.Module, *inputs, **named_inputs) -> Shapes:
    return flatten(jax.eval_shape(model.init, jax.random.key(0), *inputs, **named_inputs)["params"])
