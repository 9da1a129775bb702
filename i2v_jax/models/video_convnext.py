"""ConvNeXt (Liu et al. 2022) whose kernels are inflated to videos: DOVER's aesthetic branch.

Published layout: `aesthetic_backbone.` of `DOVER.pth`.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from i2v_jax.models.config import NetworkConfig
from i2v_jax.models.layers import Dense, LayerNorm, parameter
from i2v_jax.models.video_swin import Patches

EPSILON = 1e-6  # of every norm
SIDE = 7  # height and width of the depthwise kernels


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig(NetworkConfig):
    """Shape and arithmetic of an inflated ConvNeXt.

    Attributes:
      depths, widths: blocks and channels of each stage.
      frames: of the kernels of a stage's blocks, over and over.
      stem: frames, height, width of the first convolution's kernel and stride.
      convolution: "xla", or what CPUs compute faster (any other name of `models.convolution`).
      dtype: of activations.
      param_dtype: of new parameters.
    """

    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    frames: tuple[int, ...] = (1, 3, 1)
    stem: tuple[int, ...] = (2, 4, 4)
    convolution: str = "xla"


def depthwise(
    x: Float[Array, "b f h w c"], kernel: Float[Array, "d 7 7 1 c"], implementation: str = "xla"
) -> Float[Array, "b f h w c"]:
    """Convolves each channel on its own, zeros outside."""
    sides = kernel.shape[:3]
    padding = [(side // 2, side // 2) for side in sides]
    if implementation == "xla":
        layout = ("NDHWC", "DHWIO", "NDHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1, 1), padding, dimension_numbers=layout, feature_group_count=x.shape[-1]
        )
    (frames, height, width), padded = x.shape[1:4], jnp.pad(x, [(0, 0), *padding, (0, 0)])

    def add_row(total, row):
        band = jax.lax.dynamic_slice_in_dim(padded, row, height, 2)
        weights = kernel[:, row, :, 0]
        for t in range(sides[0]):
            for j in range(sides[2]):
                total += band[:, t : t + frames, :, j : j + width] * weights[t, j]
        return total, None

    return jax.lax.scan(add_row, jnp.zeros_like(x), jnp.arange(sides[1]))[0]


class Block(nn.Module):
    """A depthwise convolution, a norm, a feed-forward layer, scaled and added to the input."""

    frames: int
    config: ConvNeXtConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        c, width = self.config, x.shape[-1]
        y = Depthwise(self.frames, c, name="dwconv")(x)
        dense = functools.partial(Dense, **c.dtypes)
        y = nn.gelu(dense(4 * width, name="pwconv1")(norm(c, "norm")(y)), approximate=False)
        gamma = parameter(self, "gamma", nn.initializers.constant(1e-6), (width,), c.param_dtype)
        return x + jnp.asarray(gamma, c.dtype) * dense(width, name="pwconv2")(y)


class Depthwise(nn.Module):
    """A depthwise convolution of `frames` x 7 x 7."""

    frames: int
    config: ConvNeXtConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        c, shape = self.config, (self.frames, SIDE, SIDE, 1, x.shape[-1])
        kernel = parameter(self, "kernel", nn.initializers.truncated_normal(0.02), shape, c.param_dtype)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), shape[-1:], c.param_dtype)
        return depthwise(x, jnp.asarray(kernel, c.dtype), c.convolution) + jnp.asarray(bias, c.dtype)


class Stage(nn.Module):
    """Blocks whose kernels see one frame or several in turn."""

    number: int
    config: ConvNeXtConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        c = self.config
        for j in range(c.depths[self.number]):
            x = Block(c.frames[j % len(c.frames)], c, name=f"blocks_{j}")(x)
        return x


class Downsample(nn.Module):
    """What comes before a stage: patches and a norm before the first, a norm and squares of 2x2 before others."""

    number: int
    config: ConvNeXtConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w i"]) -> Float[Array, "b f2 h2 w2 o"]:
        c, width = self.config, self.config.widths[self.number]
        if self.number == 0:
            return norm(c, "norm")(Patches(width, c.stem, c, name="conv")(x))
        return Patches(width, (1, 2, 2), c, name="conv")(norm(c, "norm")(x))


class VideoConvNeXt(nn.Module):
    """Features of videos, normed; one place per two frames and 32x32 pixels."""

    config: ConvNeXtConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "b f H W 3"]) -> Float[Array, "b d h w c"]:
        """Runs the network on normalised pixels; a last frame, row or column that fills no patch is dropped."""
        c, x = self.config, pixels
        for i in range(len(c.depths)):
            x = Downsample(i, c, name=f"downsample_{i}")(x)
            x = Stage(i, c, name=f"stages_{i}")(x)
        return norm(c, "norm")(x)


def norm(c: ConvNeXtConfig, name: str) -> LayerNorm:
    return LayerNorm(EPSILON, name=name, **c.dtypes)
