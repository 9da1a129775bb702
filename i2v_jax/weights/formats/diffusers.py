"""Names of UNets, motion modules and autoencoders: diffusers' own, the I2V-Adapter's and AnimateDiff's, Hotshot-XL's.

A file that holds a part (a motion module, an adapter) is read by the table of the whole, which has the names of every
adapter that is registered.
"""

from collections.abc import Callable, Iterable, Mapping

from i2v_jax.models.adapters import ADAPTERS
from i2v_jax.models.motion import PIA_CHANNELS, PICTURE_INPUT
from i2v_jax.weights.names import (
    BUFFER,
    CONV,
    DENSE,
    DENSE_AS_CONV,
    NORM,
    RAW,
    FamilyTable,
    GrowingTable,
    Kind,
    Row,
    Table,
    alike,
    under,
)

RESNET = alike(norm1=NORM, conv1=CONV, time_emb_proj=DENSE, norm2=NORM, conv2=CONV, conv_shortcut=DENSE_AS_CONV)
ATTENTION = [*alike(to_q=DENSE, to_k=DENSE, to_v=DENSE), Row("to_out.0", "to_out", DENSE)]
FEED_FORWARD = [Row("net.0.proj", "proj_in", DENSE), Row("net.2", "proj_out", DENSE)]
BLOCK = [
    Row("norm1", "norm1", NORM),
    *under("attn1.", "attn1/", ATTENTION),
    Row("norm2", "norm2", NORM),
    *under("attn2.", "attn2/", ATTENTION),
    Row("norm3", "norm3", NORM),
    *under("ff.", "ff/", FEED_FORWARD),
]


def adapter_rows(spelling: str = "") -> list[Row]:
    """Returns the rows of all known adapters, below a transformer's block.

    Args:
        spelling: one of `Adapter.spellings`, of those that have it; "": as published.
    """
    named = [
        (adapter, adapter.spellings.get(spelling, ()) if spelling else adapter.published)
        for adapter in ADAPTERS.values()
    ]
    return [
        Row(f"{adapter.site}.{theirs}", f"{adapter.site}/{adapter.name}/{ours}", DENSE)
        for adapter, layers in named
        for theirs, ours in layers
        if adapter.site != "motion"
    ]


def motion_adapter_rows(prefix: str = "") -> list[Row]:
    """Returns the rows of all known adapters of motion modules, below a module; `prefix` stands before their names."""
    return [
        Row(f"{prefix}{theirs}", f"{adapter.name}/{ours}", kind)
        for adapter in ADAPTERS.values()
        if adapter.site == "motion"
        for kind, names in ((DENSE, adapter.published), (RAW, adapter.arrays))
        for theirs, ours in names
    ]


def transformer_rows(projection: Kind, block: Iterable[Row] = BLOCK) -> list[Row]:
    """Returns the rows of a transformer of such blocks between two projections."""
    return [
        *alike(norm=NORM, proj_in=projection),
        *under("transformer_blocks.{k}.", "blocks_{k}/", block),
        *alike(proj_out=projection),
    ]


def _original_motion(positions: str) -> list[Row]:
    attention = [*ATTENTION, Row(positions, "positions", BUFFER)]
    block = [
        Row("norms.0", "norm1", NORM),
        *under("attention_blocks.0.", "attn1/", attention),
        Row("norms.1", "norm2", NORM),
        *under("attention_blocks.1.", "attn2/", attention),
        Row("ff_norm", "norm3", NORM),
        *under("ff.", "ff/", FEED_FORWARD),
    ]
    return transformer_rows(DENSE, block)


DIFFUSERS_MOTION = transformer_rows(DENSE, [*BLOCK, Row("pos_embed.pe", "attn1/positions", BUFFER)])
INNER = "temporal_transformer."
ORIGINAL_MOTION = under(INNER, "", _original_motion("pos_encoder.pe"))
HOTSHOT_MOTION = _original_motion("pos_encoder.positional_encoding")


def unet_rows(
    projection: Kind, motion: Iterable[Row] = (), adapters: Iterable[Row] = (), modules: str = "motion_modules"
) -> list[Row]:
    """Returns the rows of a UNet.

    Args:
        projection: kind of the projections around spatial transformers: matrices (`DENSE`: SDXL, SD2), or 1x1
            convolutions (`DENSE_AS_CONV`: SD1.5).
        motion: rows of a motion module.
        adapters: rows of adapters, below a transformer's block.
        modules: what the motion modules of a block are called.
    """
    transformer = transformer_rows(projection, [*BLOCK, *adapters])
    layer = [
        *under("resnets.{j}.", "layers_{j}/resnet/", RESNET),
        *under("attentions.{j}.", "layers_{j}/attention/", transformer),
        *under(f"{modules}.{{j}}.", "layers_{j}/motion/", motion),
    ]
    return [
        *alike(conv_in=CONV),
        Row("time_embedding.linear_{n}", "time_embedding/linear_{n}", DENSE),
        Row("add_embedding.linear_{n}", "add_embedding/linear_{n}", DENSE),
        *under("down_blocks.{i}.", "down_blocks_{i}/", layer),
        Row("down_blocks.{i}.downsamplers.0.conv", "down_blocks_{i}/downsample", CONV),
        *under("mid_block.resnets.{j}.", "mid_block/resnet_{j}/", RESNET),
        *under("mid_block.attentions.0.", "mid_block/attention/", transformer),
        *under(f"mid_block.{modules}.0.", "mid_block/motion/", motion),
        *under("up_blocks.{i}.", "up_blocks_{i}/", layer),
        Row("up_blocks.{i}.upsamplers.0.conv", "up_blocks_{i}/upsample", CONV),
        *alike(conv_norm_out=NORM, conv_out=CONV),
    ]


