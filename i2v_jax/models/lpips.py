"""LPIPS (Zhang et al. 2018): how different two pictures look, by the features of a classifier, AlexNet or VGG16.

Published layouts: the package `lpips`, version 0.1, and torchvision's classifiers; `weights.measuring` has the heads.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from i2v_jax.errors import InputError, nearest
from i2v_jax.models.config import NetworkConfig
from i2v_jax.models.convolution import conv3x3
from i2v_jax.models.layers import parameter

MEAN = np.array([-0.030, -0.088, -0.188], np.float32)
STD = np.array([0.458, 0.448, 0.450], np.float32)
"""Of the channels of ImageNet, -1 to 1, as `lpips` has them."""
LEAST_SIDE = 31
"""Of pictures, in pixels: of smaller ones AlexNet leaves nothing."""


class Layer(NamedTuple):
    """A convolution: its number in torchvision's list, its kernel's side, stride and padding."""

    number: int
    side: int = 3
    stride: int = 1
    padding: int = 1


class Stage(NamedTuple):
    """Convolutions, each with a ReLU, after a pooling over squares of `pool` (0: none); features are what comes out."""

    pool: int
    layers: tuple[Layer, ...]


BACKBONES = {
    "alex": (
        Stage(0, (Layer(0, 11, 4, 2),)),
        Stage(3, (Layer(3, 5, 1, 2),)),
        Stage(3, (Layer(6),)),
        Stage(0, (Layer(8),)),
        Stage(0, (Layer(10),)),
    ),
    "vgg": tuple(
        Stage(pool, tuple(map(Layer, numbers)))
        for pool, numbers in ((0, (0, 2)), (2, (5, 7)), (2, (10, 12, 14)), (2, (17, 19, 21)), (2, (24, 26, 28)))
    ),
}


@dataclasses.dataclass(frozen=True)
class LPIPSConfig(NetworkConfig):
    """Shape and arithmetic of LPIPS.

    Attributes:
      backbone: a name in `BACKBONES`.
      widths: channels of each stage.
      convolution: "xla", or what CPUs compute faster (any other name of `models.convolution`).
      dtype: of activations.
      param_dtype: of new parameters.
    """

    backbone: str = "alex"
    widths: tuple[int, ...] = (64, 192, 384, 256, 256)
    convolution: str = "xla"

    def __post_init__(self):
        if self.backbone not in BACKBONES:
            raise InputError(
                f"LPIPS config: backbone={self.backbone!r}; known: {', '.join(BACKBONES)}."
                + nearest(str(self.backbone), BACKBONES)
            )


ALEX = LPIPSConfig()
VGG = LPIPSConfig("vgg", (64, 128, 256, 512, 512))


class Convolution(nn.Module):
    """A stage's convolution."""

    config: LPIPSConfig
    features: int
    layer: Layer

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        c, layer = self.config, self.layer
        shape = (layer.side, layer.side, x.shape[-1], self.features)
        kernel = parameter(self, "kernel", nn.initializers.he_normal(), shape, c.param_dtype).astype(c.dtype)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), (self.features,), c.param_dtype)
        if layer == Layer(layer.number):
            y = conv3x3(x, kernel, implementation=c.convolution)
        else:
            padding, axes = [(layer.padding, layer.padding)] * 2, ("NHWC", "HWIO", "NHWC")
            y = jax.lax.conv_general_dilated(x, kernel, (layer.stride,) * 2, padding, dimension_numbers=axes)
        return y + bias.astype(c.dtype)


class LPIPS(nn.Module):
    """The classifier, and what is made of its features."""

    config: LPIPSConfig

    @nn.compact
    def __call__(
        self,
        first: Float[Array, "b h w 3"],
        second: Float[Array, "b h w 3"],
        heads: Sequence[Float[Array, " c"]] | None = None,
    ) -> Float[Array, " b"]:
        """Runs the network on both pictures.

        Args:
          first, second: -1 to 1, sides of 31 pixels or more.
          heads: how much each channel of each stage counts; by default all as 1.

        Returns:
          The distance of each pair, from 0.
        """
        c = self.config
        x = jnp.concatenate([first, second])
        x = (jnp.asarray(x, c.dtype) - MEAN) / STD
        total = jnp.zeros(len(first), jnp.float32)
        for number, (stage, width) in enumerate(zip(BACKBONES[c.backbone], c.widths)):
            if stage.pool:
                x = nn.max_pool(x, (stage.pool,) * 2, (2, 2))
            for layer in stage.layers:
                x = nn.relu(Convolution(c, width, layer, name=f"features_{layer.number}")(x))
            features = x.astype(jnp.float32)
            features = features / (jnp.linalg.norm(features, axis=-1, keepdims=True) + 1e-10)
            one, other = jnp.split(features, 2)
            apart = (one - other) ** 2
            total += (apart if heads is None else apart * heads[number]).sum(-1).mean((1, 2))
        return total
