"""Text in the temporal layers (EDG, Tian et al. 2025, stage 1): a prompt tells every frame what is to happen then.

Learned queries, one a frame, attend to the prompt; what each finds is joined to the features of its frame. The
published code does so in DynamiCrafter's temporal transformers; here in AnimateDiff's motion modules
(docs/text_in_time.md).
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from i2v_jax.models.adapters.adapter import Adapter, Shared
from i2v_jax.models.attention import attention, merge_heads, split_heads
from i2v_jax.models.layers import Dense, parameter

NAME = "text_in_time"
WIDTH = 320  # of what a frame is told; of narrower layers, theirs
NUM_HEADS = 8


class TextInTime(nn.Module):
    """Adds `cc([x, A(q_i W_Q, text W_K, text W_V) W_O])` to the features x of frame i, behind a module's first layer.

    `cc`, the published `cc_projection` less the identity, starts at zero, so that a new adapter changes nothing.
    """

    frames: int
    implementation: str = "xla"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b s f c"], shared: Shared) -> Float[Array, "b s f c"]:
        text, channels, frames = shared.conditions.text, x.shape[-1], x.shape[-2]
        width, dtypes = min(WIDTH, channels), dict(dtype=self.dtype, param_dtype=self.param_dtype)
        heads = math.gcd(NUM_HEADS, width)
        queries = parameter(self, "queries", _initial_queries, (self.frames, width), self.param_dtype)
        queries = jnp.asarray(queries, self.dtype)[:frames]

        query = Dense(width, use_bias=False, name="to_q", **dtypes)(queries)
        key = split_heads(Dense(width, use_bias=False, name="to_k", **dtypes)(text), heads)
        value = split_heads(Dense(width, use_bias=False, name="to_v", **dtypes)(text), heads)
        groups = text.shape[1]  # 1, or the frames where each has a text of its own
        query = jnp.broadcast_to(query.reshape(groups, -1, width), (text.shape[0], groups, frames // groups, width))
        told = merge_heads(attention(split_heads(query, heads), key, value, self.implementation))
        told = Dense(width, name="to_out", **dtypes)(told).reshape(text.shape[0], 1, frames, width)

        zeros = nn.initializers.zeros_init()
        own = Dense(channels, kernel_init=zeros, name="cc_features", **dtypes)(x)
        joined = Dense(channels, use_bias=False, kernel_init=zeros, name="cc_text", **dtypes)(told)
        return x + (own + joined) * jnp.asarray(shared.strength(NAME), self.dtype)


def positions(shape: tuple[int, ...], random: np.random.Generator | None = None) -> np.ndarray:
    """Returns what new queries are: sinusoids of the frames' numbers, so that those never trained are like others."""
    frames, width = shape
    frequencies = np.exp(np.arange(0, width, 2, dtype=np.float32) * np.float32(-np.log(10000.0) / width))
    angles = np.arange(frames, dtype=np.float32)[:, None] * frequencies
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(frames, -1)[:, :width]


def scaled_normal(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Returns a new kernel [in, out]: normal, of variance 1 / in."""
    return random.standard_normal(shape, np.float32) / np.float32(math.sqrt(shape[0]))


def _initial_queries(key: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    return jnp.asarray(positions(shape), dtype)


TEXT_IN_TIME = Adapter(
    name=NAME,
    site="motion",
    module=TextInTime,
    title="text-in-time adapter",
    published=(
        ("qformer.to_q", "to_q"),
        ("qformer.to_k", "to_k"),
        ("qformer.to_v", "to_v"),
        ("qformer.to_out.0", "to_out"),
        ("text_joint.features", "cc_features"),
        ("text_joint.text", "cc_text"),
    ),
    arrays=(("queries", "queries"),),
    starts={
        "queries": positions,
        **{f"{layer}/kernel": scaled_normal for layer in ("to_q", "to_k", "to_v", "to_out")},
    },
    product="EDG's text in time",
)
