"""Super-resolution networks of the community: RRDBNet (ESRGAN, Wang et al. 2018; Real-ESRGAN, 2021) and the compact
SRVGGNet of Real-ESRGAN's models for videos. Pictures are RGB of 0 to 1, in and out."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from i2v_jax.models.config import NetworkConfig
from i2v_jax.models.layers import Conv, parameter

RESIDUAL = 0.2  # of what a dense block, and three of them, add
SLOPE = 0.2  # of RRDBNet's leaky ReLUs


@dataclasses.dataclass(frozen=True)
class UpscalerConfig(NetworkConfig):
    """Shape of an upscaler.

    Attributes:
      compact: SRVGGNet, which works at the small size alone; else RRDBNet.
      channels: of the pictures, in and out.
      features: between layers.
      blocks: RRDB blocks; of SRVGGNet the convolutions between first and last.
      growth: that each convolution of a dense block adds.
      doublings: how often RRDBNet doubles the size.
      unshuffle: side of the squares that it first makes channels of.
      factor: by which SRVGGNet enlarges.
      convolution, dtype, param_dtype: see `models.unet.UNetConfig`.
    """

    compact: bool = False
    channels: int = 3
    features: int = 64
    blocks: int = 23
    growth: int = 32
    doublings: int = 2
    unshuffle: int = 1
    factor: int = 4
    convolution: str = "xla"

    @property
    def scale(self) -> int:
        """By how much the result's sides are longer."""
        return self.factor if self.compact else 2**self.doublings // self.unshuffle


def config_from_shapes(shape: Callable[[str], tuple[int, ...]], paths: Iterable[str]) -> UpscalerConfig:
    """Returns the config of the network with such parameters.

    Args:
      shape: of the convolution at a path.
      paths: of all parameters.
    """
    if "conv_first/kernel" not in paths:
        last = _highest(paths, r"body_(\d+)/kernel")
        *_, channels, features = shape("body_0/kernel")
        return UpscalerConfig(
            True, channels, features, last // 2 - 1, factor=math.isqrt(shape(f"body_{last}/kernel")[3] // channels)
        )
    *_, given, features = shape("conv_first/kernel")
    channels = shape("conv_last/kernel")[3]
    return UpscalerConfig(
        channels=channels,
        features=features,
        blocks=_highest(paths, r"body_(\d+)/rdb1/.*") + 1,
        growth=shape("body_0/rdb1/conv1/kernel")[3],
        doublings=max(0, _highest(paths, r"conv_up(\d+)/kernel")),
        unshuffle=math.isqrt(given // channels),
    )


def _highest(paths: Iterable[str], pattern: str) -> int:
    """The highest number in the place of a pattern's group, -1 where no path fits."""
    return max((int(found[1]) for path in paths if (found := re.fullmatch(pattern, path))), default=-1)


class Upscaler(nn.Module):
    """Enlarges pictures by `config.scale`."""

    config: UpscalerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n H W c"]:
        x = jnp.asarray(x, self.config.dtype)
        return (self._compact if self.config.compact else self._dense)(x)

    def _conv(self, features: int, name: str) -> Conv:
        c = self.config
        return Conv(features, implementation=c.convolution, dtype=c.dtype, param_dtype=c.param_dtype, name=name)

    def _dense(self, x):
        c, (height, width) = self.config, x.shape[1:3]
        if c.unshuffle > 1:
            beside = [(0, -side % c.unshuffle) for side in (height, width)]
            x = unshuffled(jnp.pad(x, ((0, 0), *beside, (0, 0)), "reflect"), c.unshuffle)
        first = self._conv(c.features, "conv_first")(x)
        out = first
        for number in range(c.blocks):
            out = ResidualDenseBlocks(c, name=f"body_{number}")(out)
        out = first + self._conv(c.features, "conv_body")(out)
        for number in range(1, c.doublings + 1):
            out = nn.leaky_relu(self._conv(c.features, f"conv_up{number}")(enlarged(out, 2)), SLOPE)
        out = nn.leaky_relu(self._conv(c.features, "conv_hr")(out), SLOPE)
        return self._conv(c.channels, "conv_last")(out)[:, : height * c.scale, : width * c.scale]

    def _compact(self, x):
        c, out = self.config, x
        for number in range(c.blocks + 1):
            out = self._conv(c.features, f"body_{2 * number}")(out)
            out = ParametricReLU(c, name=f"body_{2 * number + 1}")(out)
        out = self._conv(c.channels * c.factor**2, f"body_{2 * (c.blocks + 1)}")(out)
        return shuffled(out, c.factor) + enlarged(x, c.factor)


class ResidualDenseBlocks(nn.Module):
    """Three dense blocks of five convolutions, each of which sees all before it in its block (RRDB)."""

    config: UpscalerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n h w f"]) -> Float[Array, "n h w f"]:
        out = x
        for number in (1, 2, 3):
            out = DenseBlock(self.config, name=f"rdb{number}")(out)
        return x + RESIDUAL * out


class DenseBlock(nn.Module):
    """Five convolutions, each of all that came before."""

    config: UpscalerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n h w f"]) -> Float[Array, "n h w f"]:
        c = self.config
        conv = dict(implementation=c.convolution, dtype=c.dtype, param_dtype=c.param_dtype)
        seen = x
        for number in range(1, 5):
            new = nn.leaky_relu(Conv(c.growth, name=f"conv{number}", **conv)(seen), SLOPE)
            seen = jnp.concatenate([seen, new], -1)
        return x + RESIDUAL * Conv(c.features, name="conv5", **conv)(seen)


class ParametricReLU(nn.Module):
    """A ReLU with a learned slope of each channel below 0 (PReLU)."""

    config: UpscalerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n h w f"]) -> Float[Array, "n h w f"]:
        init = nn.initializers.constant(0.25)
        slope = parameter(self, "slope", init, (x.shape[-1],), self.config.param_dtype)
        return jnp.where(x >= 0, x, x * jnp.asarray(slope, x.dtype))


def enlarged(x: Float[Array, "n h w c"], times: int) -> Float[Array, "n H W c"]:
    """Every pixel as a square of equal ones (nearest neighbour)."""
    return jnp.repeat(jnp.repeat(x, times, 1), times, 2)


def shuffled(x: Float[Array, "n h w c"], side: int) -> Float[Array, "n H W d"]:
    """Channels as squares of pixels, in PyTorch's order (`pixel_shuffle`)."""
    n, h, w, c = x.shape
    squares = x.reshape(n, h, w, c // side**2, side, side)
    return jnp.einsum("nhwcij->nhiwjc", squares).reshape(n, h * side, w * side, -1)


def unshuffled(x: Float[Array, "n H W d"], side: int) -> Float[Array, "n h w c"]:
    """The inverse of `shuffled`."""
    n, h, w, c = x.shape
    squares = x.reshape(n, h // side, side, w // side, side, c)
    return jnp.einsum("nhiwjc->nhwcij", squares).reshape(n, h // side, w // side, -1)


def apply(config: UpscalerConfig, parameters: Any, pictures: Float[Array, "n h w c"]) -> Float[Array, "n H W c"]:
    """Enlarges pictures of 0 to 1; results are cut to that range. For `jax.jit` with the config static."""
    made = Upscaler(config).apply({"params": parameters}, pictures)
    return jnp.clip(jnp.asarray(made, jnp.float32), 0, 1)


upscale = jax.jit(apply, static_argnums=0)
