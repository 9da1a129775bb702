"""Names in DynamiCrafter's checkpoints: the original Stable Diffusion 2 layout, with layers over time, and OpenCLIP's
picture encoder and a resampler beside it.
"""

from collections.abc import Iterable, Mapping

from i2v_jax.weights.formats.diffusers import BLOCK
from i2v_jax.weights.formats.ip_adapter import RESAMPLER
from i2v_jax.weights.formats.original import (
    OPENCLIP_LAYER,
    RESNET,
    Blocks,
    blocks_of_file,
    blocks_of_tree,
    numbered_rows,
)
from i2v_jax.weights.names import (
    CONV,
    DENSE,
    NORM,
    RAW,
    SAME,
    FamilyTable,
    Kind,
    Layout,
    Row,
    Table,
    alike,
    under,
)

Shapes = Mapping[str, tuple[int, ...]]


def _squeezed(weight, axes: tuple[int, ...]):
    if any(weight.shape[axis] != 1 for axis in axes):
        raise ValueError(f"a kernel of shape {weight.shape}")
    return weight.reshape([size for axis, size in enumerate(weight.shape) if axis not in axes])


DENSE_AS_CONV_1D: Kind = {
    "weight": (
        "kernel",
        Layout(lambda w: _squeezed(w, (2,)).transpose(1, 0), lambda kernel: kernel.transpose(1, 0)[:, :, None]),
    ),
    "bias": ("bias", SAME),
}
CONV_OVER_TIME: Kind = {
    "weight": (
        "kernel",
        Layout(
            lambda w: _squeezed(w, (3, 4)).transpose(2, 1, 0),
            lambda kernel: kernel.transpose(2, 1, 0)[..., None, None],
        ),
    ),
    "bias": ("bias", SAME),
}
FRAME_RATES = ("fps_embedding", "framestride_embed")
"""What the embedding of the frame rate is called; in the 256 model that of the frame stride."""

TEMPORAL_CONVS = [
    row
    for i in range(1, 5)
    for row in (
        Row(f"temopral_conv.conv{i}.0", f"temporal_conv/norm{i}", NORM),
        Row(f"temopral_conv.conv{i}.{2 if i == 1 else 3}", f"temporal_conv/conv{i}", CONV_OVER_TIME),
    )
]
IMAGE_KEYS = under("attn2.", "attn2/", alike(to_k_ip=DENSE, to_v_ip=DENSE, alpha=RAW))


def _transformer(projection: Kind, more: Iterable[Row] = ()) -> list[Row]:
    return [
        *alike(norm=NORM, proj_in=projection, cc_projection=DENSE),  # the last: EDG's, stage 1
        *under("transformer_blocks.0.", "blocks_0/", [*BLOCK, *more]),
        *alike(proj_out=projection),
    ]


SPATIAL = _transformer(DENSE, IMAGE_KEYS)
TEMPORAL = _transformer(DENSE)


def _layer(theirs: str, ours: str) -> list[Row]:
    return [
        *under(f"{theirs}.0.", f"{ours}/resnet/", RESNET),
        *under(f"{theirs}.0.", f"{ours}/", TEMPORAL_CONVS),
        *under(f"{theirs}.1.", f"{ours}/attention/", SPATIAL),
        *under(f"{theirs}.2.", f"{ours}/temporal/", TEMPORAL),
    ]


def _numbered(rows: Iterable[Row], number: int) -> list[Row]:
    """Rows of one of several like parts of a block: `temporal_conv/...` becomes `temporal_conv_0/...`."""
    return [row._replace(ours=row.ours.replace("temporal_conv/", f"temporal_conv_{number}/")) for row in rows]


def unet_rows(blocks: Blocks, frame_rate: str) -> list[Row]:
    """Returns the rows of a UNet of these blocks; `frame_rate` is the name of that embedding."""
    return [
        Row("time_embed.0", "time_embedding/linear_1", DENSE),
        Row("time_embed.2", "time_embedding/linear_2", DENSE),
        Row(f"{frame_rate}.0", "fps_embedding/linear_1", DENSE),
        Row(f"{frame_rate}.2", "fps_embedding/linear_2", DENSE),
        Row("input_blocks.0.0", "conv_in", CONV),
        *under("init_attn.0.", "init_attn/", _transformer(DENSE_AS_CONV_1D)),
        *under("middle_block.0.", "mid_block/resnet_0/", RESNET),
        *under("middle_block.0.", "mid_block/", _numbered(TEMPORAL_CONVS, 0)),
        *under("middle_block.1.", "mid_block/attention/", SPATIAL),
        *under("middle_block.2.", "mid_block/temporal/", TEMPORAL),
        *under("middle_block.3.", "mid_block/resnet_1/", RESNET),
        *under("middle_block.3.", "mid_block/", _numbered(TEMPORAL_CONVS, 1)),
        Row("out.0", "conv_norm_out", NORM),
        Row("out.2", "conv_out", CONV),
        *numbered_rows(blocks, _layer, transformers=2),
    ]


def is_dynamicrafter(paths: Iterable[str]) -> bool:
    """Whether our paths of a UNet, or a part of one, are of this one: others have no such layers over time."""
    return any(path.startswith("init_attn/") or "/temporal_conv" in path or "/temporal/" in path for path in paths)


def _unet_table(prefix: str, frame_rate: str) -> FamilyTable:
    def of_file(shapes: Shapes) -> list[Row]:
        if not any(name.startswith(f"{prefix}init_attn.") or ".temopral_conv." in name for name in shapes):
            return []
        return under(prefix, "", unet_rows(blocks_of_file(prefix, shapes), frame_rate))

    def of_tree(paths: Shapes) -> list[Row]:
        rows = unet_rows(blocks_of_tree(paths), frame_rate) if is_dynamicrafter(paths) else []
        return under(prefix, "", rows)

    about = f", {frame_rate}" if frame_rate != FRAME_RATES[0] else ""
    return FamilyTable(f"DynamiCrafter UNet ({prefix}*{about})", of_file, of_tree)


DYNAMICRAFTER_UNETS = tuple(
    _unet_table(prefix, frame_rate) for prefix in ("model.diffusion_model.", "") for frame_rate in FRAME_RATES
)
DYNAMICRAFTER_PROJECTION = Table(
    "DynamiCrafter image projection (image_proj_model.*)", under("image_proj_model.", "", RESAMPLER)
)
OPENCLIP_VISION_ROWS = [
    *alike(class_embedding=RAW),
    Row("positional_embedding", "position_embedding/embedding", RAW),
    Row("conv1", "patch_embedding", CONV),
    Row("ln_pre", "pre_layernorm", NORM),
    *under("transformer.resblocks.{i}.", "layers_{i}/", OPENCLIP_LAYER),
    Row("ln_post", "post_layernorm", NORM),
    Row("proj", "visual_projection/kernel", RAW),
]
OPENCLIP_VISION = Table(
    "OpenCLIP vision (embedder.model.visual.*)", under("embedder.model.visual.", "", OPENCLIP_VISION_ROWS)
)
