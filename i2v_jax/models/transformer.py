"""Spatial transformer of Stable Diffusion's UNet: self-attention within a frame, cross-attention to the prompt."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from i2v_jax.models.adapters import Shared, adapter
from i2v_jax.models.attention import Attention
from i2v_jax.models.layers import Dense, FeedForward, GroupNorm, LayerNorm


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each after a layer norm and added to its input."""

    num_heads: int
    self_attention_branches: tuple[str, ...] = ()
    cross_attention_branches: tuple[str, ...] = ()
    attention: str = "xla"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b f s c"], shared: Shared) -> Float[Array, "b f s c"]:
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        attend = functools.partial(Attention, self.num_heads, implementation=self.attention, **dtypes)
        beside_self = tuple((name, adapter(name).module) for name in self.self_attention_branches)
        beside_cross = tuple((name, adapter(name).module) for name in self.cross_attention_branches)

        hidden = LayerNorm(name="norm1", **dtypes)(x)
        x = x + attend(branches=beside_self, name="attn1")(hidden, shared=shared)
        hidden = LayerNorm(name="norm2", **dtypes)(x)
        x = x + attend(branches=beside_cross, name="attn2")(hidden, shared.conditions.text, shared)
        return x + FeedForward(self.attention == "blocked", name="ff", **dtypes)(LayerNorm(name="norm3", **dtypes)(x))


class SpatialTransformer(nn.Module):
    """Group norm of each frame, dense in, `depth` blocks over the frame's pixels, dense out, added to the input."""

    depth: int
    num_heads: int
    norm_groups: int = 32
    self_attention_branches: tuple[str, ...] = ()
    cross_attention_branches: tuple[str, ...] = ()
    attention: str = "xla"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], shared: Shared) -> Float[Array, "b f h w c"]:
        b, f, h, w, c = x.shape
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        hidden = GroupNorm(self.norm_groups, epsilon=1e-6, name="norm", **dtypes)(x)
        hidden = Dense(c, name="proj_in", **dtypes)(hidden.reshape(b, f, h * w, c))
        for i in range(self.depth):
            hidden = TransformerBlock(
                self.num_heads,
                self.self_attention_branches,
                self.cross_attention_branches,
                self.attention,
                name=f"blocks_{i}",
                **dtypes,
            )(hidden, shared)
        return x + Dense(c, name="proj_out", **dtypes)(hidden).reshape(x.shape)
