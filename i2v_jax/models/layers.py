"""Layers that every network here is made of: dense, convolution, norms, feed-forward, timestep embedding.

All are channels last and accept any number of leading (batch-like) axes. Statistics are taken in float32 whatever the
activations' dtype.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from i2v_jax.models.convolution import conv3x3, single_device

Dtype = Any


def shard(x: Array, *axes: str | None) -> Array:
    """Names the axes of `x`, so that a table of logical-axis rules can place it on a mesh (no rules: no effect)."""
    return nn.with_logical_constraint(x, axes)


_of_shapes_alone = contextvars.ContextVar("of_shapes_alone", default=False)


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """Here new parameters are zeros, whatever their initialiser says: for who asks for their shapes."""
    token = _of_shapes_alone.set(True)
    try:
        yield
    finally:
        _of_shapes_alone.reset(token)


def parameter(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], dtype: Dtype) -> Array:
    """As `module.param`, but an existing parameter is taken as it is, and where shapes alone are wanted it is zeros.

    Flax checks its shape by tracing the initialiser, for each parameter at each trace: a third of the tracing time.
    """
    if module.has_variable("params", name):
        return module.get_variable("params", name)
    if _of_shapes_alone.get():
        return module.variable("params", name, jnp.zeros, shape, dtype).value
    return module.param(name, init, shape, dtype)


class Dense(nn.Module):
    """`x @ kernel + bias` over the last axis; also every 1x1 convolution of the published networks."""

    features: int
    use_bias: bool = True
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        kernel = parameter(self, "kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        y = jnp.asarray(x, self.dtype) @ jnp.asarray(kernel, self.dtype)
        if self.use_bias:
            y += jnp.asarray(
                parameter(self, "bias", nn.initializers.zeros_init(), (self.features,), self.param_dtype), self.dtype
            )
        return y


class Conv(nn.Module):
    """3x3 convolution with zero padding of 1 (or the padding given), stride 1 or 2."""

    features: int
    stride: int = 1
    padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1))
    implementation: str = "xla"
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b h w i"]) -> Float[Array, "*b h2 w2 o"]:
        shape = (3, 3, x.shape[-1], self.features)
        kernel = parameter(self, "kernel", nn.initializers.lecun_normal(), shape, self.param_dtype)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), (self.features,), self.param_dtype)
        flat = jnp.asarray(x, self.dtype).reshape(-1, *x.shape[-3:])
        y = conv3x3(flat, jnp.asarray(kernel, self.dtype), self.stride, self.padding, self.implementation)
        y = y.reshape(*x.shape[:-3], *y.shape[-3:])
        return y + jnp.asarray(bias, self.dtype)


class GroupNorm(nn.Module):
    """Group normalisation over height, width and a group's channels, of each frame or (pooled) of all frames.

    Pooled statistics are what AnimateDiff v1's resnets use: they norm a `[b, c, f, h, w]` tensor as one picture.
    """

    groups: int = 32
    epsilon: float = 1e-5
    pooled: bool = False
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b f h w c"]) -> Float[Array, "*b f h w c"]:
        channels = x.shape[-1]
        if channels % self.groups:
            raise ValueError(f"{channels} channels cannot be split into {self.groups} groups")
        scale = parameter(self, "scale", nn.initializers.ones_init(), (channels,), self.param_dtype)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), (channels,), self.param_dtype)
        axes = (-4, -3, -2) if self.pooled else (-3, -2)

        def group_mean(per_element):
            """Mean over space first (long, contiguous), then over the channels of a group (short)."""
            per_channel = jnp.mean(per_element, axes, keepdims=True)
            grouped = per_channel.reshape(*per_channel.shape[:-1], self.groups, channels // self.groups)
            return jnp.broadcast_to(jnp.mean(grouped, -1, keepdims=True), grouped.shape).reshape(per_channel.shape)

        wide = jnp.asarray(x, jnp.float32)
        centred = wide - group_mean(wide)
        inverse = jax.lax.rsqrt(group_mean(jnp.square(centred)) + self.epsilon)
        return jnp.asarray(centred * (inverse * scale) + bias, self.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis."""

    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        scale = parameter(self, "scale", nn.initializers.ones_init(), (x.shape[-1],), self.param_dtype)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), (x.shape[-1],), self.param_dtype)
        wide = jnp.asarray(x, jnp.float32)
        centred = wide - jnp.mean(wide, -1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + self.epsilon)
        return jnp.asarray(centred * inverse * scale + bias, self.dtype)


class BatchNorm(nn.Module):
    """Batch norm with the statistics that it was trained to; they are parameters here, and never change."""

    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
        starts = {"scale": ones, "bias": zeros, "mean": zeros, "var": ones}
        scale, bias, mean, var = (
            parameter(self, name, init, x.shape[-1:], self.param_dtype) for name, init in starts.items()
        )
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return jnp.asarray((x - mean) * factor + bias, self.dtype)


class FeedForward(nn.Module):
    """Dense to 4x, gated by the exact GELU of its other half (GEGLU, Shazeer 2020), dense back.

    `blocked`: a loop over blocks of rows, whose wide middle then stays in a CPU's cache.
    """

    blocked: bool = False
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        channels = x.shape[-1]
        blocks = row_blocks(x.size // channels, 8 * channels) if self.blocked else 1
        if blocks > 1 and self.has_variable("params", "proj_in"):
            plain, variables = self.clone(blocked=False, parent=None), {"params": self.variables["params"]}
            out = jax.lax.map(lambda rows: plain.apply(variables, rows), x.reshape(blocks, -1, channels))
            return out.reshape(x.shape)
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        value, gate = jnp.split(Dense(8 * channels, name="proj_in", **dtypes)(x), 2, axis=-1)
        return Dense(channels, name="proj_out", **dtypes)(value * nn.gelu(gate, approximate=False))


def row_blocks(rows: int, width: int) -> int:
    """Returns into how many equal blocks to cut `rows` rows of `width`, so that one is about 10 MB; 1 on a mesh."""
    if not single_device():
        return 1
    return next(n for n in range(max(1, rows * width * 4 // 10_000_000), 0, -1) if rows % n == 0)


def sinusoidal_embedding(values: Float[Array, "*b"], dim: int) -> Float[Array, "*b dim"]:
    """Embeds scalars (timesteps, SDXL's sizes) as [cos, sin] of geometric frequencies 1 .. 1/10000, in float32.

    Stable Diffusion's convention: cosines first, `dim / 2` frequencies, no shift.
    """
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.asarray(values, jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class EmbeddingMLP(nn.Module):
    """Dense, SiLU, dense: what turns a sinusoidal embedding into the conditioning vector. In full float32."""

    features: int
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b i"]) -> Float[Array, "b o"]:
        with jax.default_matmul_precision("highest"):  # accelerators would multiply float32 as bfloat16 or TF32
            hidden = nn.silu(Dense(self.features, param_dtype=self.param_dtype, name="linear_1")(x))
            return Dense(self.features, param_dtype=self.param_dtype, name="linear_2")(hidden)
