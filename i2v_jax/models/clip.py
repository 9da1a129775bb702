"""CLIP's two encoders (Radford et al. 2021): prompts to tokens for a UNet, pictures to features for an image adapter.

Published layouts: transformers' CLIPTextModel and CLIPVisionModel, with or without projection.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from i2v_jax.errors import InputError, nearest
from i2v_jax.models.attention import merge_heads, split_heads
from i2v_jax.models.config import NetworkConfig
from i2v_jax.models.layers import Dense, LayerNorm, parameter

ACTIVATIONS = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "gelu": functools.partial(nn.gelu, approximate=False),
}


@dataclasses.dataclass(frozen=True)
class CLIPConfig(NetworkConfig):
    """What both encoders have: a transformer with norms before each part. Defaults: the text side of CLIP ViT-L/14.

    Attributes:
      width: channels of the hidden states.
      mlp_width: channels inside the feed-forward layers.
      num_layers, num_heads: of the transformer.
      hidden_act: a name in `ACTIVATIONS`.
      projection_dim: width of the projected, pooled output; None for an encoder without projection.
      norm_epsilon: of every layer norm.
      dtype: of activations; norms and softmax are float32 all the same.
      param_dtype: of new parameters.
    """

    width: int = 768
    mlp_width: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    hidden_act: str = "quick_gelu"
    projection_dim: int | None = None
    norm_epsilon: float = 1e-5

    def __post_init__(self):
        if self.hidden_act not in ACTIVATIONS:
            raise InputError(
                f"CLIP config: hidden_act={self.hidden_act!r} is not supported; known: {', '.join(ACTIVATIONS)}."
                + nearest(self.hidden_act, ACTIVATIONS)
            )


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig(CLIPConfig):
    """A text encoder.

    Attributes:
      vocab_size: rows of the token table.
      max_positions: rows of the position table: the most tokens in a prompt.
      eos_token_id: the id of the end token, whose state is the pooled output (the first, where it also pads). 2 in
        early configs, whatever their tokenizer; there the end token is the highest id of a row.
      added_tokens: vectors of textual inversions beside the token table, see `CLIPTextEncoder`.
    """

    vocab_size: int = 49408
    max_positions: int = 77
    eos_token_id: int = 2
    added_tokens: int = 0

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any], **overrides) -> "CLIPTextConfig":
        """Reads the `config.json` of a transformers CLIPTextModel or CLIPTextModelWithProjection.

        Raises:
          InputError: not such a config, or an activation that this encoder does not have.
        """
        return cls(**(_fields(config, _TEXT_KEYS) | overrides))

    def to_diffusers(self) -> dict[str, Any]:
        """Returns the `config.json` of a transformers CLIPTextModel, or CLIPTextModelWithProjection."""
        return _settings(self, _TEXT_KEYS, "CLIPTextModel", "clip_text_model")


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig(CLIPConfig):
    """A picture encoder.

    Attributes:
      image_size: height and width of a picture, in pixels.
      patch_size: height and width of a patch; one token each, after the class token.
    """

    image_size: int = 224
    patch_size: int = 14

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any], **overrides) -> "CLIPVisionConfig":
        """Reads the `config.json` of a transformers CLIPVisionModel or CLIPVisionModelWithProjection.

        Raises:
          InputError: not such a config, or an activation that this encoder does not have.
        """
        if config.get("num_channels", 3) != 3:
            raise InputError(f"CLIP config: num_channels={config['num_channels']} is not supported; wanted 3.")
        return cls(**(_fields(config, _VISION_KEYS) | overrides))

    def to_diffusers(self) -> dict[str, Any]:
        """Returns the `config.json` of a transformers CLIPVisionModel, or CLIPVisionModelWithProjection."""
        return _settings(self, _VISION_KEYS, "CLIPVisionModel", "clip_vision_model")


# Field, key in a config.json, and what transformers takes where the key is absent; None: it must be there.
_KEYS = (
    ("width", "hidden_size", None),
    ("mlp_width", "intermediate_size", None),
    ("num_layers", "num_hidden_layers", None),
    ("num_heads", "num_attention_heads", None),
    ("hidden_act", "hidden_act", "quick_gelu"),
    ("projection_dim", "projection_dim", 512),
    ("norm_epsilon", "layer_norm_eps", 1e-5),
)
_TEXT_KEYS = (
    *_KEYS,
    ("vocab_size", "vocab_size", 49408),
    ("max_positions", "max_position_embeddings", 77),
    ("eos_token_id", "eos_token_id", 49407),
)
_VISION_KEYS = (*_KEYS, ("image_size", "image_size", 224), ("patch_size", "patch_size", 32))


def _fields(config: Mapping[str, Any], keys: tuple) -> dict[str, Any]:
    if missing := sorted(theirs for _, theirs, default in keys if default is None and theirs not in config):
        raise InputError(
            f"CLIP config: {', '.join(missing)} missing. Wanted the config.json of one encoder, text or vision "
            "(of a whole CLIPModel, its 'text_config' or 'vision_config')."
        )
    fields = {ours: config.get(theirs, default) for ours, theirs, default in keys}
    projected = any(name.endswith("WithProjection") for name in config.get("architectures") or ())
    return fields if projected else fields | {"projection_dim": None}


def _settings(config: CLIPConfig, keys: tuple, architecture: str, model_type: str) -> dict[str, Any]:
    settings = {theirs: getattr(config, ours) for ours, theirs, _ in keys}
    if config.projection_dim is None:
        del settings["projection_dim"]
    else:
        architecture += "WithProjection"
    return settings | {"architectures": [architecture], "model_type": model_type}


SD15_TEXT = CLIPTextConfig()  # also the first of SDXL's two
OPENCLIP_H_TEXT = CLIPTextConfig(
    width=1024, mlp_width=4096, num_layers=24, num_heads=16, hidden_act="gelu", projection_dim=1024
)
OPENCLIP_BIGG_TEXT = CLIPTextConfig(
    width=1280, mlp_width=5120, num_layers=32, num_heads=20, hidden_act="gelu", projection_dim=1280
)
VIT_L_VISION = CLIPVisionConfig(width=1024, mlp_width=4096, num_layers=24, num_heads=16, projection_dim=768)
VIT_H_VISION = CLIPVisionConfig(
    width=1280, mlp_width=5120, num_layers=32, num_heads=16, hidden_act="gelu", projection_dim=1024
)
VIT_BIGG_VISION = CLIPVisionConfig(
    width=1664, mlp_width=8192, num_layers=48, num_heads=16, hidden_act="gelu", projection_dim=1280
)
TINY_TEXT = CLIPTextConfig(width=32, mlp_width=64, num_layers=2, num_heads=4)
TINY_VISION = CLIPVisionConfig(
    width=32, mlp_width=64, num_layers=2, num_heads=4, hidden_act="gelu", projection_dim=24, image_size=56
)


class CLIPTextOutput(NamedTuple):
    """What UNets are conditioned on."""

    last_hidden: Float[Array, "b s c"]  # after the final norm: SD1.5's prompt tokens
    penultimate: Float[Array, "b s c"]  # after the last layer but one, no norm: SDXL's prompt tokens, from each encoder
    penultimate_normed: Float[Array, "b s c"]  # the same, after the final norm: OpenCLIP's, in DynamiCrafter
    pooled: Float[Array, "b p"]  # the end token's state, projected where the encoder has a projection


class CLIPVisionOutput(NamedTuple):
    """What image projections read."""

    last_hidden: Float[Array, "b 1+n c"]  # after the last layer, no norm; the class token first
    penultimate: Float[Array, "b 1+n c"]  # after the last layer but one: the resampler's input
    pooled: Float[Array, "b c"]  # the class token's, normed
    image_embeds: Float[Array, "b p"] | None  # `pooled`, projected: the linear projection's input


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases everywhere; `causal`: no token sees a later one.

    A few hundred tokens at most, once per prompt or picture, so the masked attention of JAX serves.
    """

    num_heads: int
    causal: bool
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
        dense = functools.partial(Dense, x.shape[-1], dtype=self.dtype, param_dtype=self.param_dtype)
        q, k, v = (split_heads(dense(name=name)(x), self.num_heads) for name in ("q_proj", "k_proj", "v_proj"))
        return dense(name="out_proj")(merge_heads(jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)))


