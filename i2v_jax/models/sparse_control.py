"""SparseCtrl (Guo et al. 2023): a ControlNet with motion modules, whose pictures stand on a few frames only.

Published layouts: diffusers' SparseControlNetModel, AnimateDiff's v3_sd15_sparsectrl_rgb.ckpt and _scribble.ckpt.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from i2v_jax.errors import InputError
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.controlnet import SD15_CONTROLNET, ControlNet, ControlNetConfig, PictureEmbedding
from i2v_jax.models.motion import MotionConfig
from i2v_jax.models.residuals import Residuals
from i2v_jax.models.unet import conv

MOTION = MotionConfig(max_positions=32, attentions=1)
"""Layout of the published motion modules."""


@dataclasses.dataclass(frozen=True)
class SparseControlNetConfig(ControlNetConfig):
    """Shape and arithmetic of a SparseCtrl: those of a ControlNet with motion modules, and its own.

    Attributes:
      picture_widths: as in a ControlNet; () where one convolution reads latents (RGB).
      picture_channels: of the pictures, or of the latents.
      has_mask: one more channel tells which frames have a picture.
      motion: layout of the motion modules.
    """

    picture_channels: int = 3
    has_mask: bool = True
    motion: MotionConfig | None = MOTION

    @property
    def reads_latents(self) -> bool:
        """Whether pictures go through the autoencoder first (RGB), rather than in as they are (scribble)."""
        return not self.picture_widths

    @property
    def picture_scale(self) -> int:
        """Side of what the network reads over side of the latents."""
        return 1 if self.reads_latents else super().picture_scale

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any], **overrides) -> "SparseControlNetConfig":
        """Reads the `config.json` of a diffusers SparseControlNetModel.

        Raises:
          InputError: a setting that this SparseCtrl does not have.
        """
        motion = dataclasses.replace(MotionConfig.from_diffusers(config), attentions=1, mid_block=False)
        fields = dict(motion=motion, picture_channels=config.get("conditioning_channels", 4))
        fields["has_mask"] = config.get("concat_conditioning_mask", True)
        if config.get("use_simplified_condition_embedding", True):
            fields["picture_widths"] = ()
        as_controlnet = {key: value for key, value in config.items() if key != "conditioning_channels"}
        found = super().from_diffusers(as_controlnet, **(fields | overrides))
        middle = config.get("transformer_layers_per_mid_block")
        if middle not in (None, found.transformer_depth[-1]):
            raise InputError(
                f"SparseCtrl config: transformer_layers_per_mid_block={middle!r} is not supported; wanted that of the "
                f"last level, {found.transformer_depth[-1]}."
            )
        return found

    def to_diffusers(self) -> dict[str, Any]:
        """Returns the `config.json` of a diffusers SparseControlNetModel."""
        config = super().to_diffusers()
        for key in _NOT_OF_DIFFUSERS:
            config.pop(key, None)
        if self.reads_latents:
            del config["conditioning_embedding_out_channels"]
        return config | {
            "_class_name": "SparseControlNetModel",
            "conditioning_channels": self.picture_channels,
            "concat_conditioning_mask": self.has_mask,
            "use_simplified_condition_embedding": self.reads_latents,
        }


_NOT_OF_DIFFUSERS = ("use_motion_mid_block", "temporal_transformer_layers_per_mid_block", "encoder_hid_dim_type")
"""Settings of UNetMotionModel that a SparseControlNetModel has not."""


def of_controlnet(controlnet: ControlNetConfig, **changes) -> SparseControlNetConfig:
    """Returns the config of a SparseCtrl like a ControlNet, with changes."""
    fields = {field.name: getattr(controlnet, field.name) for field in dataclasses.fields(ControlNetConfig)}
    return SparseControlNetConfig(**(fields | dict(motion=MOTION) | changes))


SCRIBBLE = of_controlnet(SD15_CONTROLNET)
RGB = of_controlnet(SD15_CONTROLNET, picture_widths=(), picture_channels=4)


def embedding(config: SparseControlNetConfig, name: str | None = None) -> nn.Module:
    """Returns the network from conditions (`masked`) to what is added to the first features."""
    if config.reads_latents:
        return conv(config, config.block_out_channels[0], name)
    return PictureEmbedding(config, name=name)


def masked(
    config: SparseControlNetConfig, pictures: Float[Array, "b f H W p"], known: Bool[Array, "b f"]
) -> Float[Array, "b f H W _p"]:
    """Returns pictures (or latents), zero at frames that have none, and the mask as their last channel."""
    where = jnp.broadcast_to(known[..., None, None, None], (*pictures.shape[:-1], 1))
    pictures = jnp.where(where, pictures, 0)
    return jnp.concatenate([pictures, where.astype(pictures.dtype)], -1) if config.has_mask else pictures


class SparseControlNet(ControlNet):
    """Turns conditions on a few frames into residuals for the UNet's skips and middle block, on all frames."""

    config: SparseControlNetConfig

    @nn.compact
    def __call__(
        self,
        sample: Float[Array, "b f h w i"],
        timesteps: Float[Array, " b"],
        conditions: Conditions,
        picture: Float[Array, "b f H W p"] | None = None,
        known: Bool[Array, "b f"] | None = None,
        conditioning_scale: float | Float[Array, ""] = 1.0,
        embedded: Float[Array, "b f h w c"] | None = None,
    ) -> Residuals:
        """Runs the network.

        Args:
          sample: noisy latents, of which only the shape counts: the network is given zeros.
          timesteps, conditions: the UNet's.
          picture: latents of pictures, scaled as the UNet's (`config.reads_latents`), or pictures in [0, 1],
            `config.picture_scale` times the latents' height and width.
          known: which frames have a picture; what stands at the others means nothing. By default all have.
          conditioning_scale: strength; 0 leaves the UNet as it is.
          embedded: what `embedding` makes of the pictures, in their place: it is the same at every step.

        Returns:
          What is added to every output of the UNet's down blocks and to its middle block's.

        Raises:
          InputError: a picture of another size, or more frames than the motion modules know.
        """
        c = self.config
        if sample.shape[1] > c.motion.max_positions:
            raise InputError(
                f"{sample.shape[1]} frames, and the SparseCtrl knows {c.motion.max_positions} at most. Take fewer."
            )
        if embedded is None:
            self._check(picture, sample)
            known = jnp.ones(picture.shape[:2], bool) if known is None else known
            embedded = embedding(c, "controlnet_cond_embedding")(masked(c, jnp.asarray(picture, c.dtype), known))
        zeros = jnp.zeros((*sample.shape[:-1], c.in_channels), c.dtype)
        return super().__call__(zeros, timesteps, conditions, conditioning_scale=conditioning_scale, embedding=embedded)

    def _check(self, picture: Float[Array, "b f H W p"], sample: Float[Array, "b f h w i"]) -> None:
        c = self.config
        wanted = (*(c.picture_scale * side for side in sample.shape[2:4]), c.picture_channels)
        if picture.shape[2:] != wanted:
            what = "latents of pictures" if c.reads_latents else "pictures"
            raise InputError(
                f"The SparseCtrl was given {what} of shape {picture.shape[2:]} (height, width, channels) for latents "
                f"of {sample.shape[2]}x{sample.shape[3]}; wanted {wanted}."
            )
