"""Pictures to image tokens (IP-Adapter, Ye et al. 2023), and the unconditional ones.

Those are the tokens of an all-zero picture (published I2V-Adapter code), or the linear projection's of an all-zero
embedding (IP-Adapter).
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from i2v_jax.models.clip import CLIPVisionEncoder
from i2v_jax.models.networks import module_of

COMPONENTS = ("image_encoder", "image_proj")


def encode(
    configs: Mapping[str, Any],
    tree: Mapping[str, Any],
    pixels: Float[Array, "b h w 3"],
    unconditional: Bool[Array, " b"] | None = None,
) -> Float[Array, "b n d"]:
    """Returns the image tokens of pictures.

    Args:
      configs: component -> config.
      tree: component -> parameters.
      pixels: as the image encoder wants them, see `media.clip_pixels`.
      unconditional: rows whose picture is not looked at; by default none.
    """
    projection = configs["image_proj"]
    if unconditional is not None:
        pixels = jnp.where(unconditional[:, None, None, None], 0, pixels)
    output = CLIPVisionEncoder(configs["image_encoder"]).apply({"params": tree["image_encoder"]}, pixels)
    features = getattr(output, projection.reads)
    if unconditional is not None and projection.reads == "image_embeds":
        features = jnp.where(unconditional[:, None], 0, features)
    return module_of(projection).apply({"params": tree["image_proj"]}, features)


def encode_unconditional(configs: Mapping[str, Any], tree: Mapping[str, Any]) -> Float[Array, "1 n d"]:
    """Returns the unconditional image tokens."""
    size = configs["image_encoder"].image_size
    return encode(configs, tree, jnp.zeros((1, size, size, 3)), jnp.ones(1, bool))


def count(configs: Mapping[str, Any]) -> int:
    """Returns how many image tokens a picture has."""
    encoder, projection = configs["image_encoder"], configs["image_proj"]
    if hasattr(projection, "num_tokens"):
        return projection.num_tokens
    return 1 + (encoder.image_size // encoder.patch_size) ** 2  # one for each state
