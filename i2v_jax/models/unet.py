"""The denoising UNet of Stable Diffusion 1.5 and XL, with motion modules, and adapters beside its attentions.

One network for all of them: which parts exist is the config's say. Published layouts: diffusers' UNet2DConditionModel,
AnimateDiff's UNet3DConditionModel, I2V-Adapter's merged UNet.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from i2v_jax.errors import InputError
from i2v_jax.models.adapters import Shared, adapter
from i2v_jax.models.adapters.miva import MivaConfig, masks_of_levels
from i2v_jax.models.adapters.windows import Window
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.config import LevelledConfig, refuse_others
from i2v_jax.models.layers import Conv, EmbeddingMLP, GroupNorm, shard, sinusoidal_embedding
from i2v_jax.models.motion import PICTURE_INPUT, MotionConfig, MotionModule, PictureInput
from i2v_jax.models.remat import remat
from i2v_jax.models.residuals import Residuals
from i2v_jax.models.resnet import ResnetBlock, nearest_resize
from i2v_jax.models.transformer import SpatialTransformer


@dataclasses.dataclass(frozen=True)
class AddedConditioning:
    """SDXL's second conditioning: pooled text and six sizes (original height and width, crop top and left, target).

    Attributes:
      time_dim: sinusoidal dimension of each size.
      projection_input_dim: 6 * time_dim + width of the pooled text.
    """

    time_dim: int = 256
    projection_input_dim: int = 2816

    @property
    def pooled_dim(self) -> int:
        """Width of the pooled text."""
        return self.projection_input_dim - 6 * self.time_dim


@dataclasses.dataclass(frozen=True)
class UNetConfig(LevelledConfig):
    """Shape and arithmetic of a UNet. Tuples have an entry per level, the finest first.

    Attributes:
      in_channels, out_channels: latent channels.
      block_out_channels: width of each level.
      layers_per_block: residual blocks per level in a down block; one more in an up block.
      down_attention, up_attention: which blocks have spatial transformers (up: the coarsest first, as they run).
      transformer_depth: transformer blocks per spatial transformer; the middle block has the last level's.
      num_heads: attention heads; the middle block has the last level's.
      cross_attention_dim: width of prompt and image tokens.
      linear_projection: the published file keeps the transformers' in and out projections as linear layers rather than
        1x1 convolutions (the same function; kept for export).
      norm_groups: groups of every group norm outside the motion modules.
      added_conditioning: SDXL's, or None.
      motion: layout of the motion modules, or None for a picture model.
      pooled_norms: resnet norms and the output norm pool over frames (AnimateDiff v1).
      self_attention_branches, cross_attention_branches, motion_branches: names in `models.adapters.ADAPTERS`.
      miva: MIVAs beside the attentions, or None.
      attention, convolution: implementations, see `models.attention` and `models.convolution`.
      remat: what the backward pass makes again of a layer's activations: "none"; "products", what is cheap (see
        `models.remat`); "full", all; or a name in `jax.checkpoint_policies`.
      scan_blocks: a transformer's blocks are a loop; compiles faster where they are many (SDXL's ten), but copies their
        weights once a pass.
      dtype: of activations; norms, softmax and timestep embedding are float32 all the same.
      param_dtype: of new parameters.
    """

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    down_attention: tuple[bool, ...] = (True, True, True, False)
    up_attention: tuple[bool, ...] = (False, True, True, True)
    transformer_depth: tuple[int, ...] = (1, 1, 1, 1)
    num_heads: tuple[int, ...] = (8, 8, 8, 8)
    cross_attention_dim: int = 768
    linear_projection: bool = False
    norm_groups: int = 32
    added_conditioning: AddedConditioning | None = None
    motion: MotionConfig | None = None
    pooled_norms: bool = False
    self_attention_branches: tuple[str, ...] = ()
    cross_attention_branches: tuple[str, ...] = ()
    motion_branches: tuple[str, ...] = ()
    miva: MivaConfig | None = None
    attention: str = "xla"
    convolution: str = "xla"
    remat: str = "none"
    scan_blocks: bool = False

    def __post_init__(self):
        levels = len(self.block_out_channels)
        for name in ("down_attention", "up_attention", "transformer_depth", "num_heads"):
            given = getattr(self, name)
            if len(given) != levels:
                raise InputError(f"UNetConfig.{name} has {len(given)} entries, wanted {levels}, one per level: {given}")

    @property
    def latent_channels(self) -> int:
        """Channels of the noisy latents, all that its first layer takes."""
        return self.in_channels

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any], **overrides) -> "UNetConfig":
        """Reads the `config.json` of a diffusers UNet2DConditionModel or UNetMotionModel (or their 3D namesakes).

        Raises:
          InputError: a setting that this UNet does not have.
        """
        refuse_others("UNet", config, _FIXED)
        widths = tuple(config["block_out_channels"])

        def per_level(value):
            return tuple(value) if isinstance(value, list | tuple) else (value,) * len(widths)

        added = None
        if config.get("addition_embed_type"):
            added = AddedConditioning(
                config["addition_time_embed_dim"], config["projection_class_embeddings_input_dim"]
            )
        fields = {ours: config.get(theirs, default) for ours, theirs, default in _KEYS} | dict(
            block_out_channels=widths,
            down_attention=tuple("CrossAttn" in name for name in config["down_block_types"]),
            up_attention=tuple("CrossAttn" in name for name in config["up_block_types"]),
            transformer_depth=per_level(config.get("transformer_layers_per_block", 1)),
            # diffusers' `attention_head_dim` is, for these models, the number of heads
            num_heads=per_level(config.get("num_attention_heads") or config.get("attention_head_dim", 8)),
            added_conditioning=added,
            motion=MotionConfig.from_diffusers(config) if "motion_max_seq_length" in config else None,
        )
        return cls(**(fields | overrides))

    def to_diffusers(self) -> dict[str, Any]:
        """Returns the `config.json` of a diffusers UNet2DConditionModel, or UNetMotionModel where there is motion.

        What diffusers has no setting for (branches, norms that pool over frames) is not in it.

        Raises:
          InputError: motion modules that a UNetMotionModel cannot have.
        """
        kind = "Motion" if self.motion else "2D"

        def blocks(side, attention):
            return [f"{'CrossAttn' if has_it else ''}{side}Block{kind}" for has_it in attention]

        def per_level(values):
            return values[0] if len(set(values)) == 1 else list(values)

        config = {theirs: getattr(self, ours) for ours, theirs, _ in _KEYS} | {
            "_class_name": "UNetMotionModel" if self.motion else "UNet2DConditionModel",
            "block_out_channels": list(self.block_out_channels),
            "down_block_types": blocks("Down", self.down_attention),
            "up_block_types": blocks("Up", self.up_attention),
            "transformer_layers_per_block": per_level(self.transformer_depth),
            "num_attention_heads" if self.motion else "attention_head_dim": per_level(self.num_heads),
            "encoder_hid_dim_type": None,
        }
        if self.added_conditioning:
            config |= {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": self.added_conditioning.time_dim,
                "projection_class_embeddings_input_dim": self.added_conditioning.projection_input_dim,
            }
        if self.motion:
            if self.motion.norm_groups != self.norm_groups:
                raise InputError(
                    f"diffusers' UNetMotionModel has one number of norm groups; this UNet has {self.norm_groups}, its "
                    f"motion modules {self.motion.norm_groups}. Write the motion modules apart, as a MotionAdapter."
                )
            config |= self.motion.to_diffusers()
        return config


# Field, key in a config.json, and what is taken where the key is absent.
_KEYS = (
    ("in_channels", "in_channels", 4),
    ("out_channels", "out_channels", 4),
    ("layers_per_block", "layers_per_block", 2),
    ("cross_attention_dim", "cross_attention_dim", 768),
    ("linear_projection", "use_linear_projection", False),
    ("norm_groups", "norm_num_groups", 32),
)
# Settings of published configs that these networks know one value of (first: the default).
_FIXED = {
    "act_fn": ("silu",),
    "class_embed_type": (None,),
    "addition_embed_type": (None, "text_time"),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "center_input_sample": (False,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim_type": (None, "ip_image_proj"),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1,),
    "norm_eps": (1e-5,),
    "only_cross_attention": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_cond_proj_dim": (None,),
    "time_embedding_type": ("positional",),
}

DEEP = "deep"
"""The collection of what the coarser levels hand up to the finest, see `UNet`."""
SD15 = UNetConfig()
SDXL = UNetConfig(
    block_out_channels=(320, 640, 1280),
    down_attention=(False, True, True),
    up_attention=(True, True, False),
    transformer_depth=(1, 2, 10),
    num_heads=(5, 10, 20),
    cross_attention_dim=2048,
    linear_projection=True,
    added_conditioning=AddedConditioning(),
)
TINY = UNetConfig(
    block_out_channels=(32, 64),
    layers_per_block=1,
    down_attention=(True, False),
    up_attention=(False, True),
    transformer_depth=(1, 1),
    num_heads=(2, 4),
    cross_attention_dim=32,
    norm_groups=8,
)


class Layer(nn.Module):
    """A residual block, then (where the config has them) a spatial transformer and a motion module."""

    config: UNetConfig
    level: int
    attention: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w i"], shared: Shared) -> Float[Array, "b f h w o"]:
        c = self.config
        x = resnet(c, self.level, "resnet")(x, shared.time)
        if self.attention:
            x = transformer(c, self.level)(x, shared)
        if c.motion:
            x = motion(c)(x, shared)
        return shard(x, "batch", "frames", "height", "width", None)


class MidBlock(nn.Module):
    """The coarsest level's middle: residual block, spatial transformer, motion module (v2), residual block."""

    config: UNetConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], shared: Shared) -> Float[Array, "b f h w c"]:
        c, level = self.config, len(self.config.block_out_channels) - 1
        x = resnet(c, level, "resnet_0")(x, shared.time)
        x = transformer(c, level)(x, shared)
        if c.motion and c.motion.mid_block:
            x = motion(c)(x, shared)
        return resnet(c, level, "resnet_1")(x, shared.time)


