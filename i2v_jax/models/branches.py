"""Extra attentions beside a frozen network's own: each a small module, found by its name in `BRANCHES`.

To add one: write a module that takes `(Projections, Conditioning)` and returns `(inner, outer)` (see `Attention`), and
name it here; a `UNetConfig` then lists it in `self_attention_branches` or `cross_attention_branches`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from i2v_jax.errors import InputError, nearest
from i2v_jax.models.attention import Projections, attention, merge_heads, split_heads
from i2v_jax.models.layers import Dense


class Conditioning(NamedTuple):
    """What the layers of a UNet are conditioned on, handed down unchanged."""

    time: Float[Array, "b e"]  # timestep embedding
    text: Float[Array, "b 1 t e"]  # prompt tokens, shared by all frames
    image_tokens: Float[Array, "b 1 n e"] | None = None
    scales: Mapping[str, Any] = {}  # strength of a branch, by name; 1 where absent


class FirstFrame(nn.Module):
    """I2V-Adapter: every frame queries the first frame, `A(X_i W'_Q, K_1, V_1) W'_O` (paper eq. 5-6).

    K_1 and V_1 come from the frozen projections. W'_O and its bias start at zero, so that a new adapter changes
    nothing; W'_Q should start as a copy of the layer's W_Q (done where weights are loaded).
    """

    implementation: str = "xla"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, base: Projections, conditioning: Conditioning):
        num_heads, channels = base.query.shape[-2], base.hidden.shape[-1]
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        query = split_heads(Dense(channels, use_bias=False, name="to_q", **dtypes)(base.hidden), num_heads)
        out = merge_heads(attention(query, base.key[:, :1], base.value[:, :1], self.implementation))
        out = Dense(channels, kernel_init=nn.initializers.zeros_init(), name="to_out", **dtypes)(out)
        return 0, out * jnp.asarray(conditioning.scales.get("first_frame", 1.0), self.dtype)


class ImageTokens(nn.Module):
    """IP-Adapter (Ye et al. 2023): the text branch's queries also attend to image tokens.

    Keys and values of the image tokens have projections of their own; the outputs are added before W_O.
    """

    implementation: str = "xla"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, base: Projections, conditioning: Conditioning):
        if conditioning.image_tokens is None:
            raise InputError(
                "This UNet has image-token layers but was given no image tokens. Give `image_tokens`, or build it "
                "without 'image_tokens' in `cross_attention_branches`."
            )
        num_heads, channels = base.query.shape[-2], base.hidden.shape[-1]
        dtypes = dict(use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype)
        key = split_heads(Dense(channels, name="to_k", **dtypes)(conditioning.image_tokens), num_heads)
        value = split_heads(Dense(channels, name="to_v", **dtypes)(conditioning.image_tokens), num_heads)
        out = merge_heads(attention(base.query, key, value, self.implementation))
        return out * jnp.asarray(conditioning.scales.get("image_tokens", 1.0), self.dtype), 0


BRANCHES = {"first_frame": FirstFrame, "image_tokens": ImageTokens}


def branch(name: str) -> tuple[str, type[nn.Module]]:
    """Looks up a branch. Raises InputError for an unknown name."""
    if name not in BRANCHES:
        raise InputError(f"Unknown attention branch {name!r}; known: {', '.join(BRANCHES)}." + nearest(name, BRANCHES))
    return name, BRANCHES[name]
