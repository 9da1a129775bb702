"""Pictures to latents and back, scaled as denoisers want them (Rombach et al. 2022, section 3.1)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from i2v_jax.models.vae import AutoencoderKL, VAEConfig, sample_posterior


def moments(
    config: VAEConfig, parameters: Mapping[str, Any], pictures: Float[Array, "n H W 3"]
) -> tuple[Float[Array, "n h w c"], Float[Array, "n h w c"]]:
    """Returns mean and log variance of the pictures' latents, not scaled; pictures are in [-1, 1]."""
    return AutoencoderKL(config).apply({"params": parameters}, pictures, method="encode")


def video_moments(
    config: VAEConfig, parameters: Mapping[str, Any], video: UInt8[Array, "b f H W 3"], frames_at_once: int = 0
) -> tuple[Float[Array, "b f h w c"], Float[Array, "b f h w c"]]:
    """As `moments`, of videos.

    Args:
      config, parameters: the autoencoder.
      video: RGB.
      frames_at_once: of each clip, at most; bounds memory. 0: all.
    """
    b, f, *picture = video.shape
    most = frames_at_once or f
    count = next(n for n in range(min(most, f), 0, -1) if f % n == 0)
    # slices of every clip's frames, so that on a mesh each device encodes those of its own clips
    slices = video.reshape(b, f // count, count, *picture).swapaxes(0, 1).reshape(f // count, b * count, *picture)

    def encode(frames):
        return moments(config, parameters, jnp.asarray(frames, jnp.float32) / 127.5 - 1)

    found = jax.lax.map(encode, slices) if f > count else tuple(x[None] for x in encode(slices[0]))
    return tuple(
        x.reshape(f // count, b, count, *x.shape[-3:]).swapaxes(0, 1).reshape(b, f, *x.shape[-3:]) for x in found
    )


def scaled_sample(
    config: VAEConfig, mean: Float[Array, "*b c"], logvar: Float[Array, "*b c"], noise: Float[Array, "*b c"]
) -> Float[Array, "*b c"]:
    """Returns a sample of the posterior, scaled, float32; `noise` is standard normal."""
    return config.scaling_factor * sample_posterior(mean, logvar, noise)


def decode(
    config: VAEConfig, parameters: Mapping[str, Any], latents: Float[Array, "n h w c"]
) -> Float[Array, "n H W 3"]:
    """Returns the pictures of scaled latents, in about [-1, 1], float32."""
    latents = latents / config.scaling_factor
    return AutoencoderKL(config).apply({"params": parameters}, latents, method="decode").astype(jnp.float32)
