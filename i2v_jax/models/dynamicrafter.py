"""DynamiCrafter's video UNet (Xing et al. 2023), as its published code and VideoCrafter's (`lvdm`) have it.

Stable Diffusion 2's blocks, each with convolutions over time and a transformer over frames; the picture comes in as
latents beside the noisy ones, and as image tokens of every frame's own beside the prompt.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from i2v_jax.errors import InputError
from i2v_jax.models.attention import Attention, attention, merge_heads, split_heads
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.config import LevelledConfig
from i2v_jax.models.layers import (
    Conv,
    Dense,
    EmbeddingMLP,
    FeedForward,
    GroupNorm,
    LayerNorm,
    parameter,
    shard,
    sinusoidal_embedding,
)
from i2v_jax.models.remat import remat
from i2v_jax.models.residuals import Residuals
from i2v_jax.models.resnet import ResnetBlock, nearest_resize

INIT_HEADS = 8
"""Heads of the transformer after the first layer, whatever the width; its inner width is that many heads'."""


@dataclasses.dataclass(frozen=True)
class DynamiCrafterConfig(LevelledConfig):
    """Shape and arithmetic of the UNet. Tuples have an entry per level, the finest first. Defaults: as published.

    Attributes:
      in_channels: of noisy and image latents together.
      out_channels: latent channels.
      block_out_channels: width of each level.
      layers_per_block: residual blocks per level in a down block; one more in an up block.
      level_attention: which levels have transformers; the middle block always has.
      head_dim: channels of an attention head.
      cross_attention_dim: width of prompt and image tokens.
      norm_groups: groups of every group norm.
      default_fs: the frame rate (or stride) where none is given.
      image_scale: a learned strength of each layer's image tokens (the 256 model).
      text_in_time: a frame's vector joins its features in every transformer over frames (EDG, stage 1), see
        `Conditions.frame_context`.
      time_context_dim: width of such a vector.
      attention, convolution, remat, dtype, param_dtype: as of `UNetConfig`.
      scan_blocks: of no effect: transformers have one block.
    """

    # what other UNets may have, and this has not
    motion: ClassVar[None] = None
    miva: ClassVar[None] = None
    added_conditioning: ClassVar[None] = None
    pooled_norms: ClassVar[bool] = False
    linear_projection: ClassVar[bool] = True
    self_attention_branches: ClassVar[tuple[str, ...]] = ()
    cross_attention_branches: ClassVar[tuple[str, ...]] = ()

    in_channels: int = 8
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    level_attention: tuple[bool, ...] = (True, True, True, False)
    head_dim: int = 64
    cross_attention_dim: int = 1024
    norm_groups: int = 32
    default_fs: int = 24
    image_scale: bool = False
    text_in_time: bool = False
    time_context_dim: int = 1024
    attention: str = "xla"
    convolution: str = "xla"
    remat: str = "none"
    scan_blocks: bool = False

    def __post_init__(self):
        if len(self.level_attention) != len(self.block_out_channels):
            raise InputError(
                f"DynamiCrafterConfig.level_attention has {len(self.level_attention)} entries, wanted "
                f"{len(self.block_out_channels)}, one per level: {self.level_attention}"
            )
        attending = [w for w, attends in zip(self.block_out_channels, self.level_attention) if attends]
        for width in (*attending, self.block_out_channels[-1]):
            if self.head_dim < 1 or width % self.head_dim:
                raise InputError(f"Width {width} cannot be split into heads of {self.head_dim} channels.")

    @property
    def latent_channels(self) -> int:
        """Channels of the noisy latents."""
        return self.out_channels


DYNAMICRAFTER = DynamiCrafterConfig()  # 512, 1024 and the interpolation model
DYNAMICRAFTER_256 = DynamiCrafterConfig(default_fs=3, image_scale=True)
TINY_DYNAMICRAFTER = DynamiCrafterConfig(
    block_out_channels=(32, 32), layers_per_block=1, level_attention=(True, False), head_dim=8, cross_attention_dim=32
)


