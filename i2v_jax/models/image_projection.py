"""From CLIP's view of a picture to image tokens for a UNet's cross-attention (IP-Adapter, Ye et al. 2023).

Published kinds: a linear projection of the pooled embedding; of the penultimate states a resampler ("plus") or a small
network ("full face"); of a face recognition model's embedding a small network (FaceID), or a resampler that begins from
it (FaceID plus). A config's `reads` names the field of `CLIPVisionOutput` that its module takes, "" for none; its
`face_dim` is the width of the face embedding that it takes before that, 0 for none.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from i2v_jax.errors import InputError
from i2v_jax.models.attention import attention, merge_heads, split_heads
from i2v_jax.models.config import NetworkConfig
from i2v_jax.models.layers import Dense, LayerNorm, parameter

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class ImageProjectionConfig(NetworkConfig):
    """The linear projection. Defaults: `ip-adapter_sd15`.

    Attributes:
      embed_dim: width of the picture's pooled, projected embedding.
      num_tokens: image tokens made.
      cross_attention_dim: width of a token.
      dtype: of activations; the norm is float32 all the same.
      param_dtype: of new parameters.
    """

    reads: ClassVar[str] = "image_embeds"
    face_dim: ClassVar[int] = 0
    embed_dim: int = 1024
    num_tokens: int = 4
    cross_attention_dim: int = 768


@dataclasses.dataclass(frozen=True)
class ResamplerConfig(NetworkConfig):
    """The resampler. Defaults: `ip-adapter-plus_sd15`, which the published I2V-Adapter uses.

    Attributes:
      embed_dim: width of the picture's penultimate states.
      num_tokens: image tokens made (the learned queries).
      width: channels within.
      depth: layers, each an attention and a feed-forward.
      num_heads, head_dim: of the attentions.
      mlp_width: channels inside the feed-forward layers.
      cross_attention_dim: width of a token.
      dtype: of activations; norms and softmax are float32 all the same.
      param_dtype: of new parameters.
    """

    reads: ClassVar[str] = "penultimate"
    face_dim: ClassVar[int] = 0
    embed_dim: int = 1280
    num_tokens: int = 16
    width: int = 768
    depth: int = 4
    num_heads: int = 12
    head_dim: int = 64
    mlp_width: int = 3072
    cross_attention_dim: int = 768


@dataclasses.dataclass(frozen=True)
class VideoResamplerConfig(ResamplerConfig):
    """DynamiCrafter's resampler: 16 tokens for each of 16 frames, of a picture's last states."""

    reads: ClassVar[str] = "last_hidden"
    num_tokens: int = 256
    width: int = 1024
    mlp_width: int = 4096
    cross_attention_dim: int = 1024


@dataclasses.dataclass(frozen=True)
class StateProjectionConfig(NetworkConfig):
    """The small network, of each state by itself. Defaults: `ip-adapter-full-face_sd15`.

    Attributes:
      embed_dim: width of the picture's penultimate states, and of the layer within.
      cross_attention_dim: width of a token; there is one for each state.
      dtype: of activations; the norm is float32 all the same.
      param_dtype: of new parameters.
    """

    reads: ClassVar[str] = "penultimate"
    face_dim: ClassVar[int] = 0
    embed_dim: int = 1280
    cross_attention_dim: int = 768


@dataclasses.dataclass(frozen=True)
class FaceProjectionConfig(NetworkConfig):
    """FaceID's network: of a face embedding alone. Defaults: `ip-adapter-faceid_sd15`.

    Attributes:
      face_dim: width of the face embedding (ArcFace).
      face_width: of the layer within.
      num_tokens: image tokens made.
      cross_attention_dim: width of a token.
      dtype: of activations; the norm is float32 all the same.
      param_dtype: of new parameters.
    """

    reads: ClassVar[str] = ""
    face_dim: int = 512
    face_width: int = 1024
    num_tokens: int = 4
    cross_attention_dim: int = 768


@dataclasses.dataclass(frozen=True)
class FaceResamplerConfig(ResamplerConfig):
    """FaceID plus: tokens of a face embedding read a picture's states. Defaults: `ip-adapter-faceid-plus_sd15`.

    Attributes:
      face_dim: width of the face embedding (ArcFace).
      face_width: of the layer within its projection.
      num_tokens: image tokens made, the resampler's queries.
      shortcut: the face embedding's tokens are added to the resampler's (FaceID plus v2); no shape tells.
    """

    face_dim: int = 512
    face_width: int = 1024
    num_tokens: int = 4
    shortcut: bool = False


TOKENS_OF_FRAME = 16
"""Image tokens that DynamiCrafter's resampler makes for a frame."""
AnyConfig = ImageProjectionConfig | ResamplerConfig | StateProjectionConfig | FaceProjectionConfig | FaceResamplerConfig
IP_ADAPTER_SD15 = ImageProjectionConfig()
IP_ADAPTER_PLUS_SD15 = ResamplerConfig()
IP_ADAPTER_FULL_FACE_SD15 = StateProjectionConfig()
DYNAMICRAFTER_RESAMPLER = VideoResamplerConfig()
IP_ADAPTER_SDXL = ImageProjectionConfig(embed_dim=1280, cross_attention_dim=2048)  # of ViT-bigG
IP_ADAPTER_PLUS_SDXL = ResamplerConfig(width=1280, num_heads=20, mlp_width=5120, cross_attention_dim=2048)  # of ViT-H
IP_ADAPTER_FACEID_SD15 = FaceProjectionConfig()
IP_ADAPTER_FACEID_PLUS_SD15 = FaceResamplerConfig()
TINY_RESAMPLER = ResamplerConfig(
    embed_dim=32, width=32, depth=1, num_heads=2, head_dim=16, mlp_width=64, cross_attention_dim=32
)


