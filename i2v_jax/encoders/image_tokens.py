"""Pictures and face embeddings to image tokens (IP-Adapter, Ye et al. 2023), and the unconditional ones.

Those are the tokens of an all-zero picture (published I2V-Adapter code), or the linear projection's of an all-zero
embedding (IP-Adapter); of a face embedding, of zeros; of a grey picture (DynamiCrafter).
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from i2v_jax.errors import InputError
from i2v_jax.media import CLIP_MEAN, CLIP_STD
from i2v_jax.models.clip import CLIPVisionEncoder
from i2v_jax.models.image_projection import TOKENS_OF_FRAME, VideoResamplerConfig
from i2v_jax.models.networks import module_of

COMPONENTS = ("image_encoder", "image_proj")


def encode(
    configs: Mapping[str, Any],
    tree: Mapping[str, Any],
    pixels: Float[Array, "b h w 3"] | None,
    unconditional: Bool[Array, " b"] | None = None,
    faces: Float[Array, "b e"] | None = None,
) -> Float[Array, "b n d"]:
    """Returns the image tokens of pictures, and of faces where the projection reads them.

    Args:
      configs: component -> config.
      tree: component -> parameters.
      pixels: as the image encoder wants them, see `media.clip_pixels`; a projection that reads none takes None.
      unconditional: rows whose picture is not looked at; by default none.
      faces: face embeddings, for FaceID.

    Raises:
      InputError: a FaceID without face embeddings.
    """
    projection = configs["image_proj"]
    if projection.face_dim and faces is None:
        raise InputError(
            "This image adapter is a FaceID: its tokens are of a face embedding, which only sampling takes "
            "(image_prompts.face_embedding). Give an IP-Adapter of pictures, such as "
            "h94/IP-Adapter/models/ip-adapter-plus-face_sd15.safetensors."
        )
    features = _features(configs, tree, pixels, unconditional) if projection.reads else None
    if not projection.face_dim:
        given = (features,)
    else:
        faces = faces if unconditional is None else jnp.where(unconditional[:, None], 0, faces)
        given = (faces,) if features is None else (faces, features)
    return module_of(projection).apply({"params": tree["image_proj"]}, *given)


def _features(configs, tree, pixels, unconditional) -> Float[Array, "b ..."]:
    """What an image projection reads of pictures."""
    projection = configs["image_proj"]
    if unconditional is not None:
        nothing = (0.5 - CLIP_MEAN) / CLIP_STD if isinstance(projection, VideoResamplerConfig) else 0
        pixels = jnp.where(unconditional[:, None, None, None], nothing, pixels)
    output = CLIPVisionEncoder(configs["image_encoder"]).apply({"params": tree["image_encoder"]}, pixels)
    features = getattr(output, projection.reads)
    if unconditional is not None and projection.reads == "image_embeds":
        features = jnp.where(unconditional[:, None], 0, features)
    return features


def encode_unconditional(configs: Mapping[str, Any], tree: Mapping[str, Any]) -> Float[Array, "1 n d"]:
    """Returns the unconditional image tokens."""
    pixels, faces, projection = None, None, configs["image_proj"]
    if projection.reads:
        size = configs["image_encoder"].image_size
        pixels = jnp.zeros((1, size, size, 3))
    if projection.face_dim:
        faces = jnp.zeros((1, projection.face_dim))
    return encode(configs, tree, pixels, jnp.ones(1, bool), faces)


def by_frame(tokens: Float[Array, "b n d"]) -> Float[Array, "b f m d"]:
    """Returns a video model's image tokens by the frame that they are for."""
    return tokens.reshape(tokens.shape[0], -1, TOKENS_OF_FRAME, tokens.shape[-1])


def count(configs: Mapping[str, Any]) -> int:
    """Returns how many image tokens a picture has."""
    projection = configs["image_proj"]
    if hasattr(projection, "num_tokens"):
        return projection.num_tokens
    encoder = configs["image_encoder"]
    return 1 + (encoder.image_size // encoder.patch_size) ** 2  # one for each state


def components(configs: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns which of `COMPONENTS` a model has: a FaceID that looks at no picture has no image encoder."""
    return tuple(name for name in COMPONENTS if name in configs)
