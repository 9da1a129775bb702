"""Spatial transformer of Stable Diffusion's UNet: self-attention within a frame, cross-attention to the prompt."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from i2v_jax.models.adapters import Shared, adapter
from i2v_jax.models.adapters.miva import MivaConfig, branches
from i2v_jax.models.attention import Attention
from i2v_jax.models.layers import Dense, FeedForward, GroupNorm, LayerNorm, shard


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each after a layer norm and added to its input."""

    num_heads: int
    self_attention_branches: tuple[str, ...] = ()
    cross_attention_branches: tuple[str, ...] = ()
    attention: str = "xla"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    miva: MivaConfig | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b f s c"], shared: Shared) -> Float[Array, "b f s c"]:
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        attend = functools.partial(Attention, self.num_heads, implementation=self.attention, **dtypes)
        beside_self = tuple((name, adapter(name).module) for name in self.self_attention_branches)
        beside_self += branches(self.miva, "frames")
        beside_cross = tuple((name, adapter(name).module) for name in self.cross_attention_branches)
        beside_cross += branches(self.miva, "prompt")

        hidden = LayerNorm(name="norm1", **dtypes)(x)
        x = x + attend(branches=beside_self, name="attn1")(hidden, shared=shared)
        hidden = LayerNorm(name="norm2", **dtypes)(x)
        x = x + attend(branches=beside_cross, name="attn2")(hidden, shared.conditions.text, shared)
        return x + FeedForward(self.attention == "blocked", name="ff", **dtypes)(LayerNorm(name="norm3", **dtypes)(x))


class SpatialTransformer(nn.Module):
    """Group norm of each frame, dense in, `depth` blocks over the frame's pixels, dense out, added to the input.

    With `scan` the blocks are a loop over their stacked weights: the same function, of which a compiler sees one block.
    """

    depth: int
    num_heads: int
    norm_groups: int = 32
    self_attention_branches: tuple[str, ...] = ()
    cross_attention_branches: tuple[str, ...] = ()
    attention: str = "xla"
    scan: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    miva: MivaConfig | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], shared: Shared) -> Float[Array, "b f h w c"]:
        b, f, h, w, c = x.shape
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        hidden = GroupNorm(self.norm_groups, epsilon=1e-6, name="norm", **dtypes)(x)
        hidden = Dense(c, name="proj_in", **dtypes)(hidden.reshape(b, f, h * w, c))
        blocks = [
            TransformerBlock(
                self.num_heads,
                self.self_attention_branches,
                self.cross_attention_branches,
                self.attention,
                miva=self.miva,
                name=f"blocks_{i}",
                **dtypes,
            )
            for i in range(self.depth)
        ]
        if self.scan and self.depth > 1 and not self.is_initializing():
            hidden = in_a_loop(blocks, hidden, shared)
        else:
            for block in blocks:
                hidden = block(hidden, shared)
        return x + Dense(c, name="proj_out", **dtypes)(hidden).reshape(x.shape)


def in_a_loop(blocks: Sequence[nn.Module], x: Array, shared: Shared) -> Array:
    """Runs `x = block(x, shared)` for blocks that differ in their weights alone, as one `lax.scan`."""
    weights = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(block.variables["params"] for block in blocks))
    block = blocks[0].clone(parent=None, name=None)

    def step(x, own):
        own = jax.tree.map(lambda leaf: shard(leaf, *[None] * leaf.ndim), own)  # one block's at a time is gathered
        return block.apply({"params": own}, x, shared), None

    return jax.lax.scan(step, x, weights)[0]