def config_from_shapes(shapes: Shapes, head_dim: int = 64, **overrides) -> AnyConfig:
    """Reads the configuration off a projection's parameters: IP-Adapter files carry no other description.

    Args:
      shapes: path in our tree (`proj_in/kernel`) -> shape.
      head_dim: size of an attention head, which shapes do not tell; 64 in every published file.
      overrides: fields to set besides, such as `dtype`.

    Raises:
      InputError: none of the kinds, or heads of another size.
    """
    try:
        if "latents" in shapes:
            num_tokens = _sizes(shapes, "latents", 2)[0]
            return ResamplerConfig(**(_resampler_fields(shapes, head_dim) | dict(num_tokens=num_tokens) | overrides))
        if "face/proj_in/kernel" in shapes:
            return FaceResamplerConfig(
                **(_resampler_fields(shapes, head_dim) | _face_fields(shapes, "face/", "width") | overrides)
            )
        if "proj_in/kernel" in shapes and "norm/scale" in shapes:
            return FaceProjectionConfig(**(_face_fields(shapes, "", "cross_attention_dim") | overrides))
        if "proj_in/kernel" in shapes:
            return StateProjectionConfig(**(_state_fields(shapes) | overrides))
        return ImageProjectionConfig(**(_linear_fields(shapes) | overrides))
    except KeyError as missing:
        known = ", ".join(sorted(shapes)[:5])
        raise InputError(
            f"These are not the parameters of an IP-Adapter image projection: no {missing} among {known}, ..."
        ) from None


