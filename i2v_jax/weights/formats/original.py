"""Names in single-file Stable Diffusion checkpoints: the original (CompVis, Stability AI, ControlNet) layout.

UNets are stored as numbered blocks, whose numbers depend on how many layers a level has, and autoencoders count their
decoder's levels from the other end; so those tables are made for each file or tree.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from i2v_jax.weights.formats.clip import CLIP_TEXT_ROWS, without
from i2v_jax.weights.formats.diffusers import transformer_rows
from i2v_jax.weights.names import (
    BUFFER,
    CONV,
    DENSE,
    DENSE_AS_CONV,
    EMBEDDING,
    MATRIX,
    NORM,
    RAW,
    SAME,
    FamilyTable,
    Kind,
    Match,
    Row,
    Table,
    alike,
    under,
)

Shapes = Mapping[str, tuple[int, ...]]

RESNET = [
    Row("in_layers.0", "norm1", NORM),
    Row("in_layers.2", "conv1", CONV),
    Row("emb_layers.1", "time_emb_proj", DENSE),
    Row("out_layers.0", "norm2", NORM),
    Row("out_layers.3", "conv2", CONV),
    Row("skip_connection", "conv_shortcut", DENSE_AS_CONV),
]


class Blocks(NamedTuple):
    """The numbered blocks of a UNet.

    Attributes:
        period: blocks of a level: its layers in its down block and the resampling; as many layers in its up block.
        down: numbers of the input blocks after the first.
        up: number of an output block -> whether it has a transformer, which comes before an upsampler.
    """

    period: int
    down: set[int]
    up: dict[int, bool]


def blocks_of_file(prefix: str, shapes: Iterable[str]) -> Blocks:
    """Reads the blocks off names; the dots may be left out, as averaged weights are stored."""
    pattern = re.compile(re.escape(prefix) + r"(in|out)put_blocks\.?(\d+)\.?(\d)\.?([a-z_]+).*")
    parts = {match.groups() for name in shapes if (match := pattern.fullmatch(name))}
    down = {int(number) for side, number, *_ in parts if side == "in"} - {0}
    resampling = [int(number) for side, number, _, part in parts if side == "in" and part.startswith("op")]
    up = {int(number): False for side, number, *_ in parts if side == "out"}
    up |= {int(number): True for side, number, at, part in parts if side == "out" and at == "1" and part[:4] != "conv"}
    return Blocks(math.gcd(*resampling) or max(down, default=0) + 1, down, up)


def blocks_of_tree(paths: Iterable[str]) -> Blocks:
    """Reads the blocks off our paths."""
    pattern = re.compile(r"(down|up)_blocks_(\d+)/layers_(\d+)/(\w+)/.*")
    parts = [match.groups() for path in paths if (match := pattern.fullmatch(path))]
    layers = {(side, int(level), int(layer), part == "attention") for side, level, layer, part in parts}
    period = max((layer for side, _, layer, _ in layers if side == "down"), default=0) + 2
    levels = {level for side, level, *_ in layers if side == "down"}
    down = {level * period + layer + 1 for side, level, layer, _ in layers if side == "down"}
    up = {level * period + layer: False for side, level, layer, _ in layers if side == "up"}
    up |= {level * period + layer: True for side, level, layer, attends in layers if side == "up" and attends}
    return Blocks(period, down | {(level + 1) * period for level in levels}, up)


def numbered_rows(blocks: Blocks, layer: Callable[[str, str], list[Row]], transformers: int) -> list[Row]:
    """Returns the rows of the numbered blocks.

    Args:
        blocks: which there are.
        layer: gives the rows of a layer of a name there and a path here.
        transformers: parts of a layer that come between its residual block and an upsampler, where it has them.
    """
    rows = []
    for number in sorted(blocks.down):
        level, index = divmod(number - 1, blocks.period)
        if index == blocks.period - 1:
            rows.append(Row(f"input_blocks.{number}.0.op", f"down_blocks_{level}/downsample", CONV))
        else:
            rows += layer(f"input_blocks.{number}", f"down_blocks_{level}/layers_{index}")
    for number, has_transformers in sorted(blocks.up.items()):
        level, index = divmod(number, blocks.period)
        rows += layer(f"output_blocks.{number}", f"up_blocks_{level}/layers_{index}")
        if index == blocks.period - 1:
            at = 1 + transformers * has_transformers
            rows.append(Row(f"output_blocks.{number}.{at}.conv", f"up_blocks_{level}/upsample", CONV))
    return rows


def _network(blocks: Blocks, projection: Kind) -> list[Row]:
    """What UNets and ControlNets share, and the up blocks, which a ControlNet has no blocks of."""
    transformer = transformer_rows(projection)

    def layer(theirs: str, ours: str) -> list[Row]:
        return under(f"{theirs}.0.", f"{ours}/resnet/", RESNET) + under(
            f"{theirs}.1.", f"{ours}/attention/", transformer
        )

    if not blocks.down:
        return []
    return [
        Row("time_embed.0", "time_embedding/linear_1", DENSE),
        Row("time_embed.2", "time_embedding/linear_2", DENSE),
        Row("label_emb.0.0", "add_embedding/linear_1", DENSE),
        Row("label_emb.0.2", "add_embedding/linear_2", DENSE),
        Row("input_blocks.0.0", "conv_in", CONV),
        *under("middle_block.0.", "mid_block/resnet_0/", RESNET),
        *under("middle_block.1.", "mid_block/attention/", transformer),
        *under("middle_block.2.", "mid_block/resnet_1/", RESNET),
        *numbered_rows(blocks, layer, transformers=1),
    ]


def unet_rows(blocks: Blocks, projection: Kind) -> list[Row]:
    """Returns the rows of a UNet of these blocks, [] where it has none; `projection` is its transformers' kind."""
    ends = [Row("out.0", "conv_norm_out", NORM), Row("out.2", "conv_out", CONV)]
    return _network(blocks, projection) + ends if blocks.down and blocks.up else []