class TemporalConv(nn.Module):
    """Convolution over three frames, zeros beyond the ends, as three matrix products."""

    features: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w i"]) -> Float[Array, "b f h w o"]:
        shape = (3, x.shape[-1], self.features)
        kernel = jnp.asarray(
            parameter(self, "kernel", nn.initializers.lecun_normal(), shape, self.param_dtype), self.dtype
        )
        bias = parameter(self, "bias", nn.initializers.zeros_init(), (self.features,), self.param_dtype)
        x = jnp.asarray(x, self.dtype)
        edge = jnp.zeros_like(x[:, :1])
        before = jnp.concatenate([edge, x[:, :-1]], 1) @ kernel[0]
        after = jnp.concatenate([x[:, 1:], edge], 1) @ kernel[2]
        return before + x @ kernel[1] + after + jnp.asarray(bias, self.dtype)


class TemporalConvs(nn.Module):
    """Norm pooled over frames, SiLU, convolution over time, four times; added to the input."""

    config: DynamiCrafterConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        c, hidden = self.config, x
        for i in range(1, 5):
            hidden = nn.silu(GroupNorm(c.norm_groups, pooled=True, name=f"norm{i}", **c.dtypes)(hidden))
            hidden = TemporalConv(x.shape[-1], name=f"conv{i}", **c.dtypes)(hidden)
        return x + hidden


class ImageCrossAttention(nn.Module):
    """Attention to the prompt, and with the same queries to image tokens; both are summed before the output."""

    config: DynamiCrafterConfig

    @nn.compact
    def __call__(self, hidden: Float[Array, "b f s c"], conditions: Conditions) -> Float[Array, "b f s c"]:
        c, channels = self.config, hidden.shape[-1]
        dense = functools.partial(Dense, channels, use_bias=False, **c.dtypes)
        heads = functools.partial(split_heads, num_heads=channels // c.head_dim)
        query = heads(dense(name="to_q")(hidden))
        text, image = conditions.text, conditions.image_tokens
        out = attention(query, heads(dense(name="to_k")(text)), heads(dense(name="to_v")(text)), c.attention)
        key, value = heads(dense(name="to_k_ip")(image)), heads(dense(name="to_v_ip")(image))
        of_image = attention(query, key, value, c.attention)
        if c.image_scale:
            alpha = parameter(self, "alpha", nn.initializers.zeros_init(), (), c.param_dtype)
            of_image *= jnp.asarray(jnp.tanh(jnp.asarray(alpha, jnp.float32)) + 1, c.dtype)
        return Dense(channels, name="to_out", **c.dtypes)(merge_heads(out + of_image))


class TransformerBlock(nn.Module):
    """Two attentions and a feed-forward, each after a layer norm and added to its input.

    Of a spatial transformer the second attention is to prompt and image tokens; of one over frames both are within.
    """

    config: DynamiCrafterConfig
    is_spatial: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b g s c"], conditions: Conditions) -> Float[Array, "b g s c"]:
        c = self.config
        attend = functools.partial(Attention, x.shape[-1] // c.head_dim, implementation=c.attention, **c.dtypes)
        x = x + attend(name="attn1")(LayerNorm(name="norm1", **c.dtypes)(x))
        hidden = LayerNorm(name="norm2", **c.dtypes)(x)
        if self.is_spatial:
            x = x + ImageCrossAttention(c, name="attn2")(hidden, conditions)
        else:
            x = x + attend(name="attn2")(hidden)
        hidden = LayerNorm(name="norm3", **c.dtypes)(x)
        return x + FeedForward(c.attention == "blocked", name="ff", **c.dtypes)(hidden)


class SpatialTransformer(nn.Module):
    """Group norm of each frame, dense in, a block over the frame's pixels, dense out, added to the input."""

    config: DynamiCrafterConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], conditions: Conditions) -> Float[Array, "b f h w c"]:
        c, (b, f, h, w, channels) = self.config, x.shape
        hidden = GroupNorm(c.norm_groups, 1e-6, name="norm", **c.dtypes)(x)
        hidden = Dense(channels, name="proj_in", **c.dtypes)(hidden.reshape(b, f, h * w, channels))
        hidden = TransformerBlock(c, True, name="blocks_0")(hidden, conditions)
        return x + Dense(channels, name="proj_out", **c.dtypes)(hidden).reshape(x.shape)


