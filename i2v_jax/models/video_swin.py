"""A 3-D Swin transformer (Liu et al. 2022) whose position biases tell fragments of a video apart (FAST-VQA's "GRPB").

It is DOVER's technical branch; published layout: `technical_backbone.` of `DOVER.pth`. Small videos cut windows short,
which then have the biases that the published code gives them (`relative_index`).
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from i2v_jax.models.config import NetworkConfig
from i2v_jax.models.layers import Dense, LayerNorm, parameter

Sides = tuple[int, int, int]  # frames, height, width
APART = -100.0
"""What is added to the attention between tokens that only the shift has brought into one window."""
ROWS = 2**24  # attention scores, all windows' together, that are computed at once: 64 MB


@dataclasses.dataclass(frozen=True)
class SwinConfig(NetworkConfig):
    """Shape and arithmetic of a 3-D Swin transformer.

    Attributes:
      width: channels of the first stage; each further one has twice as many.
      depths, heads: blocks and attention heads of each stage.
      window, patch: frames, height, width; of tokens, of pixels.
      mlp_ratio: width inside the feed-forward layers over the stage's.
      fragment_stages: how many stages, the first ones, have a second table for tokens of one fragment.
      dtype: of activations.
      param_dtype: of new parameters.
    """

    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: tuple[int, ...] = (8, 7, 7)
    patch: tuple[int, ...] = (2, 4, 4)
    mlp_ratio: int = 4
    fragment_stages: int = 3


def relative_index(window: Sides) -> Int[np.ndarray, "n n"]:
    """Returns the row of a table of biases for each pair of tokens (query, key) of a window of the configured size.

    Of a window that is shorter the published code takes the upper left corner of this matrix. That is right if only the
    frames are fewer, and otherwise a quirk that its weights were trained with.
    """
    places = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij"), -1).reshape(-1, 3)
    apart = places[:, None] - places[None] + np.array(window) - 1
    counts = 2 * np.array(window) - 1
    return (apart[..., 0] * counts[1] + apart[..., 1]) * counts[2] + apart[..., 2]


@dataclasses.dataclass(frozen=True)
class Windows:
    """How a map of tokens is cut into windows.

    Attributes:
      sides: of the map, padded to whole windows.
      window: its sides: the configured ones, or the map's where that is not longer.
      shift: by how many tokens the map is rolled back before.
    """

    sides: Sides
    window: Sides
    shift: Sides

    @classmethod
    def of(cls, sides: Sides, configured: Sides, shifted: bool) -> "Windows":
        """Returns the windows of a map for a block that shifts, or does not."""
        window = tuple(min(pair) for pair in zip(sides, configured))
        shift = tuple(size // 2 if shifted and side > size else 0 for side, size in zip(sides, configured))
        return cls(tuple(-(-side // size) * size for side, size in zip(sides, window)), window, shift)

    def cut(self, x: Array) -> Array:
        """Returns [b, windows, tokens, c] of a map [b, *sides, c], rolled and cut; frames first, then rows, columns."""
        module = np if isinstance(x, np.ndarray) else jnp
        x = module.roll(x, [-shift for shift in self.shift], (1, 2, 3))
        (d, h, w), (i, j, k) = (self.sides[n] // self.window[n] for n in range(3)), self.window
        x = x.reshape(-1, d, i, h, j, w, k, x.shape[-1]).transpose(0, 1, 3, 5, 2, 4, 6, 7)
        return x.reshape(len(x), d * h * w, i * j * k, x.shape[-1])

    def join(self, x: Float[Array, "b n t c"]) -> Float[Array, "b d h w c"]:
        """Undoes `cut`."""
        (d, h, w), (i, j, k) = (self.sides[n] // self.window[n] for n in range(3)), self.window
        x = x.reshape(-1, d, h, w, i, j, k, x.shape[-1]).transpose(0, 1, 4, 2, 5, 3, 6, 7)
        return jnp.roll(x.reshape(-1, *self.sides, x.shape[-1]), self.shift, (1, 2, 3))

    def fragments(self) -> Int[np.ndarray, "n t 2"]:
        """Returns the row and column of each token's fragment; there are as many a side as a window has tokens."""
        height, width = (np.arange(side) * size // side for side, size in zip(self.sides[1:], self.window[1:]))
        places = np.stack(np.meshgrid(height, width, indexing="ij"), -1)
        return self.cut(np.broadcast_to(places, (1, *self.sides, 2)))[0]

    def regions(self) -> Int[np.ndarray, "n t"]:
        """Returns a number for each token; those of other numbers in its window came there by the shift."""
        number = np.zeros(self.sides, np.int64)
        for axis, (side, size, shift) in enumerate(zip(self.sides, self.window, self.shift)):
            place = np.arange(side)  # after rolling
            region = (place >= side - size).astype(int) + (place >= side - shift) if shift else 0 * place
            number = 3 * number + np.expand_dims(region, [n for n in range(3) if n != axis])
        unrolled = dataclasses.replace(self, shift=(0, 0, 0))
        return unrolled.cut(number[None, ..., None])[0, ..., 0]


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with biases by relative position and by fragment."""

    heads: int
    fragments: bool
    config: SwinConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b n t c"], windows: Windows) -> Float[Array, "b n t c"]:
        c, width = self.config, x.shape[-1]
        qkv = Dense(3 * width, name="qkv", **c.dtypes)(x).reshape(-1, x.shape[2], 3, self.heads, width // self.heads)
        q, k, v = (jnp.moveaxis(qkv[:, :, i], 2, 1) for i in range(3))  # [windows, heads, tokens, width]
        q = q * (width // self.heads) ** -0.5
        far = self.biases("relative_position_bias_table", x.shape[2])
        near = self.biases("fragment_position_bias_table", x.shape[2]) if self.fragments else None
        attended = attend(q, k, v, far, near, windows)
        return Dense(width, name="proj", **c.dtypes)(jnp.moveaxis(attended, 1, 2).reshape(x.shape))

    def biases(self, name: str, tokens: int) -> Float[Array, "h t t"]:
        """Returns what a table adds to the attention of each pair of a window's tokens."""
        c = self.config
        rows = int(np.prod(2 * np.array(c.window) - 1))
        table = parameter(self, name, nn.initializers.truncated_normal(0.02), (rows, self.heads), c.param_dtype)
        index = relative_index(c.window)[:tokens, :tokens]
        return jnp.moveaxis(jnp.asarray(table, jnp.float32)[index], -1, 0)


def attend(
    q: Float[Array, "m h t c"],
    k: Float[Array, "m h t c"],
    v: Float[Array, "m h t c"],
    far: Float[Array, "h t t"],
    near: Float[Array, "h t t"] | None,
    windows: Windows,
) -> Float[Array, "m h t c"]:
    """Attends within windows, a few at a time, so that not all of their scores are in memory at once.

    Args:
      q, k, v: of all windows of all videos, q scaled.
      far: biases of tokens one fragment apart; of more they are extrapolated from `near`. Without `near`, of all.
      near: biases of tokens in one fragment.
      windows: they are of.
    """
    videos = len(q) // (len(windows.regions()))
    places = np.tile(windows.fragments(), (videos, 1, 1)).astype(np.int32)
    regions = np.tile(windows.regions(), (videos, 1)).astype(np.int32)
    is_cut = bool(sum(windows.shift))

    def one(window):
        q, k, v, place, region = window
        scores = jnp.einsum("htc,hsc->hts", q, k).astype(jnp.float32)
        if near is None:
            scores += far
        else:
            gate = jnp.abs(place[:, None] - place[None]).sum(-1).astype(jnp.float32)
            scores += near + gate * (far - near)
        if is_cut:
            scores += jnp.where(region[:, None] == region[None], 0.0, APART)
        return jnp.einsum("hts,hsc->htc", jax.nn.softmax(scores).astype(v.dtype), v)

    at_once = max(1, min(len(q), ROWS // (q.shape[1] * q.shape[2] ** 2)))
    return jax.lax.map(one, (q, k, v, jnp.asarray(places), jnp.asarray(regions)), batch_size=at_once)


class Block(nn.Module):
    """Attention within windows and a feed-forward layer, each after a norm and added to its input."""

    heads: int
    shifted: bool
    fragments: bool
    config: SwinConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b d h w c"]) -> Float[Array, "b d h w c"]:
        c, sides, width = self.config, x.shape[1:4], x.shape[-1]
        windows = Windows.of(sides, c.window, self.shifted)
        y = norm(c, "norm1")(x)
        y = jnp.pad(y, [(0, 0), *((0, padded - side) for padded, side in zip(windows.sides, sides)), (0, 0)])
        y = WindowAttention(self.heads, self.fragments, c, name="attn")(windows.cut(y), windows)
        x = x + windows.join(y)[:, : sides[0], : sides[1], : sides[2]]
        hidden = Dense(c.mlp_ratio * width, name="fc1", **c.dtypes)(norm(c, "norm2")(x))
        return x + Dense(width, name="fc2", **c.dtypes)(nn.gelu(hidden, approximate=False))


class Stage(nn.Module):
    """Blocks, every second one with shifted windows; then, but for the last stage, four tokens become one."""

    number: int
    config: SwinConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b d h w c"]) -> Float[Array, "b d h2 w2 o"]:
        c, i = self.config, self.number
        for j in range(c.depths[i]):
            x = Block(c.heads[i], j % 2 == 1, i < c.fragment_stages, c, name=f"blocks_{j}")(x)
        if i == len(c.depths) - 1:
            return x
        x = jnp.pad(x, [(0, 0), (0, 0), (0, x.shape[2] % 2), (0, x.shape[3] % 2), (0, 0)])
        x = jnp.concatenate([x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)], -1)
        dense = functools.partial(Dense, use_bias=False, **c.dtypes)
        return dense(x.shape[-1] // 2, name="downsample_reduction")(norm(c, "downsample_norm")(x))


class VideoSwin(nn.Module):
    """Features of videos: a token per patch, of one frame, 32x32 pixels in the end."""

    config: SwinConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "b f H W 3"]) -> Float[Array, "b d h w c"]:
        """Runs the network.

        Args:
          pixels: normalised; ends are padded with zeros to whole patches.
        """
        c = self.config
        ends = [(0, -side % size) for side, size in zip(pixels.shape[1:4], c.patch)]
        x = PatchEmbedding(c, name="patch_embed")(jnp.pad(pixels, [(0, 0), *ends, (0, 0)]))
        for i in range(len(c.depths)):
            x = Stage(i, c, name=f"layers_{i}")(x)
        return norm(c, "norm")(x)


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its size, and a norm."""

    config: SwinConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b f H W 3"]) -> Float[Array, "b d h w c"]:
        return norm(self.config, "norm")(Patches(self.config.width, self.config.patch, self.config, name="proj")(x))


class Patches(nn.Module):
    """A 3-D convolution whose stride is its size, as one matrix product; what fills no patch is dropped."""

    features: int
    size: Sides
    config: Any  # with `dtype` and `param_dtype`

    @nn.compact
    def __call__(self, x: Float[Array, "b f H W i"]) -> Float[Array, "b d h w o"]:
        c, (i, j, k) = self.config, self.size
        shape = (*self.size, x.shape[-1], self.features)
        kernel = parameter(self, "kernel", nn.initializers.lecun_normal(), shape, c.param_dtype)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), shape[-1:], c.param_dtype)
        b, (d, h, w), channels = len(x), (side // size for side, size in zip(x.shape[1:4], self.size)), x.shape[-1]
        x = jnp.asarray(x[:, : d * i, : h * j, : w * k], c.dtype).reshape(b, d, i, h, j, w, k, channels)
        x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, d, h, w, i * j * k * channels)
        return x @ jnp.asarray(kernel, c.dtype).reshape(-1, self.features) + jnp.asarray(bias, c.dtype)


def norm(c: SwinConfig, name: str) -> LayerNorm:
    return LayerNorm(name=name, **c.dtypes)