def _named(kind: str, prefix: str, projection: Kind) -> str:
    return f"original {kind} ({prefix}*{', linear projections' if projection is DENSE else ''})"


def _unet_table(prefix: str, projection: Kind) -> Table:
    return FamilyTable(
        _named("UNet", prefix, projection),
        lambda shapes: under(prefix, "", unet_rows(blocks_of_file(prefix, shapes), projection)),
        lambda shapes: under(prefix, "", unet_rows(blocks_of_tree(shapes), projection)),
    )


EMA = "model_ema.diffusion_model"
EMA_COUNTERS = [Row(f"model_ema.{name}", name, BUFFER) for name in ("decay", "num_updates")]
"""Left in some files whose averages were taken out; then they are kept with the noise schedule."""


def _averaged_rows(blocks: Blocks, projection: Kind) -> list[Row]:
    """A running average is kept in buffers, whose names may hold no dots: all are left out after the prefix."""
    rows = [
        Row(EMA + f"{row.theirs}.{their_leaf}".replace(".", ""), f"{row.ours}/{our_leaf}", {"": ("", layout)})
        for row in unet_rows(blocks, projection)
        for their_leaf, (our_leaf, layout) in row.kind.items()
    ]
    return rows and rows + EMA_COUNTERS


def _averaged_table(projection: Kind) -> Table:
    return FamilyTable(
        _named("averaged UNet", EMA, projection),
        lambda shapes: _averaged_rows(blocks_of_file(EMA, shapes), projection),
        lambda shapes: _averaged_rows(blocks_of_tree(shapes), projection),
    )


