"""The autoencoder of Stable Diffusion 1.5 and XL: pictures to latents an eighth of their size, and back.

Published layout: diffusers' AutoencoderKL (Rombach et al. 2022, section 3.1).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from i2v_jax.errors import InputError
from i2v_jax.models.attention import attention, merge_heads, split_heads
from i2v_jax.models.config import LevelledConfig, refuse_others
from i2v_jax.models.layers import Conv, Dense, GroupNorm
from i2v_jax.models.resnet import ResnetBlock, nearest_resize

_EPSILON = 1e-6  # of every group norm in these networks; their UNets have 1e-5


@dataclasses.dataclass(frozen=True)
class VAEConfig(LevelledConfig):
    """Shape and arithmetic of an autoencoder.

    Attributes:
      block_out_channels: width of each level, the finest first; each further level halves the picture.
      layers_per_block: residual blocks per level of the encoder; one more in the decoder.
      latent_channels: channels of a latent.
      norm_groups: groups of every group norm.
      scaling_factor: what the UNet sees is latents times this (about unit variance).
      attention, convolution: implementations, see `models.attention` and `models.convolution`.
      dtype: of activations; norms and softmax are float32 all the same.
      param_dtype: of new parameters.
    """

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_groups: int = 32
    scaling_factor: float = 0.18215
    attention: str = "xla"
    convolution: str = "xla"

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any], **overrides) -> "VAEConfig":
        """Reads the `config.json` of a diffusers AutoencoderKL.

        Raises:
          InputError: a setting that this autoencoder does not have.
        """
        refuse_others("VAE", config, _FIXED)
        for key, wanted in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            if set(config.get(key, (wanted,))) != {wanted}:
                raise InputError(f"VAE config: {key}={config[key]!r} is not supported; wanted {wanted!r} throughout.")
        fields = {ours: config.get(theirs, default) for ours, theirs, default in _KEYS}
        fields["block_out_channels"] = tuple(fields["block_out_channels"])
        return cls(**(fields | overrides))

    def to_diffusers(self) -> dict[str, Any]:
        """Returns the `config.json` of a diffusers AutoencoderKL."""
        levels = len(self.block_out_channels)
        return {theirs: getattr(self, ours) for ours, theirs, _ in _KEYS} | {
            "_class_name": "AutoencoderKL",
            "block_out_channels": list(self.block_out_channels),
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
        }


# Field, key in a config.json, and what diffusers takes where the key is absent.
_KEYS = (
    ("block_out_channels", "block_out_channels", (64,)),
    ("layers_per_block", "layers_per_block", 1),
    ("latent_channels", "latent_channels", 4),
    ("norm_groups", "norm_num_groups", 32),
    ("scaling_factor", "scaling_factor", 0.18215),
)
# Settings of published configs that this autoencoder knows one value of, diffusers' default.
_FIXED = {
    "act_fn": ("silu",),
    "in_channels": (3,),
    "out_channels": (3,),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True,),
    "shift_factor": (None,),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}

SD_VAE = VAEConfig()
SDXL_VAE = VAEConfig(scaling_factor=0.13025)
TINY_VAE = VAEConfig(block_out_channels=(16, 16, 32, 32), layers_per_block=1, norm_groups=8)


class SelfAttention(nn.Module):
    """Every place of a picture attends to all of them, by one head; added to its input."""

    config: VAEConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        n, h, w, c = x.shape
        hidden = norm(self.config, "group_norm")(x).reshape(n, 1, h * w, c)
        q, k, v = (split_heads(dense(self.config, c, name)(hidden), 1) for name in ("to_q", "to_k", "to_v"))
        out = merge_heads(attention(q, k, v, self.config.attention))
        return x + dense(self.config, c, "to_out")(out).reshape(x.shape)


class MidBlock(nn.Module):
    """Residual block, self-attention, residual block, at the coarsest level."""

    config: VAEConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        width = self.config.block_out_channels[-1]
        x = resnet(self.config, width, "resnet_0")(x)
        x = SelfAttention(self.config, name="attention")(x)
        return resnet(self.config, width, "resnet_1")(x)


class DownBlock(nn.Module):
    """The residual blocks of a level, then (but at the coarsest) a stride-2 convolution padded below and right."""

    config: VAEConfig
    level: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h2 w2 o"]:
        c, width = self.config, self.config.block_out_channels[self.level]
        for i in range(c.layers_per_block):
            x = resnet(c, width, f"resnets_{i}")(x)
        if self.level < len(c.block_out_channels) - 1:
            x = conv(c, width, "downsample", stride=2, padding=((0, 1), (0, 1)))(x)
        return x


class UpBlock(nn.Module):
    """The residual blocks of a level, then (but at the finest) a resize to twice the size and a convolution."""

    config: VAEConfig
    level: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h2 w2 o"]:
        c, width = self.config, self.config.block_out_channels[self.level]
        for i in range(c.layers_per_block + 1):
            x = resnet(c, width, f"resnets_{i}")(x)
        if self.level > 0:
            x = nearest_resize(x, 2 * x.shape[1], 2 * x.shape[2])
            x = conv(c, width, "upsample")(x)
        return x


class Encoder(nn.Module):
    """Pictures to the moments of their latents."""

    config: VAEConfig

    @nn.compact
    def __call__(self, images: Float[Array, "n H W 3"]) -> Float[Array, "n h w moments"]:
        c = self.config
        x = conv(c, c.block_out_channels[0], "conv_in")(images)
        for level in range(len(c.block_out_channels)):
            x = DownBlock(c, level, name=f"down_blocks_{level}")(x)
        x = MidBlock(c, name="mid_block")(x)
        return conv(c, 2 * c.latent_channels, "conv_out")(nn.silu(norm(c, "conv_norm_out")(x)))


class Decoder(nn.Module):
    """Latents to pictures."""

    config: VAEConfig

    @nn.compact
    def __call__(self, latents: Float[Array, "n h w c"]) -> Float[Array, "n H W 3"]:
        c = self.config
        x = conv(c, c.block_out_channels[-1], "conv_in")(latents)
        x = MidBlock(c, name="mid_block")(x)
        for i, level in enumerate(reversed(range(len(c.block_out_channels)))):
            x = UpBlock(c, level, name=f"up_blocks_{i}")(x)
        return conv(c, 3, "conv_out")(nn.silu(norm(c, "conv_norm_out")(x)))


class AutoencoderKL(nn.Module):
    """Encodes pictures to Gaussians over latents and decodes latents; call it by `method="encode"` or `"decode"`."""

    config: VAEConfig

    def setup(self):
        c = self.config
        self.encoder, self.decoder = Encoder(c), Decoder(c)
        self.quant_conv = dense(c, 2 * c.latent_channels, None)
        self.post_quant_conv = dense(c, c.latent_channels, None)

    def encode(self, images: Float[Array, "n H W 3"]) -> tuple[Float[Array, "n h w c"], Float[Array, "n h w c"]]:
        """Returns mean and log variance of the posterior over (unscaled) latents; `sample_posterior` draws from it.

        Args:
          images: in [-1, 1]; height and width any multiples of `config.downscale`.

        Raises:
          InputError: another height or width.
        """
        height, width = images.shape[1:3]
        if height % self.config.downscale or width % self.config.downscale:
            raise InputError(
                f"The VAE was given pictures of {height}x{width} (height x width); both must be multiples of "
                f"{self.config.downscale}. Resize or crop them."
            )
        return tuple(jnp.split(self.quant_conv(self.encoder(images)), 2, axis=-1))

    def decode(self, latents: Float[Array, "n h w c"]) -> Float[Array, "n H W 3"]:
        """Returns pictures in about [-1, 1] (not clipped).

        Args:
          latents: unscaled, that is, already divided by `config.scaling_factor`; any height and width.
        """
        return self.decoder(self.post_quant_conv(latents))

    def __call__(self, images: Float[Array, "n H W 3"]) -> Float[Array, "n H W 3"]:
        """Decodes the posterior's mean: a pass through every parameter, to create them."""
        return self.decode(self.encode(images)[0])