def _linear_fields(shapes):
    embed_dim, out = _sizes(shapes, "proj/kernel", 2)
    (cross_attention_dim,) = _sizes(shapes, "norm/scale", 1)
    if shapes["norm/bias"] != shapes["norm/scale"] or shapes["proj/bias"] != (out,) or out % cross_attention_dim:
        given = ", ".join(f"{path!r} {list(shape)}" for path, shape in shapes.items())
        raise InputError(f"Shapes that do not fit together: {given}.")
    return dict(embed_dim=embed_dim, num_tokens=out // cross_attention_dim, cross_attention_dim=cross_attention_dim)


def _state_fields(shapes):
    return dict(
        embed_dim=_sizes(shapes, "proj_in/kernel", 2)[0], cross_attention_dim=_sizes(shapes, "proj_out/kernel", 2)[1]
    )


def _face_fields(shapes, folder, token_width):
    face_dim, face_width = _sizes(shapes, f"{folder}proj_in/kernel", 2)
    out = _sizes(shapes, f"{folder}proj_out/kernel", 2)[1]
    (width,) = _sizes(shapes, f"{folder}norm/scale", 1)
    if out % width:
        raise InputError(f"'{folder}proj_out/kernel' makes {out} numbers, not a multiple of a token's {width}.")
    return dict(face_dim=face_dim, face_width=face_width, num_tokens=out // width) | {token_width: width}


def _resampler_fields(shapes, head_dim):
    embed_dim, width = _sizes(shapes, "proj_in/kernel", 2)
    inner = _sizes(shapes, "layers_0/attention/to_q/kernel", 2)[1]
    if inner % head_dim:
        raise InputError(f"The resampler's attention is {inner} wide, not a multiple of head_dim={head_dim}.")
    return dict(
        embed_dim=embed_dim,
        width=width,
        depth=sum(path.endswith("attention/to_q/kernel") for path in shapes),
        num_heads=inner // head_dim,
        head_dim=head_dim,
        mlp_width=_sizes(shapes, "layers_0/ff/proj_in/kernel", 2)[1],
        cross_attention_dim=_sizes(shapes, "proj_out/kernel", 2)[1],
    )


def _sizes(shapes: Shapes, path: str, rank: int) -> tuple[int, ...]:
    if len(shapes[path]) != rank or 0 in shapes[path]:
        raise InputError(f"{path!r} has shape {list(shapes[path])}; wanted {rank} sizes of at least 1.")
    return shapes[path]


class ImageProjection(nn.Module):
    """One dense layer from a picture's embedding to all tokens, each then normed."""

    config: ImageProjectionConfig

    @nn.compact
    def __call__(self, image_embeds: Float[Array, "b e"]) -> Float[Array, "b n d"]:
        """Returns the image tokens of `CLIPVisionOutput.image_embeds`."""
        c = self.config
        return split_into_tokens(c, Dense(c.num_tokens * c.cross_attention_dim, name="proj", **c.dtypes)(image_embeds))


class PerceiverAttention(nn.Module):
    """Latents attend to the picture's states and to themselves (Flamingo, Alayrac et al. 2022, section 2.1)."""

    config: ResamplerConfig

    @nn.compact
    def __call__(self, latents: Float[Array, "b n c"], states: Float[Array, "b t c"]) -> Float[Array, "b n c"]:
        c = self.config
        dense = functools.partial(Dense, use_bias=False, **c.dtypes)
        states = LayerNorm(name="norm1", **c.dtypes)(states)
        latents = LayerNorm(name="norm2", **c.dtypes)(latents)
        both = jnp.concatenate([states, latents], 1)
        inner = c.num_heads * c.head_dim
        query = dense(inner, name="to_q")(latents)
        key, value = dense(inner, name="to_k")(both), dense(inner, name="to_v")(both)
        query, key, value = (split_heads(x[:, None], c.num_heads) for x in (query, key, value))
        out = merge_heads(attention(query, key, value))[:, 0]
        return dense(c.width, name="to_out")(out)


class MLP(nn.Module):
    """Norm, dense, exact GELU, dense, without biases."""

    config: ResamplerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        c = self.config
        hidden = Dense(c.mlp_width, use_bias=False, name="proj_in", **c.dtypes)(LayerNorm(name="norm", **c.dtypes)(x))
        return Dense(c.width, use_bias=False, name="proj_out", **c.dtypes)(nn.gelu(hidden, approximate=False))


class ResamplerLayer(nn.Module):
    """Attention and feed-forward, each added to the latents."""

    config: ResamplerConfig

    @nn.compact
    def __call__(self, latents: Float[Array, "b n c"], states: Float[Array, "b t c"]) -> Float[Array, "b n c"]:
        latents = latents + PerceiverAttention(self.config, name="attention")(latents, states)
        return latents + MLP(self.config, name="ff")(latents)


class Resampler(nn.Module):
    """Learned queries read a picture's states, layer by layer, and become its tokens."""

    config: ResamplerConfig

    @nn.compact
    def __call__(self, states: Float[Array, "b t e"]) -> Float[Array, "b n d"]:
        """Returns the image tokens of `CLIPVisionOutput.penultimate`; any number of states."""
        c = self.config
        init = nn.initializers.normal(c.width**-0.5)
        latents = jnp.asarray(parameter(self, "latents", init, (c.num_tokens, c.width), c.param_dtype), c.dtype)
        return read_states(c, jnp.broadcast_to(latents, (states.shape[0], *latents.shape)), states)


class StateProjection(nn.Module):
    """Dense, exact GELU, dense, norm: one token of each state."""

    config: StateProjectionConfig

    @nn.compact
    def __call__(self, states: Float[Array, "b t e"]) -> Float[Array, "b t d"]:
        """Returns the image tokens of `CLIPVisionOutput.penultimate`."""
        c = self.config
        hidden = nn.gelu(Dense(c.embed_dim, name="proj_in", **c.dtypes)(states), approximate=False)
        return to_tokens(c, hidden)


class FaceProjection(nn.Module):
    """Dense, exact GELU, dense to all tokens, each then normed."""

    config: FaceProjectionConfig

    @nn.compact
    def __call__(self, faces: Float[Array, "b e"]) -> Float[Array, "b n d"]:
        """Returns the image tokens of face embeddings."""
        c = self.config
        hidden = nn.gelu(Dense(c.face_width, name="proj_in", **c.dtypes)(faces), approximate=False)
        return split_into_tokens(c, Dense(c.num_tokens * c.cross_attention_dim, name="proj_out", **c.dtypes)(hidden))


class FaceResampler(nn.Module):
    """Tokens of a face embedding read a picture's states, layer by layer."""

    config: FaceResamplerConfig

    @nn.compact
    def __call__(self, faces: Float[Array, "b e"], states: Float[Array, "b t s"]) -> Float[Array, "b n d"]:
        """Returns the image tokens of face embeddings and of `CLIPVisionOutput.penultimate` of the faces' pictures."""
        c = self.config
        projection = FaceProjectionConfig(c.face_dim, c.face_width, c.num_tokens, c.width, **c.dtypes)
        face = FaceProjection(projection, name="face")(faces)
        tokens = read_states(c, face, states)
        return face + tokens if c.shortcut else tokens


# What several of them do: to be called in a compact method, whose module then holds the layers.


def split_into_tokens(
    c: ImageProjectionConfig | FaceProjectionConfig, x: Float[Array, "b nd"]
) -> Float[Array, "b n d"]:
    """All tokens of a picture side by side, each normed by itself."""
    return LayerNorm(name="norm", **c.dtypes)(x.reshape(-1, c.num_tokens, c.cross_attention_dim))


def to_tokens(c: ResamplerConfig | StateProjectionConfig, x: Float[Array, "b n c"]) -> Float[Array, "b n d"]:
    """Brings each state to a token's width, and norms it."""
    return LayerNorm(name="norm_out", **c.dtypes)(Dense(c.cross_attention_dim, name="proj_out", **c.dtypes)(x))


def read_states(
    c: ResamplerConfig, latents: Float[Array, "b n c"], states: Float[Array, "b t e"]
) -> Float[Array, "b n d"]:
    """The resampler's layers: latents read a picture's states and become its tokens."""
    states = Dense(c.width, name="proj_in", **c.dtypes)(states)
    for i in range(c.depth):
        latents = ResamplerLayer(c, name=f"layers_{i}")(latents, states)
    return to_tokens(c, latents)