class MLP(nn.Module):
    """Dense, activation, dense."""

    config: CLIPConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
        c = self.config
        hidden = ACTIVATIONS[c.hidden_act](Dense(c.mlp_width, name="fc1", **c.dtypes)(x))
        return Dense(c.width, name="fc2", **c.dtypes)(hidden)


class Layer(nn.Module):
    """Self-attention and feed-forward, each after a layer norm and added to its input."""

    config: CLIPConfig
    causal: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
        c = self.config
        attend = SelfAttention(c.num_heads, self.causal, c.dtype, c.param_dtype, name="self_attn")
        x = x + attend(norm(c, "layer_norm1")(x))
        return x + MLP(c, name="mlp")(norm(c, "layer_norm2")(x))


class CLIPTextEncoder(nn.Module):
    """Encodes tokenized prompts."""

    config: CLIPTextConfig

    @nn.compact
    def __call__(self, token_ids: Int[Array, "b s"], skip: int = 0) -> CLIPTextOutput:
        """Runs the encoder.

        Args:
          token_ids: int32 in [0, vocab_size), each row with an end token; at most `max_positions` a row (usually all:
            padding is attended to like words). Below 0: row `-1 - id` of the vectors of textual inversions.
          skip: layers that hidden states are taken before ("clip skip"); the pooled output is of all layers.

        Raises:
          InputError: more tokens than positions, or no layers left.
        """
        c, length = self.config, token_ids.shape[1]
        if length > c.max_positions:
            raise InputError(f"{length} tokens in a prompt; this text encoder has positions for {c.max_positions}.")
        if not 0 <= skip < c.num_layers:
            raise InputError(f"clip_skip={skip}: this text encoder has {c.num_layers} layers; wanted fewer, 0 or more.")
        x = self.embedded(token_ids)
        x = x + embed(c, c.max_positions, "position_embedding")(jnp.arange(length))
        states = run_layers(c, x, causal=True)
        final_norm = norm(c, "final_layer_norm")
        last = final_norm(states[-1])
        end = token_ids if c.eos_token_id == 2 else token_ids == c.eos_token_id
        pooled = last[jnp.arange(len(last)), jnp.argmax(end, -1)]  # argmax: the first of equals
        if c.projection_dim:
            pooled = projection(c, "text_projection")(pooled)
        if skip:
            last = final_norm(states[-1 - skip])
        return CLIPTextOutput(last, states[-2 - skip], final_norm(states[-2 - skip]), pooled)

    def embedded(self, token_ids: Int[Array, "b s"]) -> Float[Array, "b s c"]:
        """Looks tokens up in the table, and those below 0 among the vectors of textual inversions."""
        c = self.config
        table = embed(c, c.vocab_size, "token_embedding")
        if not c.added_tokens:
            return table(token_ids)
        added = parameter(self, "added_embedding", nn.initializers.zeros, (c.added_tokens, c.width), c.param_dtype)
        vectors = jnp.asarray(added, c.dtype)[jnp.maximum(-1 - token_ids, 0)]
        return jnp.where(token_ids[..., None] < 0, vectors, table(jnp.maximum(token_ids, 0)))


