"""ControlNet (Zhang et al. 2023): a copy of a UNet's down blocks that also sees a picture and corrects the UNet.

Published layout: diffusers' ControlNetModel, for Stable Diffusion 1.5 and XL.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from i2v_jax.errors import InputError
from i2v_jax.models.adapters import Shared
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.config import refuse_others
from i2v_jax.models.layers import Dense, shard
from i2v_jax.models.residuals import Residuals
from i2v_jax.models.unet import SD15, SDXL, TINY, UNetConfig, conv, down_and_middle, time_embedding


@dataclasses.dataclass(frozen=True)
class ControlNetConfig(UNetConfig):
    """Shape and arithmetic of a ControlNet: those of its UNet (of whose up blocks it has nothing), and its own.

    Attributes:
      picture_widths: channels of the conditioning picture's embedding; each but the first halves it.
      pooled_residuals: residuals are means over height and width (the ControlNet "shuffle").
    """

    picture_widths: tuple[int, ...] = (16, 32, 96, 256)
    pooled_residuals: bool = False

    @property
    def picture_scale(self) -> int:
        """Side of a conditioning picture over side of the latents."""
        return 2 ** (len(self.picture_widths) - 1)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any], **overrides) -> "ControlNetConfig":
        """Reads the `config.json` of a diffusers ControlNetModel.

        Raises:
          InputError: a setting that this ControlNet does not have.
        """
        refuse_others("ControlNet", config, _FIXED)
        fields = dict(
            picture_widths=tuple(config.get("conditioning_embedding_out_channels") or cls.picture_widths),
            pooled_residuals=config.get("global_pool_conditions", False),
        )
        up = {"up_block_types": config["down_block_types"][::-1]}
        return super().from_diffusers({**config, **up}, **(fields | overrides))

    def to_diffusers(self) -> dict[str, Any]:
        """Returns the `config.json` of a diffusers ControlNetModel."""
        shared = super().to_diffusers()
        del shared["up_block_types"], shared["out_channels"]
        return shared | {
            "_class_name": "ControlNetModel",
            "conditioning_embedding_out_channels": list(self.picture_widths),
            "global_pool_conditions": self.pooled_residuals,
        }


# Settings of published configs that this ControlNet knows one value of, diffusers' default.
_FIXED = {
    "conditioning_channels": (3,),
    "controlnet_conditioning_channel_order": ("rgb",),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
}


def of_unet(unet: UNetConfig) -> ControlNetConfig:
    """Returns the config of a ControlNet for a picture model's UNet."""
    fields = {field.name: getattr(unet, field.name) for field in dataclasses.fields(UNetConfig)}
    return ControlNetConfig(**fields | dict(miva=None))


SD15_CONTROLNET, SDXL_CONTROLNET, TINY_CONTROLNET = of_unet(SD15), of_unet(SDXL), of_unet(TINY)


class PictureEmbedding(nn.Module):
    """Convolutions from a picture to what is added to the first features of its latents."""

    config: ControlNetConfig

    @nn.compact
    def __call__(self, picture: Float[Array, "b f H W p"]) -> Float[Array, "b f h w c"]:
        c, widths = self.config, self.config.picture_widths
        x = nn.silu(conv(c, widths[0], "conv_in")(jnp.asarray(picture, c.dtype)))
        for i, (width, next_width) in enumerate(zip(widths, widths[1:])):
            x = nn.silu(conv(c, width, f"blocks_{2 * i}")(x))
            x = nn.silu(conv(c, next_width, f"blocks_{2 * i + 1}", stride=2)(x))
        return conv(c, c.block_out_channels[0], "conv_out")(x)


class ControlNet(nn.Module):
    """Turns a conditioning picture per frame into residuals for a UNet's skips and its middle block."""

    config: ControlNetConfig

    @nn.compact
    def __call__(
        self,
        sample: Float[Array, "b f h w i"],
        timesteps: Float[Array, " b"],
        conditions: Conditions,
        picture: Float[Array, "b f H W 3"] | None = None,
        conditioning_scale: float | Float[Array, ""] = 1.0,
        embedding: Float[Array, "b f h w c"] | None = None,
    ) -> Residuals:
        """Runs the network.

        Args:
          sample: noisy latents.
          timesteps: in [0, 1000), one per video, or a scalar for all.
          conditions: the UNet's.
          picture: conditioning pictures (edges, depth, poses, ...) in [0, 1], `config.picture_scale` times the latents'
            height and width; one frame serves for all.
          conditioning_scale: strength; 0 leaves the UNet as it is.
          embedding: what `PictureEmbedding` makes of the picture, in its place: it is the same at every step.

        Returns:
          What is added to every output of the UNet's down blocks and to its middle block's.

        Raises:
          InputError: a picture of another size.
        """
        c = self.config
        if embedding is None:
            self._check_size(picture, sample)
            embedding = PictureEmbedding(c, name="controlnet_cond_embedding")(picture)
        sample = shard(sample, "batch", "frames", "height", "width", None)
        time = time_embedding(c, jnp.broadcast_to(timesteps, sample.shape[:1]), conditions)
        shared = Shared(time, conditions.in_dtype(c.dtype))
        x = conv(c, c.block_out_channels[0], "conv_in")(jnp.asarray(sample, c.dtype))
        x += embedding
        outputs, middle = down_and_middle(c, x, shared)

        def residual(x, name):
            zeros = nn.initializers.zeros_init()  # a new ControlNet changes nothing
            x = Dense(x.shape[-1], kernel_init=zeros, name=name, **c.dtypes)(x) * jnp.asarray(
                conditioning_scale, c.dtype
            )
            return jnp.mean(x, (2, 3), keepdims=True) if c.pooled_residuals else x

        down = [residual(output, f"controlnet_down_blocks_{i}") for i, output in enumerate(outputs)]
        return Residuals(down, residual(middle, "controlnet_mid_block"))

    def _check_size(self, picture: Float[Array, "b f H W 3"], sample: Float[Array, "b f h w i"]) -> None:
        height, width = (self.config.picture_scale * side for side in sample.shape[2:4])
        if picture.shape[2:] != (height, width, 3):
            raise InputError(
                f"The ControlNet was given pictures of shape {picture.shape[2:]} (height, width, channels) for latents "
                f"of {sample.shape[2]}x{sample.shape[3]}; wanted {(height, width, 3)}. Resize them."
            )
