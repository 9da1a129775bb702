"""T2I-Adapter (Mou et al. 2023): a small network from a picture to features that are added to a UNet's, level by level.

Published layouts: diffusers' T2IAdapter (full, light, and full for SDXL), TencentARC's .pth and .safetensors.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from i2v_jax.errors import InputError
from i2v_jax.models.config import NetworkConfig
from i2v_jax.models.layers import Conv, Dense, shard

KINDS = ("full_adapter", "light_adapter", "full_adapter_xl")
"""As diffusers calls them."""

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey (ITU-R BT.601), for adapters that read one channel."""


@dataclasses.dataclass(frozen=True)
class T2IAdapterConfig(NetworkConfig):
    """Shape and arithmetic of a T2I-Adapter.

    Attributes:
      kind: one of `KINDS`: full, light (narrow blocks: colours), or full for SDXL (which halves once).
      in_channels: of the pictures: 3, or 1 for grey ones (sketch, Canny).
      block_out_channels: of the features, the finest first: those of the UNet's levels.
      layers_per_block: residual blocks of each.
      unshuffle: side of the picture over side of the first features: squares of pixels become channels.
      convolution: implementation, see `models.convolution`.
      dtype: of activations.
      param_dtype: of new parameters.
    """

    kind: str = "full_adapter"
    in_channels: int = 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    unshuffle: int = 8
    convolution: str = "xla"

    def __post_init__(self):
        if self.kind not in KINDS:
            raise InputError(f"T2IAdapterConfig.kind is {self.kind!r}; wanted one of {', '.join(KINDS)}.")

    @property
    def is_light(self) -> bool:
        """Whether its blocks are narrow inside."""
        return self.kind == "light_adapter"

    def halves(self, level: int) -> bool:
        """Whether the features of a level have half the side of those before."""
        return level == 2 if self.kind == "full_adapter_xl" else level > 0

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any], **overrides) -> "T2IAdapterConfig":
        """Reads the `config.json` of a diffusers T2IAdapter.

        Raises:
          InputError: a setting that this T2I-Adapter does not have.
        """
        kind = config.get("adapter_type", cls.kind)
        widths = tuple(config.get("channels", cls.block_out_channels))
        fields = dict(
            kind=kind,
            in_channels=config.get("in_channels", cls.in_channels),
            block_out_channels=widths + widths[-1:] if kind == "light_adapter" else widths,
            layers_per_block=config.get("num_res_blocks", cls.layers_per_block),
            unshuffle=config.get("downscale_factor", cls.unshuffle),
        )
        return cls(**(fields | overrides))

    def to_diffusers(self) -> dict[str, Any]:
        """Returns the `config.json` of a diffusers T2IAdapter.

        Raises:
          InputError: a light adapter whose last two levels differ in width.
        """
        widths = self.block_out_channels
        if self.is_light:
            if widths[-2:-1] != widths[-1:]:
                raise InputError(f"diffusers' light T2IAdapter ends with two levels of one width; this one: {widths}.")
            widths = widths[:-1]
        return {
            "_class_name": "T2IAdapter",
            "adapter_type": self.kind,
            "in_channels": self.in_channels,
            "channels": list(widths),
            "num_res_blocks": self.layers_per_block,
            "downscale_factor": self.unshuffle,
        }


FULL = T2IAdapterConfig()
FULL_GREY = T2IAdapterConfig(in_channels=1)
LIGHT = T2IAdapterConfig(kind="light_adapter", layers_per_block=4)
FULL_XL = T2IAdapterConfig(kind="full_adapter_xl", unshuffle=16)


class ResidualBlock(nn.Module):
    """A convolution, ReLU, a convolution (light: 3x3, else 1x1), added to the input."""

    config: T2IAdapterConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        c, width = self.config, x.shape[-1]
        hidden = nn.relu(conv(c, width, "block1")(x))
        second = conv(c, width, "block2") if c.is_light else dense(c, width, "block2")
        return x + second(hidden)


class Block(nn.Module):
    """The features of a level from those of the level before: halved, of another width, residual blocks."""

    config: T2IAdapterConfig
    level: int

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w i"]) -> Float[Array, "b f h2 w2 o"]:
        c, width = self.config, self.config.block_out_channels[self.level]
        if c.halves(self.level):
            x = average_pairs(x)
        inner = width // 4 if c.is_light else width
        if c.is_light or x.shape[-1] != inner:
            x = dense(c, inner, "in_conv")(x)
        for i in range(c.layers_per_block):
            x = ResidualBlock(c, name=f"resnets_{i}")(x)
        if c.is_light:
            x = dense(c, width, "out_conv")(x)
        return shard(x, "batch", "frames", "height", "width", None)


class T2IAdapter(nn.Module):
    """Turns a picture per frame into what is added to the features of each level of a UNet (`Residuals.levels`)."""

    config: T2IAdapterConfig

    @nn.compact
    def __call__(self, picture: Float[Array, "b f H W 3"]) -> list[Float[Array, "b f _h _w _c"]]:
        """Runs the network.

        Args:
          picture: in [0, 1], of the video's size, or of one channel where the adapter reads one. Beyond its lower and
            right edge its last row and column go on, up to a multiple of `config.unshuffle`.

        Returns:
          Features of each level, the finest first.

        Raises:
          InputError: a picture of other channels.
        """
        c = self.config
        x = as_read(c, jnp.asarray(picture, jnp.float32)).astype(c.dtype)
        x = unshuffled(x, c.unshuffle)
        if not c.is_light:
            x = conv(c, c.block_out_channels[0], "conv_in")(x)
        levels = []
        for level in range(len(c.block_out_channels)):
            x = Block(c, level, name=f"body_{level}")(x)
            levels.append(x)
        return levels


def as_read(config: T2IAdapterConfig, picture: Float[Array, "*b H W c"]) -> Float[Array, "*b H W i"]:
    """Returns a picture in the channels that the adapter reads: as it is, or RGB as grey."""
    given, wanted = picture.shape[-1], config.in_channels
    if given == 3 and wanted == 1:
        return (picture * jnp.asarray(LUMA)).sum(-1, keepdims=True)
    if given != wanted:
        raise InputError(f"The T2I-Adapter was given pictures of {given} channels; it reads {wanted}.")
    return picture


def unshuffled(x: Float[Array, "*b H W c"], scale: int) -> Float[Array, "*b h w k"]:
    """Returns each square of `scale` pixels as one, whose channels are (channel, row, column)."""
    height, width = (-side % scale for side in x.shape[-3:-1])
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(0, height), (0, width), (0, 0)], mode="edge")
    *batch, height, width, channels = x.shape
    x = x.reshape(-1, height // scale, scale, width // scale, scale, channels)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(*batch, height // scale, width // scale, channels * scale**2)


def average_pairs(x: Float[Array, "*b h w c"]) -> Float[Array, "*b h2 w2 c"]:
    """Returns means of squares of 2x2; at an odd edge, of what there is of them."""
    pad = [(0, 0)] * (x.ndim - 3) + [(0, x.shape[-3] % 2), (0, x.shape[-2] % 2), (0, 0)]
    x = jnp.pad(x, pad, mode="edge")  # a pair of equals has their mean
    *batch, height, width, channels = x.shape
    return x.reshape(*batch, height // 2, 2, width // 2, 2, channels).mean((-4, -2))


def conv(c: T2IAdapterConfig, features: int, name: str) -> Conv:
    return Conv(features, implementation=c.convolution, name=name, **c.dtypes)


def dense(c: T2IAdapterConfig, features: int, name: str) -> Dense:
    """A 1x1 convolution."""
    return Dense(features, name=name, **c.dtypes)