class CLIPVisionEncoder(nn.Module):
    """Encodes pictures."""

    config: CLIPVisionConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"]) -> CLIPVisionOutput:
        """Runs the encoder.

        Args:
          pixels: `image_size` square, normalised by CLIP's channel means and deviations.

        Raises:
          InputError: another size.
        """
        c = self.config
        if pixels.shape[1:] != (c.image_size, c.image_size, 3):
            raise InputError(
                f"The image encoder was given pictures of shape {pixels.shape[1:]}; "
                f"wanted {c.image_size}x{c.image_size}x3."
            )
        grid = c.image_size // c.patch_size
        class_token = parameter(self, "class_embedding", nn.initializers.normal(0.02), (c.width,), c.param_dtype)
        patches = PatchEmbedding(c, name="patch_embedding")(pixels).reshape(-1, grid**2, c.width)
        x = jnp.concatenate([jnp.broadcast_to(jnp.asarray(class_token, c.dtype), patches[:, :1].shape), patches], 1)
        x = x + embed(c, grid**2 + 1, "position_embedding")(jnp.arange(grid**2 + 1))
        *_, penultimate, last = run_layers(c, norm(c, "pre_layernorm")(x), causal=False)
        pooled = norm(c, "post_layernorm")(last[:, 0])
        image_embeds = projection(c, "visual_projection")(pooled) if c.projection_dim else None
        return CLIPVisionOutput(last, penultimate, pooled, image_embeds)


class PatchEmbedding(nn.Module):
    """A convolution without bias whose stride is its size; pixels that fill no patch are dropped."""

    config: CLIPVisionConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b gh gw c"]:
        c, side = self.config, (self.config.patch_size,) * 2
        kernel = parameter(self, "kernel", nn.initializers.lecun_normal(), (*side, 3, c.width), c.param_dtype)
        layout = ("NHWC", "HWIO", "NHWC")
        pixels, kernel = jnp.asarray(pixels, c.dtype), jnp.asarray(kernel, c.dtype)
        return jax.lax.conv_general_dilated(pixels, kernel, side, "VALID", dimension_numbers=layout)


def run_layers(c: CLIPConfig, x: Float[Array, "b s c"], causal: bool) -> list[Float[Array, "b s c"]]:
    """Runs the transformer within the calling module; returns the states before the first layer and after each."""
    states = [x]
    for i in range(c.num_layers):
        states.append(Layer(c, causal, name=f"layers_{i}")(states[-1]))
    return states


# How a config builds each kind of part.


def norm(c: CLIPConfig, name: str) -> LayerNorm:
    return LayerNorm(c.norm_epsilon, c.dtype, c.param_dtype, name=name)


def embed(c: CLIPConfig, rows: int, name: str) -> nn.Embed:
    return nn.Embed(rows, c.width, name=name, **c.dtypes)


def projection(c: CLIPConfig, name: str) -> Dense:
    return Dense(c.projection_dim, use_bias=False, name=name, **c.dtypes)
