"""Every network by the class of its config: its component, its module, the smallest that it takes, its parameters.

Shapes are found by tracing, without making an array.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from i2v_jax.models.clip import CLIPTextConfig, CLIPTextEncoder, CLIPVisionConfig, CLIPVisionEncoder
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.controlnet import ControlNet, ControlNetConfig
from i2v_jax.models.dino import DINO, DINOConfig
from i2v_jax.models.dover import DOVER, DOVERConfig
from i2v_jax.models.dynamicrafter import DynamiCrafterConfig, DynamiCrafterUNet
from i2v_jax.models.i3d import I3D, LEAST_FRAMES, I3DConfig
from i2v_jax.models.i3d import SIDE as I3D_SIDE
from i2v_jax.models.ifnet import IFNet, IFNetConfig
from i2v_jax.models.image_projection import (
    AnyConfig,
    FaceProjection,
    FaceProjectionConfig,
    FaceResampler,
    FaceResamplerConfig,
    ImageProjection,
    ImageProjectionConfig,
    Resampler,
    ResamplerConfig,
    StateProjection,
    StateProjectionConfig,
    VideoResamplerConfig,
)
from i2v_jax.models.layers import shapes_alone
from i2v_jax.models.lpips import LEAST_SIDE, LPIPS, LPIPSConfig
from i2v_jax.models.raft import RAFT, RAFTConfig
from i2v_jax.models.sparse_control import SparseControlNet, SparseControlNetConfig
from i2v_jax.models.t2i_adapter import T2IAdapter, T2IAdapterConfig
from i2v_jax.models.unet import UNet, UNetConfig
from i2v_jax.models.upscaler import Upscaler, UpscalerConfig
from i2v_jax.models.vae import AutoencoderKL, VAEConfig
from i2v_jax.tree import flatten

Shapes = dict[str, jax.ShapeDtypeStruct]
"""Path -> shape and dtype of a parameter."""


class Network(NamedTuple):
    """What a class of configs is of.

    Attributes:
      component: what the network is called in files, such as `unet`; a second one of a kind has the name of the first.
      module: makes the network of a config.
      inputs: the smallest arrays that it takes, as shapes; of a size that the config asks for, they take no memory.
    """

    component: str
    module: Callable[[Any], nn.Module]
    inputs: Callable[[Any], tuple[Any, ...]]


def module_of(config: Any) -> nn.Module:
    """Returns the network that a config describes."""
    return NETWORKS[type(config)].module(config)


@functools.cache  # tracing takes seconds
def parameter_shapes(config: Any) -> Shapes:
    """Returns {path: shape and dtype} of the parameters of a config's network."""
    inputs = NETWORKS[type(config)].inputs(config)
    with shapes_alone():
        return flatten(jax.eval_shape(module_of(config).init, jax.random.key(0), *inputs)["params"])


