"""What trains an autoencoder: the error of what it makes of pictures (Rombach et al. 2022, section 3.1)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from i2v_jax.errors import InputError
from i2v_jax.models.vae import AutoencoderKL, VAEConfig, sample_posterior
from i2v_jax.training.objective import Batch


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Settings of an autoencoder's loss.

    Attributes:
      crop: side in pixels of the square of each clip that is looked at, drawn at random; 0: all of it.
      edges: weight of the absolute error of differences between neighbouring pixels, beside that of the pixels.
      divergence: weight of the latents' mean KL divergence from a standard normal (Rombach et al. 2022, section 3.1).
    """

    crop: int = 0
    edges: float = 1.0
    divergence: float = 1e-4

    def __post_init__(self):
        for name in ("crop", "edges", "divergence"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}={getattr(self, name)}: wanted 0 or more.")


class Crops(NamedTuple):
    """What is random in a step of an autoencoder."""

    posterior: Float[Array, "b f h w c"]  # which latents, of its distribution
    corners: Int[Array, "b 2"]  # of the squares: top, left


@dataclasses.dataclass(frozen=True)
class ReconstructionLoss:
    """The loss of a batch's `video` under a tree that holds a "vae"; each frame is a picture of its own.

    Attributes:
      config: of the autoencoder.
      objective: weights of the terms.
    """

    config: VAEConfig
    objective: Reconstruction

    def draw(self, key: Key[Array, ""], batch: Batch) -> Crops:
        """Draws which latents, of the posterior, and which squares.

        Raises:
          InputError: squares that are larger than the frames, or that have no latents.
        """
        b, f, *size, _ = batch["video"].shape
        side, scale = self.objective.crop, self.config.downscale
        if side % scale or side > min(size):
            raise InputError(
                f"reconstruction.crop={side}: wanted a multiple of {scale}, {min(size)} (the frames' side) at most."
            )
        posterior, corners = jax.random.split(key)
        h, w = (side, side) if side else size
        most = jnp.array([size[0] - h + 1, size[1] - w + 1])
        return Crops(
            jax.random.normal(posterior, (b, f, h // scale, w // scale, self.config.latent_channels), jnp.float32),
            jax.random.randint(corners, (b, 2), 0, most),
        )

    def __call__(
        self, tree: Mapping[str, Any], batch: Batch, draws: Crops
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Returns the loss, and `each` clip's own loss [b] and the `decoded` frames [b f h w 3]."""
        vae, parameters = AutoencoderKL(self.config), {"params": tree["vae"]}
        h, w = (side * self.config.downscale for side in draws.posterior.shape[2:4])

        def crop(video, corner):
            return jax.lax.dynamic_slice(video, (0, *corner, 0), (len(video), h, w, 3))

        video = jnp.asarray(jax.vmap(crop)(batch["video"], draws.corners), jnp.float32) / 127.5 - 1
        mean, logvar = vae.apply(parameters, video.reshape(-1, *video.shape[2:]), method="encode")
        latents = sample_posterior(mean, logvar, draws.posterior.reshape(mean.shape))
        decoded = jnp.asarray(vae.apply(parameters, latents, method="decode"), jnp.float32).reshape(video.shape)

        def per_clip(x):
            return jnp.mean(jnp.asarray(x, jnp.float32).reshape(len(video), -1), 1)

        error = decoded - video
        edges = sum(per_clip(jnp.abs(jnp.diff(error, axis=axis))) for axis in (2, 3))
        divergence = per_clip(0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar))
        each = per_clip(jnp.abs(error)) + self.objective.edges * edges + self.objective.divergence * divergence
        return jnp.mean(each), {"decoded": decoded, "each": each}
