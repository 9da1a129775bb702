"""DOVER (Wu et al. 2023): the quality of a video as people see it, technical and aesthetic, by a network for each.

Published layout: `DOVER.pth`. Which frames and pixels the networks are given: `evaluation.dover_views`.
"""

import dataclasses
import math
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from i2v_jax.models.config import NetworkConfig
from i2v_jax.models.layers import Dense
from i2v_jax.models.video_convnext import ConvNeXtConfig, VideoConvNeXt
from i2v_jax.models.video_swin import SwinConfig, VideoSwin

MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)
"""Of the channels of ImageNet, 0 to 255."""


@dataclasses.dataclass(frozen=True)
class DOVERConfig(NetworkConfig):
    """Shape and arithmetic of DOVER.

    Attributes:
      technical, aesthetic: the branches' networks.
      head: channels within the heads.
      convolution, dtype: of both branches; `dtype` of activations.
      param_dtype: of new parameters.
    """

    technical: SwinConfig = SwinConfig()
    aesthetic: ConvNeXtConfig = ConvNeXtConfig()
    head: int = 64
    convolution: str = "xla"

    def branches(self) -> tuple[SwinConfig, ConvNeXtConfig]:
        """Returns the branches' configs with what is set for both."""
        aesthetic = dataclasses.replace(self.aesthetic, convolution=self.convolution, **self.dtypes)
        return dataclasses.replace(self.technical, **self.dtypes), aesthetic


PUBLISHED = DOVERConfig()


class Maps(NamedTuple):
    """How good each place of a video is; a video's score is the mean over clips and places. None: not asked for."""

    technical: Float[Array, "b d h w"] | None
    aesthetic: Float[Array, "b2 d2 h2 w2"] | None


class Head(nn.Module):
    """Dense, GELU, dense to one number per place."""

    config: DOVERConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b d h w c"]) -> Float[Array, "b d h w"]:
        dtypes = self.config.dtypes
        hidden = nn.gelu(Dense(self.config.head, name="fc_hid", **dtypes)(x), approximate=False)
        return Dense(1, name="fc_last", **dtypes)(hidden)[..., 0].astype(jnp.float32)


class DOVER(nn.Module):
    """Both branches."""

    config: DOVERConfig

    def setup(self):
        technical, aesthetic = self.config.branches()
        self.technical_backbone, self.technical_head = VideoSwin(technical), Head(self.config)
        self.aesthetic_backbone, self.aesthetic_head = VideoConvNeXt(aesthetic), Head(self.config)

    def __call__(
        self,
        technical: Float[Array, "b f h w 3"] | None = None,
        aesthetic: Float[Array, "b2 f2 h2 w2 3"] | None = None,
    ) -> Maps:
        """Runs the branches whose view is given.

        Args:
          technical: clips of fragments, see `normalised`; published: 3 of 32 frames of 224x224.
          aesthetic: the whole pictures, small; published: 1 of 32 frames of 224x224.
        """
        return Maps(
            None if technical is None else self.technical_head(self.technical_backbone(technical)),
            None if aesthetic is None else self.aesthetic_head(self.aesthetic_backbone(aesthetic)),
        )


def normalised(pixels: Array) -> Float[Array, "*b 3"]:
    """Returns pixels of 0 to 255 as the networks read them."""
    return (jnp.asarray(pixels, jnp.float32) - MEAN) / STD


class Scale(NamedTuple):
    """How raw scores become shares of 1: mean and deviation of each branch's."""

    technical: tuple[float, float]
    aesthetic: tuple[float, float]


DOVER_SCALE = Scale((0.1107, 0.07355), (-0.08285, 0.03774))
EVALCRAFTER_SCALE = Scale((-0.0758, 0.0129), (0.1253, 0.0318))
"""EvalCrafter's own, from the videos of the models that it compared."""
SHARES = (0.6104, 0.3896)
"""Of the technical and the aesthetic score in the overall one."""


class Scores(NamedTuple):
    """A video's scores, 0 to 1, higher is better."""

    technical: float
    aesthetic: float
    overall: float


def scores(technical: float, aesthetic: float, scale: Scale = DOVER_SCALE) -> Scores:
    """Returns scores from the means of the two maps."""
    means = technical, aesthetic
    scaled = [(value - mean) / deviation for value, (mean, deviation) in zip(means, scale)]
    overall = sum(share * value for share, value in zip(SHARES, scaled))
    return Scores(*(1 / (1 + math.exp(-value)) for value in (*scaled, overall)))