def _controlnet_rows(blocks: Blocks, hint_layers: list[int], projection: Kind) -> list[Row]:
    """`hint_layers` are the places of the convolutions over the control picture, activations between them."""
    last = max(hint_layers, default=0)
    names = {0: "conv_in", last: "conv_out"}
    rows = [
        *_network(blocks, projection),
        *(
            Row(f"input_hint_block.{at}", f"controlnet_cond_embedding/{names.get(at, f'blocks_{at // 2 - 1}')}", CONV)
            for at in hint_layers
        ),
        Row("zero_convs.{i}.0", "controlnet_down_blocks_{i}", DENSE_AS_CONV),
        Row("middle_block_out.0", "controlnet_mid_block", DENSE_AS_CONV),
    ]
    return rows if blocks.down and hint_layers else []


def _hint_layers_of_file(prefix: str, shapes: Iterable[str]) -> list[int]:
    pattern = re.compile(re.escape(prefix) + r"input_hint_block\.(\d+)\.weight")
    return sorted({int(match[1]) for name in shapes if (match := pattern.fullmatch(name))})


def _hint_layers_of_tree(paths: Iterable[str]) -> list[int]:
    pattern = re.compile(r"controlnet_cond_embedding/(conv_in|conv_out|blocks_\d+)/kernel")
    return [2 * i for i in range(sum(bool(pattern.fullmatch(path)) for path in paths))]


def _controlnet_table(prefix: str, projection: Kind) -> Table:
    def of_file(shapes: Shapes) -> list[Row]:
        hint_layers = _hint_layers_of_file(prefix, shapes)
        return under(prefix, "", _controlnet_rows(blocks_of_file(prefix, shapes), hint_layers, projection))

    def of_tree(shapes: Shapes) -> list[Row]:
        return under(prefix, "", _controlnet_rows(blocks_of_tree(shapes), _hint_layers_of_tree(shapes), projection))

    return FamilyTable(_named("ControlNet", prefix, projection), of_file, of_tree)


VAE_RESNET = [
    *alike(norm1=NORM, conv1=CONV, norm2=NORM, conv2=CONV),
    Row("nin_shortcut", "conv_shortcut", DENSE_AS_CONV),
]
VAE_HALF = [
    *alike(conv_in=CONV),
    *under("mid.block_1.", "mid_block/resnet_0/", VAE_RESNET),
    Row("mid.attn_1.norm", "mid_block/attention/group_norm", NORM),
    *(Row(f"mid.attn_1.{name}", f"mid_block/attention/to_{name}", DENSE_AS_CONV) for name in "qkv"),
    Row("mid.attn_1.proj_out", "mid_block/attention/to_out", DENSE_AS_CONV),
    *under("mid.block_2.", "mid_block/resnet_1/", VAE_RESNET),
    Row("norm_out", "conv_norm_out", NORM),
    Row("conv_out", "conv_out", CONV),
]
VAE_TRAINING = [
    Row(f"loss.{name}", f"loss.{name}".replace(".", "/"), BUFFER)
    for name in (
        "logvar",
        *(f"perceptual_loss.scaling_layer.{leaf}" for leaf in ("shift", "scale")),
        *(f"perceptual_loss.net.slice{{i}}.{{j}}.{leaf}" for leaf in ("weight", "bias")),
        "perceptual_loss.lin{i}.model.1.weight",
        *(
            f"discriminator.main.{{i}}.{leaf}"
            for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        ),
    )
]
"""What an autoencoder was trained with, in files that are whole training states."""


def _vae_rows(up_levels: set[int]) -> list[Row]:
    up_levels = {level for i, level in enumerate(sorted(up_levels)) if i == level}  # after a gap there is none
    coarsest = max(up_levels, default=0)
    rows = [
        *under("encoder.", "encoder/", VAE_HALF),
        *under("encoder.down.{i}.block.{j}.", "encoder/down_blocks_{i}/resnets_{j}/", VAE_RESNET),
        Row("encoder.down.{i}.downsample.conv", "encoder/down_blocks_{i}/downsample", CONV),
        *under("decoder.", "decoder/", VAE_HALF),
        *alike(quant_conv=DENSE_AS_CONV, post_quant_conv=DENSE_AS_CONV),
        *VAE_TRAINING,
    ]
    for level in sorted(up_levels):
        theirs, ours = f"decoder.up.{level}", f"decoder/up_blocks_{coarsest - level}"
        rows += under(f"{theirs}.block.{{j}}.", f"{ours}/resnets_{{j}}/", VAE_RESNET)
        rows.append(Row(f"{theirs}.upsample.conv", f"{ours}/upsample", CONV))
    return rows if up_levels else []


