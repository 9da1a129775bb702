"""AnimateDiff's temporal transformer (Guo et al. 2024): each place of the picture attends over its frames."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from i2v_jax.errors import InputError
from i2v_jax.models.adapters.adapter import Shared
from i2v_jax.models.adapters.miva import MivaConfig, branches
from i2v_jax.models.attention import Attention
from i2v_jax.models.convolution import conv3x3
from i2v_jax.models.layers import Dense, FeedForward, GroupNorm, LayerNorm, parameter, shard


@dataclasses.dataclass(frozen=True)
class MotionConfig:
    """Layout of the motion modules.

    Attributes:
      max_positions: frames that the positional encoding reaches: 24 (v1) or 32 (v2, v3, SDXL-beta).
      mid_block: whether the middle block has one (v2).
      num_heads: attention heads.
      num_layers: transformer blocks in each module.
      attentions: over frames, in each transformer block: 2; SparseCtrl's modules have 1.
      norm_groups: groups of the norm before it.
      pooled_norm: that norm's statistics over all frames, as diffusers computes it; the original code, and so the
        default here, takes each frame's own.
      conv_in_channels: of the first layer that comes with them, which takes latents, a mask and a picture's latents
        (PIA, Zhang et al. 2024); None where none does.
      windows: the attentions run on windows of the frames, and what they give is averaged (FreeNoise): numbers of each
        window's frames, and weights of each, as tuples of tuples; None: they see all frames at once.
    """

    max_positions: int = 24
    mid_block: bool = False
    num_heads: int = 8
    num_layers: int = 1
    norm_groups: int = 32
    pooled_norm: bool = False
    attentions: int = 2
    conv_in_channels: int | None = None
    windows: tuple[tuple[tuple[int, ...], ...], tuple[tuple[float, ...], ...]] | None = None

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> "MotionConfig":
        """Reads the `config.json` of a diffusers MotionAdapter or UNetMotionModel.

        Raises:
          InputError: modules that differ from level to level.
        """
        keys = _ADAPTER_KEYS if "motion_norm_num_groups" in config else _UNET_KEYS
        fields: dict[str, Any] = {ours: config.get(theirs, default) for ours, theirs, default in keys}
        for ours, theirs, _ in keys:
            if isinstance(fields[ours], list | tuple):
                if len(set(fields[ours])) != 1:
                    raise InputError(f"Motion config: {theirs}={fields[ours]}; wanted the same for every level.")
                fields[ours] = fields[ours][0]
        return cls(**fields)

    def to_diffusers(self) -> dict[str, Any]:
        """Returns what a UNetMotionModel's `config.json` says of its motion modules."""
        config = {theirs: getattr(self, ours) for ours, theirs, _ in _UNET_KEYS}
        return config | {"temporal_transformer_layers_per_mid_block": self.num_layers}

    def to_diffusers_adapter(self, block_out_channels: Sequence[int], layers_per_block: int) -> dict[str, Any]:
        """Returns the `config.json` of a diffusers MotionAdapter for a UNet of these levels."""
        config = {theirs: getattr(self, ours) for ours, theirs, _ in _ADAPTER_KEYS}
        config = {key: value for key, value in config.items() if value is not None}
        return config | {
            "_class_name": "MotionAdapter",
            "block_out_channels": list(block_out_channels),
            "motion_layers_per_block": layers_per_block,
            "motion_transformer_layers_per_mid_block": self.num_layers,
        }


# Field, key in a config.json, and what diffusers takes where the key is absent.
_KEYS = (
    ("max_positions", "motion_max_seq_length", 32),
    ("mid_block", "use_motion_mid_block", True),
    ("num_heads", "motion_num_attention_heads", 8),
)
_ADAPTER_KEYS = (
    *_KEYS,
    ("num_layers", "motion_transformer_layers_per_block", 1),
    ("norm_groups", "motion_norm_num_groups", 32),
    ("conv_in_channels", "conv_in_channels", None),
)
_UNET_KEYS = (
    *_KEYS,
    ("num_layers", "temporal_transformer_layers_per_block", 1),
    ("norm_groups", "norm_num_groups", 32),  # one setting for these norms and the resnets'
)

PIA_CHANNELS = 9  # latents 4, mask 1, the picture's latents 4
PICTURE_INPUT = "picture_input"  # path of that first layer, below which it is "motion"
V1 = MotionConfig()
V2 = MotionConfig(max_positions=32, mid_block=True)
V3 = MotionConfig(max_positions=32)
ANIMATE_LCM = MotionConfig(max_positions=64, mid_block=True)
SDXL_BETA = MotionConfig(max_positions=32)


def frame_positions(max_positions: int, dim: int) -> Float[np.ndarray, "max_positions dim"]:
    """Sinusoidal positions of the frames: sines in even channels, cosines in odd ones (Vaswani et al. 2017)."""
    frequencies = np.exp(np.arange(0, dim, 2, dtype=np.float32) * np.float32(-np.log(10000.0) / dim))
    angles = np.arange(max_positions, dtype=np.float32)[:, None] * frequencies
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(max_positions, -1)[:, :dim]