def sample_posterior(
    mean: Float[Array, "*b c"], logvar: Float[Array, "*b c"], noise: Float[Array, "*b c"]
) -> Float[Array, "*b c"]:
    """Returns `mean + exp(logvar / 2) * noise` in float32, `logvar` held in [-30, 20] as in diffusers.

    Args:
      mean, logvar: from `AutoencoderKL.encode`.
      noise: standard normal; zeros give the mode.
    """
    mean, logvar = jnp.asarray(mean, jnp.float32), jnp.asarray(logvar, jnp.float32)
    return mean + jnp.exp(0.5 * jnp.clip(logvar, -30.0, 20.0)) * noise


# How a config builds each kind of part.


def resnet(c: VAEConfig, features: int, name: str) -> ResnetBlock:
    return ResnetBlock(
        features,
        c.norm_groups,
        _EPSILON,
        convolution=c.convolution,
        name=name,
        **c.dtypes,
    )


def norm(c: VAEConfig, name: str) -> GroupNorm:
    return GroupNorm(c.norm_groups, _EPSILON, name=name, **c.dtypes)


def conv(c: VAEConfig, features: int, name: str, **geometry) -> Conv:
    return Conv(features, implementation=c.convolution, name=name, **geometry, **c.dtypes)


def dense(c: VAEConfig, features: int, name: str | None) -> Dense:
    return Dense(features, name=name, **c.dtypes)
