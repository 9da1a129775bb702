"""Residual blocks and resampling of the UNet, over video `[batch, frames, height, width, channels]`."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from i2v_jax.models.layers import Conv, Dense, GroupNorm


class ResnetBlock(nn.Module):
    """Norm, SiLU, convolution, twice; the timestep's projection is added between; a dense shortcut where widths differ.

    `pooled_norms`: statistics over all frames (AnimateDiff v1) instead of each frame's own.
    """

    features: int
    norm_groups: int = 32
    norm_epsilon: float = 1e-5
    pooled_norms: bool = False
    convolution: str = "xla"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b f h w i"], time: Float[Array, "b e"] | None = None
    ) -> Float[Array, "b f h w o"]:
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        norm = dict(groups=self.norm_groups, epsilon=self.norm_epsilon, pooled=self.pooled_norms, **dtypes)
        conv = dict(implementation=self.convolution, **dtypes)

        hidden = nn.silu(GroupNorm(name="norm1", **norm)(x))
        hidden = Conv(self.features, name="conv1", **conv)(hidden)
        if time is not None:
            shift = Dense(self.features, name="time_emb_proj", **dtypes)(nn.silu(time))
            hidden += shift[:, None, None, None]
        hidden = nn.silu(GroupNorm(name="norm2", **norm)(hidden))
        hidden = Conv(self.features, name="conv2", **conv)(hidden)
        if x.shape[-1] != self.features:
            x = Dense(self.features, name="conv_shortcut", **dtypes)(x)
        return x + hidden


def nearest_resize(x: Float[Array, "*b h w c"], height: int, width: int) -> Float[Array, "*b h2 w2 c"]:
    """Nearest-neighbour resize: output row i shows input row floor(i * h / height)."""
    rows = jnp.arange(height) * x.shape[-3] // height
    columns = jnp.arange(width) * x.shape[-2] // width
    if height == 2 * x.shape[-3] and width == 2 * x.shape[-2]:  # the usual case, without gathers
        return jnp.repeat(jnp.repeat(x, 2, axis=-3), 2, axis=-2)
    return jnp.take(jnp.take(x, rows, axis=-3), columns, axis=-2)