class DownBlock(nn.Module):
    """The layers of a level, then a stride-2 convolution; returns every output, for the up blocks."""

    config: UNetConfig
    level: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b f h w i"], shared: Shared, residual: Float[Array, "b f _h _w o"] | None = None
    ) -> list[Float[Array, "b f _h _w o"]]:
        c, outputs = self.config, []
        attention = c.down_attention[self.level]
        for i in range(c.layers_per_block):
            x = remat(Layer, c.remat)(c, self.level, attention, name=f"layers_{i}")(x, shared)
            outputs.append(x)
        if attention and residual is not None:
            x = outputs[-1] = x + residual
        if self.level < len(c.block_out_channels) - 1:
            outputs.append(conv(c, c.block_out_channels[self.level], "downsample", stride=2)(x))
        if not attention and residual is not None:
            outputs[-1] = outputs[-1] + residual
        return outputs


class UpBlock(nn.Module):
    """The layers of a level, each after joining an output of the down blocks; then resize and convolve."""

    config: UNetConfig
    level: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b f h w i"], skips: list[Float[Array, "b f _h _w _c"]], shared: Shared
    ) -> Float[Array, "b f h2 w2 o"]:
        c = self.config
        attention = c.up_attention[len(c.block_out_channels) - 1 - self.level]
        for i in range(c.layers_per_block + 1):
            x = jnp.concatenate([x, skips.pop()], -1)
            x = remat(Layer, c.remat)(c, self.level, attention, name=f"layers_{i}")(x, shared)
        if self.level > 0:
            x = nearest_resize(x, *skips[-1].shape[-3:-1])  # odd sizes: exactly the next skip's
            x = conv(c, c.block_out_channels[self.level], "upsample")(x)
        return x


