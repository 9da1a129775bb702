"""IP-Adapter (Ye et al. 2023): the prompt's cross-attentions also attend to tokens of a picture."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from i2v_jax.errors import InputError
from i2v_jax.models.adapters.adapter import Adapter, Shared
from i2v_jax.models.attention import Projections, attention, merge_heads, split_heads
from i2v_jax.models.layers import Dense


class ImageTokens(nn.Module):
    """The text branch's queries also attend to image tokens.

    Keys and values of the image tokens have projections of their own; the outputs are added before W_O. The strength
    "image_weights" is of each picture: it scales the values of that picture's tokens.
    """

    implementation: str = "xla"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, base: Projections, shared: Shared):
        tokens = shared.conditions.image_tokens
        if tokens is None:
            raise InputError(
                "This UNet has image-token layers but was given no image tokens. Give `image_tokens`, or build it "
                "without 'image_tokens' in `cross_attention_branches`."
            )
        num_heads, channels = base.query.shape[-2], base.hidden.shape[-1]
        dtypes = dict(use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype)
        key = split_heads(Dense(channels, name="to_k", **dtypes)(tokens), num_heads)
        value = split_heads(Dense(channels, name="to_v", **dtypes)(tokens), num_heads)
        weights = shared.strengths.get("image_weights")
        if weights is not None:
            of_tokens = jnp.repeat(weights, tokens.shape[-2] // weights.shape[0])
            value = value * jnp.asarray(of_tokens, self.dtype)[:, None, None]
        out = merge_heads(attention(base.query, key, value, self.implementation))
        return out * jnp.asarray(shared.strength("image_tokens"), self.dtype), 0


IMAGE_TOKENS = Adapter(
    name="image_tokens",
    site="attn2",
    module=ImageTokens,
    title="image-token branch",
    published=(("to_k_ip", "to_k"), ("to_v_ip", "to_v")),
    weights="image tokens",
    product="",  # the image projection tells
    layout="an IP-Adapter file",
    spellings={"diffusers": (("processor.to_k_ip.0", "to_k"), ("processor.to_v_ip.0", "to_v"))},
)