class WideConv(nn.Module):
    """PIA's first layer, kept as its file has it; only its last channels are looked at, the others are the base's."""

    features: int
    channels: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, picture: Float[Array, "b f h w m"]) -> Float[Array, "b f h w c"]:
        shape = (3, 3, self.channels, self.features)
        kernel = parameter(self, "kernel", nn.initializers.lecun_normal(), shape, self.param_dtype)
        parameter(self, "bias", nn.initializers.zeros_init(), (self.features,), self.param_dtype)
        kernel = jnp.asarray(kernel, self.dtype)[:, :, -picture.shape[-1] :]
        flat = jnp.asarray(picture, self.dtype).reshape(-1, *picture.shape[2:])
        return conv3x3(flat, kernel).reshape(*picture.shape[:-1], self.features)


class PictureInput(nn.Module):
    """What a mask and a picture's latents add to the output of a UNet's first layer (PIA, Zhang et al. 2024)."""

    features: int
    channels: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, picture: Float[Array, "b f h w m"]) -> Float[Array, "b f h w c"]:
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        return WideConv(self.features, self.channels, **dtypes, name="motion")(picture)


class TemporalBlock(nn.Module):
    """Self-attentions over frames, positions added to each one's input, then a feed-forward."""

    config: MotionConfig
    attention: str = "xla"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    miva: MivaConfig | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b s f c"], shared: Shared | None = None) -> Float[Array, "b s f c"]:
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        attend = functools.partial(
            Attention, self.config.num_heads, branches(self.miva, "motion"), self.attention, **dtypes
        )

        def attended(x, shared):
            frames = min(x.shape[-2], self.config.max_positions)
            positions = jnp.asarray(frame_positions(frames, x.shape[-1]), self.dtype)
            for i in range(1, self.config.attentions + 1):
                hidden = LayerNorm(name=f"norm{i}", **dtypes)(x) + positions
                x = x + attend(name=f"attn{i}")(hidden, shared=shared)
            return x

        x = attended(x, shared) if self.config.windows is None else averaged(attended, *self.config.windows, x, shared)
        return x + FeedForward(self.attention == "blocked", name="ff", **dtypes)(LayerNorm(name="norm3", **dtypes)(x))


def averaged(
    function: Callable[[Float[Array, "b s l c"], Shared | None], Float[Array, "b s l c"]],
    frames: Sequence[Sequence[int]],
    weights: Sequence[Sequence[float]],
    x: Float[Array, "b s f c"],
    shared: Shared | None,
) -> Float[Array, "b s f c"]:
    """Returns what a function gives of windows of frames, averaged (FreeNoise, Qiu et al. 2024, equation 9).

    Args:
      function: of windows, which are further rows of the batch.
      frames, weights: [n, l], of each window; the weights of a frame sum to 1.
      x: of all frames.
      shared: of the videos.
    """
    frames, weights = np.array(frames), np.array(weights, np.float32)
    (count, length), (b, s, _, c) = frames.shape, x.shape
    rows = jnp.moveaxis(x[:, :, frames], 2, 0).reshape(count * b, s, length, c)
    if shared is not None and shared.masks is not None:
        masks = {places: jnp.tile(mask, (count, 1, 1)) for places, mask in shared.masks.items()}
        shared = shared._replace(masks=masks)
    found = function(rows, shared).reshape(count, b, s, length, c) * weights[:, None, None, :, None]
    found = jnp.moveaxis(found, 0, 2).reshape(b, s, count * length, c)
    return jnp.zeros(x.shape, jnp.float32).at[:, :, frames.reshape(-1)].add(found).astype(x.dtype)


class MotionModule(nn.Module):
    """Group norm, dense in, temporal blocks with space folded into the batch, dense out, added to the input.

    `branches` are adapters, (name, module), which change what the first dense layer gives.
    """

    config: MotionConfig
    attention: str = "xla"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    miva: MivaConfig | None = None
    branches: tuple[tuple[str, Any], ...] = ()

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], shared: Shared | None = None) -> Float[Array, "b f h w c"]:
        b, f, h, w, c = x.shape
        if self.config.windows is None and f > self.config.max_positions:
            raise ValueError(f"{f} frames, but the motion module knows {self.config.max_positions} positions")
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        norm = GroupNorm(self.config.norm_groups, 1e-6, self.config.pooled_norm, name="norm", **dtypes)
        hidden = norm(x).reshape(b, f, h * w, c).swapaxes(1, 2)
        hidden = shard(hidden, "batch", "space", None, None)
        hidden = Dense(c, name="proj_in", **dtypes)(hidden)
        for name, branch in self.branches:
            hidden = branch(self.config.max_positions, self.attention, name=name, **dtypes)(hidden, shared)
        for i in range(self.config.num_layers):
            block = TemporalBlock(self.config, self.attention, miva=self.miva, name=f"blocks_{i}", **dtypes)
            hidden = block(hidden, shared)
        hidden = Dense(c, name="proj_out", **dtypes)(hidden)
        return x + hidden.swapaxes(1, 2).reshape(x.shape)