def _array(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _unet_inputs(config: UNetConfig) -> tuple[Any, ...]:
    size, added = config.downscale, config.added_conditioning
    tokens = _array((1, 1, 1, config.cross_attention_dim))
    conditions = Conditions(text=tokens, image_tokens=tokens)
    if added:
        conditions = conditions._replace(pooled=_array((1, 1, added.pooled_dim)), sizes=_array((1, 1, 6)))
    if config.motion and config.motion.conv_in_channels:
        channels = config.motion.conv_in_channels - config.in_channels
        conditions = conditions._replace(image_latents=_array((1, 1, size, size, channels)))
    return _array((1, 1, size, size, config.in_channels)), _array((1,)), conditions


def _dynamicrafter_inputs(config: DynamiCrafterConfig) -> tuple[Any, ...]:
    size, tokens = config.downscale, _array((1, 1, 1, config.cross_attention_dim))
    beside = _array((1, 1, size, size, config.in_channels - config.latent_channels))
    context = _array((1, 1, config.time_context_dim)) if config.text_in_time else None
    conditions = Conditions(text=tokens, image_tokens=tokens, image_latents=beside, frame_context=context)
    return _array((1, 1, size, size, config.latent_channels)), _array((1,)), conditions


def _controlnet_inputs(config: ControlNetConfig) -> tuple[Any, ...]:
    size = config.downscale * config.picture_scale
    return *_unet_inputs(config), _array((1, 1, size, size, 3))


def _sparse_inputs(config: SparseControlNetConfig) -> tuple[Any, ...]:
    size = config.downscale * config.picture_scale
    return *_unet_inputs(config), _array((1, 1, size, size, config.picture_channels))


def _t2i_inputs(config: T2IAdapterConfig) -> tuple[Any, ...]:
    return (_array((1, 1, config.unshuffle, config.unshuffle, config.in_channels)),)


def _vae_inputs(config: VAEConfig) -> tuple[Any, ...]:
    return (_array((1, config.downscale, config.downscale, 3)),)


def _text_inputs(config: CLIPTextConfig) -> tuple[Any, ...]:
    return (_array((1, 1), jnp.int32),)


def _picture_inputs(config: CLIPVisionConfig) -> tuple[Any, ...]:
    return (_array((1, config.image_size, config.image_size, 3)),)


def _projection_inputs(config: AnyConfig) -> tuple[Any, ...]:
    faces = (_array((1, config.face_dim)),) if config.face_dim else ()
    if not config.reads:
        return faces
    return *faces, _array((1, config.embed_dim) if config.reads == "image_embeds" else (1, 1, config.embed_dim))


def _raft_inputs(config: RAFTConfig) -> tuple[Any, ...]:
    return _array((1, 16, 16, 3)), _array((1, 16, 16, 3))


def _dover_inputs(config: DOVERConfig) -> tuple[Any, ...]:
    technical, aesthetic = config.technical, config.aesthetic
    shapes = []
    for (frames, *sides), depths in ((technical.patch, technical.depths), (aesthetic.stem, aesthetic.depths)):
        shapes.append((1, frames, *(side * 2 ** (len(depths) - 1) for side in sides), 3))
    return tuple(map(_array, shapes))


def _upscaler_inputs(config: UpscalerConfig) -> tuple[Any, ...]:
    return (_array((1, 2 * config.unshuffle, 2 * config.unshuffle, config.channels)),)


def _ifnet_inputs(config: IFNetConfig) -> tuple[Any, ...]:
    side = config.multiple()
    return _array((1, side, side, 3)), _array((1, side, side, 3)), _array((1,))


def _lpips_inputs(config: LPIPSConfig) -> tuple[Any, ...]:
    return (_array((1, LEAST_SIDE, LEAST_SIDE, 3)),) * 2


def _dino_inputs(config: DINOConfig) -> tuple[Any, ...]:
    return (_array((1, config.patch_size, config.patch_size, 3)),)


def _i3d_inputs(config: I3DConfig) -> tuple[Any, ...]:
    return (_array((1, LEAST_FRAMES, I3D_SIDE, I3D_SIDE, 3)),)


NETWORKS: Mapping[type, Network] = {
    UNetConfig: Network("unet", UNet, _unet_inputs),
    DynamiCrafterConfig: Network("unet", DynamiCrafterUNet, _dynamicrafter_inputs),
    ControlNetConfig: Network("controlnet", ControlNet, _controlnet_inputs),
    SparseControlNetConfig: Network("sparse_controlnet", SparseControlNet, _sparse_inputs),
    T2IAdapterConfig: Network("t2i_adapter", T2IAdapter, _t2i_inputs),
    VAEConfig: Network("vae", AutoencoderKL, _vae_inputs),
    CLIPTextConfig: Network("text_encoder", CLIPTextEncoder, _text_inputs),
    CLIPVisionConfig: Network("image_encoder", CLIPVisionEncoder, _picture_inputs),
    ImageProjectionConfig: Network("image_proj", ImageProjection, _projection_inputs),
    ResamplerConfig: Network("image_proj", Resampler, _projection_inputs),
    VideoResamplerConfig: Network("image_proj", Resampler, _projection_inputs),
    StateProjectionConfig: Network("image_proj", StateProjection, _projection_inputs),
    FaceProjectionConfig: Network("image_proj", FaceProjection, _projection_inputs),
    FaceResamplerConfig: Network("image_proj", FaceResampler, _projection_inputs),
    RAFTConfig: Network("raft", RAFT, _raft_inputs),
    DOVERConfig: Network("dover", DOVER, _dover_inputs),
    UpscalerConfig: Network("upscaler", Upscaler, _upscaler_inputs),
    IFNetConfig: Network("ifnet", IFNet, _ifnet_inputs),
    LPIPSConfig: Network("lpips", LPIPS, _lpips_inputs),
    DINOConfig: Network("dino", DINO, _dino_inputs),
    I3DConfig: Network("i3d", I3D, _i3d_inputs),
}