def with_adapters(name: str, rows: Callable[[], Iterable[Row]]) -> Table:
    """Returns the table of rows that depend on which adapters are known; one that is registered later is in them."""
    return GrowingTable(name, rows, lambda: tuple(ADAPTERS))


def _unet(name: str, projection: Kind, motion: list[Row], spelling: str = "", inner: str = "") -> Table:
    """The names of a UNet; `inner` stands before those of a motion module's layers."""

    def rows() -> list[Row]:
        return unet_rows(projection, [*motion, *motion_adapter_rows(inner)], adapter_rows(spelling))

    return with_adapters(name, rows)


DIFFUSERS_UNET = _unet("diffusers UNet", DENSE_AS_CONV, DIFFUSERS_MOTION)
DIFFUSERS_UNET_LINEAR = _unet("diffusers UNet, linear projections", DENSE, DIFFUSERS_MOTION)
# What `load_ip_adapter` makes of a UNet; it may load several, here a UNet has one.
DIFFUSERS_IP_UNET = _unet("diffusers UNet with one IP-Adapter", DENSE_AS_CONV, DIFFUSERS_MOTION, "diffusers")
DIFFUSERS_IP_UNET_LINEAR = _unet(
    "diffusers UNet with one IP-Adapter, linear projections", DENSE, DIFFUSERS_MOTION, "diffusers"
)
PUBLISHED_UNET = _unet("I2V-Adapter or AnimateDiff", DENSE_AS_CONV, ORIGINAL_MOTION, inner=INNER)
PUBLISHED_UNET_LINEAR = _unet("I2V-Adapter or AnimateDiff, linear projections", DENSE, ORIGINAL_MOTION, inner=INNER)

HOTSHOT_UNET = with_adapters(
    "Hotshot-XL, linear projections",
    lambda: unet_rows(DENSE, HOTSHOT_MOTION, adapter_rows(), modules="temporal_attentions"),
)


def _pia(name: str, motion: list[Row]) -> FamilyTable:
    """PIA's motion modules with the UNet's first layer, which takes a mask and the picture's latents too: that layer is
    part of the motion modules here, beside the base's own. Of other files it has no rows."""
    rows = [Row("conv_in", f"{PICTURE_INPUT}/motion", CONV), *_motion_rows(motion)]

    def of_file(shapes: Mapping[str, tuple[int, ...]]) -> list[Row]:
        is_wide = shapes.get("conv_in.weight", (0, 0))[1:2] == (PIA_CHANNELS,)
        has_motion = any(".motion_modules." in name for name in shapes)
        return rows if is_wide and has_motion and "conv_out.weight" not in shapes else []

    return FamilyTable(name, of_file, lambda shapes: rows)


def _motion_rows(motion: list[Row]) -> list[Row]:
    return [row for row in unet_rows(DENSE, motion) if "/motion/" in row.ours]


PIA = _pia("PIA", ORIGINAL_MOTION)
DIFFUSERS_PIA = _pia("diffusers MotionAdapter of PIA", DIFFUSERS_MOTION)

VAE_ATTENTION = [*alike(group_norm=NORM), *ATTENTION]


def _old_vae_attention(kind) -> list[Row]:
    names = dict(query="to_q", key="to_k", value="to_v", proj_attn="to_out")
    return [*alike(group_norm=NORM), *(Row(theirs, ours, kind) for theirs, ours in names.items())]


def _vae(attention: list[Row]) -> list[Row]:
    def half(side: str, resample: Row) -> list[Row]:
        return [
            *alike(conv_in=CONV),
            *under(f"{side}_blocks.{{i}}.resnets.{{j}}.", f"{side}_blocks_{{i}}/resnets_{{j}}/", RESNET),
            *under(f"{side}_blocks.{{i}}.", f"{side}_blocks_{{i}}/", [resample]),
            *under("mid_block.resnets.{j}.", "mid_block/resnet_{j}/", RESNET),
            *under("mid_block.attentions.0.", "mid_block/attention/", attention),
            *alike(conv_norm_out=NORM, conv_out=CONV),
        ]

    return [
        *under("encoder.", "encoder/", half("down", Row("downsamplers.0.conv", "downsample", CONV))),
        *under("decoder.", "decoder/", half("up", Row("upsamplers.0.conv", "upsample", CONV))),
        *alike(quant_conv=DENSE_AS_CONV, post_quant_conv=DENSE_AS_CONV),
    ]


DIFFUSERS_VAE = Table("diffusers AutoencoderKL", _vae(VAE_ATTENTION))
OLD_VAE = Table("diffusers AutoencoderKL before 0.18", _vae(_old_vae_attention(DENSE)))
OLD_VAE_CONV = Table("AutoencoderKL with convolutional attention", _vae(_old_vae_attention(DENSE_AS_CONV)))