class TemporalTransformer(nn.Module):
    """Group norm over all frames, dense in, a block over each place's frames, dense out, added to the input.

    There are no positions: only the convolutions over time know the order of frames. With `text_in_time` the vector of
    each frame joins its features after the first dense layer (EDG, stage 1).
    """

    config: DynamiCrafterConfig
    width: int | None = None  # within; that of the input where there is none

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], conditions: Conditions) -> Float[Array, "b f h w c"]:
        c, (b, f, h, w, channels) = self.config, x.shape
        width = self.width or channels
        hidden = GroupNorm(c.norm_groups, 1e-6, pooled=True, name="norm", **c.dtypes)(x)
        hidden = hidden.reshape(b, f, h * w, channels).swapaxes(1, 2)
        hidden = shard(hidden, "batch", "space", None, None)
        hidden = Dense(width, name="proj_in", **c.dtypes)(hidden)
        if c.text_in_time:
            context = conditions.frame_context
            if context is None or context.shape[1] != f:
                raise InputError(
                    f"This UNet (EDG, stage 1) wants `frame_context`, a vector for each of {f} frames; given: "
                    f"{None if context is None else context.shape}."
                )
            context = jnp.broadcast_to(jnp.asarray(context, c.dtype)[:, None], (*hidden.shape[:-1], context.shape[-1]))
            hidden = Dense(width, name="cc_projection", **c.dtypes)(jnp.concatenate([hidden, context], -1))
        hidden = TransformerBlock(c, False, name="blocks_0")(hidden, conditions)
        hidden = Dense(channels, name="proj_out", **c.dtypes)(hidden)
        return x + hidden.swapaxes(1, 2).reshape(x.shape)


class Layer(nn.Module):
    """A residual block, convolutions over time, then (where the level has them) both transformers."""

    config: DynamiCrafterConfig
    level: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b f h w i"], time: Float[Array, "b e"], conditions: Conditions
    ) -> Float[Array, "b f h w o"]:
        c = self.config
        x = resnet(c, self.level, "resnet")(x, time)
        x = TemporalConvs(c, name="temporal_conv")(x)
        if c.level_attention[self.level]:
            x = SpatialTransformer(c, name="attention")(x, conditions)
            x = TemporalTransformer(c, name="temporal")(x, conditions)
        return shard(x, "batch", "frames", "height", "width", None)


class MidBlock(nn.Module):
    """The coarsest level's middle: residual block, both transformers, residual block."""

    config: DynamiCrafterConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "b f h w c"], time: Float[Array, "b e"], conditions: Conditions
    ) -> Float[Array, "b f h w c"]:
        c, level = self.config, len(self.config.block_out_channels) - 1
        x = TemporalConvs(c, name="temporal_conv_0")(resnet(c, level, "resnet_0")(x, time))
        x = SpatialTransformer(c, name="attention")(x, conditions)
        x = TemporalTransformer(c, name="temporal")(x, conditions)
        return TemporalConvs(c, name="temporal_conv_1")(resnet(c, level, "resnet_1")(x, time))


class DownBlock(nn.Module):
    """The layers of a level, then a stride-2 convolution; returns every output, for the up blocks."""

    config: DynamiCrafterConfig
    level: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b f h w i"], time: Float[Array, "b e"], conditions: Conditions
    ) -> list[Float[Array, "b f _h _w o"]]:
        c, outputs = self.config, []
        for i in range(c.layers_per_block):
            x = remat(Layer, c.remat)(c, self.level, name=f"layers_{i}")(x, time, conditions)
            outputs.append(x)
        if self.level < len(c.block_out_channels) - 1:
            outputs.append(conv(c, c.block_out_channels[self.level], "downsample", stride=2)(x))
        return outputs