def _vae_table(prefix: str) -> Table:
    def rows(pattern: str, names: Iterable[str]) -> list[Row]:
        levels = {int(match[1]) for name in names if (match := re.match(pattern, name))}
        return under(prefix, "", _vae_rows(levels))

    return FamilyTable(
        f"original autoencoder ({prefix}*)",
        lambda shapes: rows(re.escape(prefix) + r"decoder\.up\.(\d+)\.", shapes),
        lambda shapes: rows(r"decoder/up_blocks_(\d+)/", shapes),
    )


def _clip_table(prefix: str, within: str = "") -> Table:
    """transformers' CLIP below a prefix; `within` is a part of its names that the file leaves out."""
    lacking = f" without {within}" if within else ""
    return Table(f"original CLIP text{lacking} ({prefix}*)", under(prefix, "", without(within, CLIP_TEXT_ROWS)))


OPENCLIP_LAYER = [
    Row("ln_1", "layer_norm1", NORM),
    *(
        Row("attn.in_proj_weight", f"self_attn/{name}_proj/kernel", {"": ("", MATRIX)}, (i, 3))
        for i, name in enumerate("qkv")
    ),
    *(Row("attn.in_proj_bias", f"self_attn/{name}_proj/bias", RAW, (i, 3)) for i, name in enumerate("qkv")),
    Row("attn.out_proj", "self_attn/out_proj", DENSE),
    Row("ln_2", "layer_norm2", NORM),
    Row("mlp.c_fc", "mlp/fc1", DENSE),
    Row("mlp.c_proj", "mlp/fc2", DENSE),
]
OPENCLIP_ROWS = [
    *alike(token_embedding=EMBEDDING),
    Row("positional_embedding", "position_embedding/embedding", RAW),
    *under("transformer.resblocks.{i}.", "layers_{i}/", OPENCLIP_LAYER),
    Row("ln_final", "final_layer_norm", NORM),
    Row("text_projection", "text_projection/kernel", RAW),
    *alike(logit_scale=BUFFER),
]


def _openclip_table(prefix: str) -> Table:
    return Table(f"original OpenCLIP text ({prefix}*)", under(prefix, "", OPENCLIP_ROWS))


SD15_UNET = _unet_table("model.diffusion_model.", DENSE_AS_CONV)
SDXL_UNET = _unet_table("model.diffusion_model.", DENSE)
SD15_EMA = _averaged_table(DENSE_AS_CONV)
SDXL_EMA = _averaged_table(DENSE)
SD15_CONTROLNET = _controlnet_table("control_model.", DENSE_AS_CONV)
SDXL_CONTROLNET = _controlnet_table("control_model.", DENSE)
SD_VAE = _vae_table("first_stage_model.")
SD15_TEXT = _clip_table("cond_stage_model.transformer.")
SD2_TEXT = _openclip_table("cond_stage_model.model.")
SDXL_TEXT = _clip_table("conditioner.embedders.0.transformer.")
SDXL_TEXT_2 = _openclip_table("conditioner.embedders.1.model.")