class UNet(nn.Module):
    """Predicts noise (or v, or x0: the schedule knows) for a noisy latent video.

    Spatial layers work on each frame, temporal ones on each place; a picture model is a video model of one frame.
    """

    config: UNetConfig

    @nn.compact
    def __call__(
        self,
        sample: Float[Array, "b f h w i"],
        timesteps: Float[Array, " b"],
        conditions: Conditions,
        strengths: Mapping[str, Any] | None = None,
        residuals: Residuals | None = None,
        deep: Float[Array, "b f h w c"] | None = None,
        window: Window | None = None,
    ) -> Float[Array, "b f h w o"]:
        """Runs the network.

        Args:
          sample: noisy latents; any height and width.
          timesteps: in [0, 1000), one per video, or a scalar for all.
          conditions: see `Conditions`; those that the network does not look at may be there or not.
          strengths: of adapters, by name (scalars, may be traced); 1 where absent.
          residuals: what a ControlNet or its kin returned.
          deep: what the coarser levels have handed up to the finest in another call, where it is kept as "features" of
            the collection `DEEP` if that is mutable; they then do not run.
          window: where frame 1 is, if the frames are windows of videos, see `models.adapters.windows`.
        """
        c = self.config
        sample = shard(sample, "batch", "frames", "height", "width", None)
        time = time_embedding(c, jnp.broadcast_to(timesteps, sample.shape[:1]), conditions)
        masks = masks_of_levels(conditions.miva_masks, len(c.block_out_channels))
        shared = Shared(time, conditions.in_dtype(c.dtype), strengths or {}, masks, window)
        x = conv(c, c.block_out_channels[0], "conv_in")(jnp.asarray(sample, c.dtype))
        if c.motion and c.motion.conv_in_channels:
            if conditions.image_latents is None:
                raise InputError(
                    "This UNet's motion modules (PIA) take a mask and a picture's latents, which sampling gives; "
                    "training with them is not known here. Give other motion modules."
                )
            x += picture_input(c)(conditions.image_latents)
        residuals = residuals or Residuals()
        if deep is None:
            skips, x = down_and_middle(c, x, shared, residuals.levels)
        else:
            skips, x = finest_down(c, x, shared, residuals.levels), deep
        if residuals.skips is not None:
            skips = [skip + residual for skip, residual in zip(skips, residuals.skips, strict=deep is None)]
        if residuals.middle is not None and deep is None:
            x += residuals.middle
        coarsest = len(c.block_out_channels) - 1
        for level in range(coarsest, 0, -1) if deep is None else ():
            x = UpBlock(c, level, name=f"up_blocks_{coarsest - level}")(x, skips, shared)
        if not self.is_initializing():
            self.sow(DEEP, "features", x)
        x = UpBlock(c, 0, name=f"up_blocks_{coarsest}")(x, skips, shared)
        x = nn.silu(GroupNorm(c.norm_groups, pooled=c.pooled_norms, name="conv_norm_out", **c.dtypes)(x))
        x = conv(c, c.out_channels, "conv_out")(x)
        return shard(x, "batch", "frames", "height", "width", None)