class UpBlock(nn.Module):
    """The layers of a level, each after joining an output of the down blocks; then resize and convolve."""

    config: DynamiCrafterConfig
    level: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b f h w i"],
        skips: list[Float[Array, "b f _h _w _c"]],
        time: Float[Array, "b e"],
        conditions: Conditions,
    ) -> Float[Array, "b f h2 w2 o"]:
        c = self.config
        for i in range(c.layers_per_block + 1):
            x = jnp.concatenate([x, skips.pop()], -1)
            x = remat(Layer, c.remat)(c, self.level, name=f"layers_{i}")(x, time, conditions)
        if self.level > 0:
            x = nearest_resize(x, *skips[-1].shape[-3:-1])
            x = conv(c, c.block_out_channels[self.level], "upsample")(x)
        return x


class DynamiCrafterUNet(nn.Module):
    """Predicts noise or v for a noisy latent video."""

    config: DynamiCrafterConfig

    @nn.compact
    def __call__(
        self,
        sample: Float[Array, "b f h w c"],
        timesteps: Float[Array, " b"],
        conditions: Conditions,
        strengths: Mapping[str, Any] | None = None,
        residuals: Residuals | None = None,
    ) -> Float[Array, "b f h w o"]:
        """Runs the network.

        Args:
          sample: noisy latents; any height and width.
          timesteps: in [0, 1000), one per video, or a scalar for all.
          conditions: `text`, which all frames share; `image_tokens`, of every frame or of all; `image_latents` of every
            frame; `fs`, the frame rate (of the 256 model the frame stride), by default the config's.
          strengths, residuals: as of `models.unet.UNet`; there is nothing that they would change.

        Raises:
          InputError: there are no image tokens or image latents.
        """
        c, width = self.config, self.config.block_out_channels[0]
        if conditions.image_tokens is None or conditions.image_latents is None:
            raise InputError("This UNet (DynamiCrafter) wants conditions with `image_tokens` and `image_latents`.")
        sample = jnp.concatenate([sample, jnp.asarray(conditions.image_latents, sample.dtype)], -1)
        sample = shard(sample, "batch", "frames", "height", "width", None)
        time = self.time_embedding(jnp.broadcast_to(timesteps, sample.shape[:1]), conditions)
        conditions = conditions.in_dtype(c.dtype)
        x = conv(c, width, "conv_in")(jnp.asarray(sample, c.dtype))
        x = TemporalTransformer(c, INIT_HEADS * c.head_dim, name="init_attn")(x, conditions)
        skips, levels = [x], len(c.block_out_channels)
        for level in range(levels):
            skips += DownBlock(c, level, name=f"down_blocks_{level}")(skips[-1], time, conditions)
        x = remat(MidBlock, c.remat)(c, name="mid_block")(skips[-1], time, conditions)
        for number, level in enumerate(reversed(range(levels))):
            x = UpBlock(c, level, name=f"up_blocks_{number}")(x, skips, time, conditions)
        x = nn.silu(GroupNorm(c.norm_groups, name="conv_norm_out", **c.dtypes)(x))
        return shard(conv(c, c.out_channels, "conv_out")(x), "batch", "frames", "height", "width", None)

    def time_embedding(self, timesteps: Float[Array, " b"], conditions: Conditions) -> Float[Array, "b e"]:
        """Embeds the timesteps, and the frame rate in the same way, and adds them."""
        c, width = self.config, self.config.block_out_channels[0]
        mlp = dict(features=4 * width, param_dtype=c.param_dtype)
        rate = jnp.full(timesteps.shape, c.default_fs) if conditions.fs is None else conditions.fs[:, 0]
        time = EmbeddingMLP(name="time_embedding", **mlp)(sinusoidal_embedding(timesteps, width))
        time += EmbeddingMLP(name="fps_embedding", **mlp)(sinusoidal_embedding(rate, width))
        return jnp.asarray(time, c.dtype)


# How a config builds each kind of part.


def resnet(c: DynamiCrafterConfig, level: int, name: str) -> ResnetBlock:
    return ResnetBlock(c.block_out_channels[level], c.norm_groups, convolution=c.convolution, name=name, **c.dtypes)


def conv(c: DynamiCrafterConfig, features: int, name: str, stride: int = 1) -> Conv:
    return Conv(features, stride, implementation=c.convolution, name=name, **c.dtypes)