ORIGINAL_UNETS = (
    SD15_UNET,
    SDXL_UNET,
    *(_unet_table(prefix, kind) for prefix in ("diffusion_model.", "") for kind in (DENSE_AS_CONV, DENSE)),
)
ORIGINAL_AVERAGED_UNETS = (SD15_EMA, SDXL_EMA)
ORIGINAL_CONTROLNETS = (
    SD15_CONTROLNET,
    SDXL_CONTROLNET,
    *(_controlnet_table("", kind) for kind in (DENSE_AS_CONV, DENSE)),
)
ORIGINAL_VAES = (SD_VAE, _vae_table(""))
ORIGINAL_TEXT_ENCODERS = (
    SD15_TEXT,
    _clip_table("cond_stage_model.transformer.", within="text_model."),  # in some early models
    SD2_TEXT,
    SDXL_TEXT,
    _clip_table("conditioner.embedders.0.transformer.", within="text_model."),
)
ORIGINAL_TEXT_ENCODERS_2 = (SDXL_TEXT_2, _openclip_table("conditioner.embedders.0.model."))  # SDXL's refiner has one
NOISE_SCHEDULE = Table(
    "original noise schedule",
    [
        *(
            Row(name, name, BUFFER)
            for name in (
                "betas",
                "alphas_cumprod",
                "alphas_cumprod_prev",
                "sqrt_alphas_cumprod",
                "sqrt_one_minus_alphas_cumprod",
                "log_one_minus_alphas_cumprod",
                "sqrt_recip_alphas_cumprod",
                "sqrt_recipm1_alphas_cumprod",
                "posterior_variance",
                "posterior_log_variance_clipped",
                "posterior_mean_coef1",
                "posterior_mean_coef2",
                "lvlb_weights",
                "logvar",
                "scale_factor",
                "scale_arr",
                "v_pred",  # empty tensors by which community models say how they were trained
                "ztsnr",
                "edm_mean",
                "edm_std",
            )
        ),
        *(Row(f"edm_vpred.{name}", f"edm_vpred/{name}", BUFFER) for name in ("sigma_max", "sigma_min")),
        Row("denoiser.sigmas", "sigmas", BUFFER),
        *EMA_COUNTERS,
    ],
)


class LeftoverTable(Table):
    """Names of what tools leave in whole checkpoints and no network here wants; each is its own path."""

    def __init__(self, name: str, patterns: Iterable[str]):
        super().__init__(name, [])
        self._pattern = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))

    def to_ours(self, name: str) -> list[Match]:
        return [Match(name, SAME, True)] if self._pattern.fullmatch(name) else []

    def to_theirs(self, path: str) -> Match | None:
        return next(iter(self.to_ours(path)), None)


LEFTOVERS = LeftoverTable(
    "leftovers of tools",
    (
        r"embedding_manager\..*",  # of textual inversion, in the original code's training states
        r"(model\.)?safety_checker\..*",
        r"bundle_emb\..*",  # embeddings beside a LoRA
        r"model_ema\.(encoder|decoder|quant_conv|post_quant_conv|loss).*",  # of an autoencoder's training
        r"first_stage_model\.model_ema\..*",
        r"(optimizer_states|lr_schedulers|loops|callbacks|hyper_parameters)\..*",  # of Lightning's training states
        r"depth_model\..*",  # by which Stable Diffusion 2's depth-to-image model sees its pictures
        r"cond_stage_model\.((model|transformer)\.)?(logit_scale|text_projection)|cond_stage_model\.model\.attn_mask",
        r"cond_stage_model\.(model\.visual|transformer\.vision_model|transformer\.visual_projection)\..*",  # whole CLIP
        r"cond_stage_model\.transformer\.(text_model\.)?embeddings\.position_ids",  # of another version's names
        r"conditioner\.embedders\.\d\.((model|transformer)\.attn_mask|logit_scale|text_projection|model\.visual\..*)",
        r"conditioner\.embedders\.1\.model\.transformer\..*position_ids",
        r"denoiser\.(log_sigmas|alphas_cumprod)",
        r"embedder\.model\.(?!visual\.).*",  # the text side of DynamiCrafter's picture encoder
        r"global_step|epoch|iteration|n_averaged|ema_step|decay|num_updates|optimization_step",
    ),
)
