"""What a denoiser is conditioned on beside latents and time, for every family of models."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Conditions(NamedTuple):
    """A pytree of arrays `[batch, frames or 1, ...]`: guidance joins them along axis 0, windows of frames slice axis 1.

    Attributes:
      text: prompt states.
      image_tokens: tokens of a picture, for networks with the "image_tokens" adapter.
      pooled: pooled, projected prompt states (SDXL).
      image_latents: what a first layer takes beside the latents: a mask, and a picture's latents (PIA); those of
        a picture, or zeros, for every frame (DynamiCrafter).
      sizes: original height and width, crop's top and left, target height and width, in pixels (SDXL).
      controls: of each control network, what its pictures were encoded to, see `encoders.controls`.
      implicit: 1 where MIVAs' implicit prompts are there, 0 where not; None: everywhere.
      miva_masks: of n MIVAs, how much of each is there, 0 to 1, over the latents' height and width; None: all of it.
      fs: frames a second, or the stride between frames (DynamiCrafter); None: the network's own default.
      frame_context: a vector for each frame (EDG, stage 1).
    """

    text: Float[Array, "b f t e"]
    image_tokens: Float[Array, "b f n e"] | None = None
    pooled: Float[Array, "b f p"] | None = None
    sizes: Float[Array, "b f 6"] | None = None
    image_latents: Float[Array, "b f h w m"] | None = None
    controls: tuple[Any, ...] = ()
    implicit: Float[Array, "b f"] | None = None
    miva_masks: Float[Array, "b f n h w"] | None = None
    fs: Float[Array, "b f"] | None = None
    frame_context: Float[Array, "b f e"] | None = None

    @classmethod
    def of_videos(
        cls,
        text: Float[Array, "b t e"],
        image_tokens: Float[Array, "b n e"] | None = None,
        pooled: Float[Array, "b p"] | None = None,
        sizes: Float[Array, "b 6"] | None = None,
    ) -> "Conditions":
        """Returns conditions that all frames of a video share."""
        return jax.tree.map(lambda x: jnp.asarray(x)[:, None], cls(text, image_tokens, pooled, sizes))

    def in_dtype(self, dtype: Any) -> "Conditions":
        """Returns them as a UNet's layers read them: tokens in its dtype, pooled states and sizes as they are."""
        tokens = (None if x is None else jnp.asarray(x, dtype) for x in (self.text, self.image_tokens))
        text, image_tokens = tokens
        return self._replace(text=text, image_tokens=image_tokens)


def join(*sides: Conditions) -> Conditions:
    """Returns the sides of classifier-free guidance as one batch, as it runs them: `[unconditional, conditional]`."""
    return jax.tree.map(lambda *x: jnp.concatenate(x), *sides)