# The half that a ControlNet shares: to be called in a compact method, whose module then holds the parts.


def time_embedding(c: UNetConfig, timesteps: Float[Array, " b"], conditions: Conditions) -> Float[Array, "b e"]:
    """Embeds the timesteps and, for SDXL, the pooled text and the sizes."""
    width = c.block_out_channels[0]
    mlp = dict(features=4 * width, param_dtype=c.param_dtype)
    time = EmbeddingMLP(name="time_embedding", **mlp)(sinusoidal_embedding(timesteps, width))
    if c.added_conditioning:
        if conditions.pooled is None or conditions.sizes is None:
            raise InputError("This network (SDXL) wants conditions with `pooled` text and `sizes`.")
        sizes = sinusoidal_embedding(conditions.sizes[:, 0], c.added_conditioning.time_dim)
        joined = jnp.concatenate([conditions.pooled[:, 0], sizes.reshape(sizes.shape[0], -1)], -1)
        time += EmbeddingMLP(name="add_embedding", **mlp)(jnp.asarray(joined, jnp.float32))
    return jnp.asarray(time, c.dtype)


def down_and_middle(
    c: UNetConfig,
    x: Float[Array, "b f h w c"],
    shared: Shared,
    residuals: Sequence[Float[Array, "b f _h _w _c"]] | None = None,
) -> tuple[list[Float[Array, "b f _h _w _c"]], Float[Array, "b f _h _w _c"]]:
    """Runs the down blocks and the middle block; returns every output of the former, `x` first, and the middle's.

    `residuals` are those of `Residuals.levels`.
    """
    levels, residuals = len(c.block_out_channels), list(residuals or [])
    residuals += [None] * (levels + 1 - len(residuals))
    skips = [x]
    for level in range(levels):
        skips += DownBlock(c, level, name=f"down_blocks_{level}")(skips[-1], shared, residuals[level])
    middle = remat(MidBlock, c.remat)(c, name="mid_block")(skips[-1], shared)
    return skips, middle if residuals[levels] is None else middle + residuals[levels]


def finest_down(
    c: UNetConfig,
    x: Float[Array, "b f h w c"],
    shared: Shared,
    residuals: Sequence[Float[Array, "b f _h _w _c"]] | None = None,
) -> list[Float[Array, "b f h w _c"]]:
    """Of `down_and_middle`, the outputs that the finest up block joins."""
    outputs = DownBlock(c, 0, name="down_blocks_0")(x, shared, residuals[0] if residuals else None)
    return [x, *outputs[: c.layers_per_block]]


# How a config builds each kind of part.


def resnet(c: UNetConfig, level: int, name: str) -> ResnetBlock:
    return ResnetBlock(
        c.block_out_channels[level],
        c.norm_groups,
        pooled_norms=c.pooled_norms,
        convolution=c.convolution,
        name=name,
        **c.dtypes,
    )


def transformer(c: UNetConfig, level: int) -> SpatialTransformer:
    return SpatialTransformer(
        c.transformer_depth[level],
        c.num_heads[level],
        c.norm_groups,
        c.self_attention_branches,
        c.cross_attention_branches,
        c.attention,
        c.scan_blocks,
        c.dtype,
        c.param_dtype,
        c.miva,
        name="attention",
    )


def motion(c: UNetConfig) -> MotionModule:
    branches = tuple((name, adapter(name).module) for name in c.motion_branches)
    return MotionModule(c.motion, c.attention, c.dtype, c.param_dtype, c.miva, branches, name="motion")


def picture_input(c: UNetConfig) -> PictureInput:
    channels = c.motion.conv_in_channels
    return PictureInput(c.block_out_channels[0], channels, c.dtype, c.param_dtype, name=PICTURE_INPUT)


def conv(c: UNetConfig, features: int, name: str, stride: int = 1) -> Conv:
    return Conv(features, stride, implementation=c.convolution, name=name, **c.dtypes)
