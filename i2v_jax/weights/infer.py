"""Configs read off parameters' shapes, for files that carry no config: single-file checkpoints, parts of a UNet.

What shapes do not tell (heads, activations, scaling) is as in the published models.
"""

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from i2v_jax.errors import InputError, nearest
from i2v_jax.models import i3d, ifnet, upscaler
from i2v_jax.models.adapters import ADAPTER_PATH, adapters_in, by_site
from i2v_jax.models.adapters.text_in_time import NAME
from i2v_jax.models.clip import CLIPTextConfig, CLIPVisionConfig
from i2v_jax.models.controlnet import ControlNetConfig, of_unet
from i2v_jax.models.dino import DINOConfig
from i2v_jax.models.dover import DOVERConfig
from i2v_jax.models.dynamicrafter import DYNAMICRAFTER_256, INIT_HEADS, DynamiCrafterConfig
from i2v_jax.models.image_projection import AnyConfig, config_from_shapes
from i2v_jax.models.lpips import BACKBONES, LPIPSConfig
from i2v_jax.models.motion import PICTURE_INPUT, MotionConfig
from i2v_jax.models.raft import LARGE, SMALL, RAFTConfig
from i2v_jax.models.sparse_control import SparseControlNetConfig, of_controlnet
from i2v_jax.models.t2i_adapter import T2IAdapterConfig
from i2v_jax.models.unet import SD15, SDXL, AddedConditioning, UNetConfig
from i2v_jax.models.vae import VAEConfig
from i2v_jax.models.video_convnext import ConvNeXtConfig
from i2v_jax.models.video_swin import SwinConfig
from i2v_jax.weights.formats.dynamicrafter import is_dynamicrafter

Shapes = Mapping[str, tuple[int, ...]]

MAX_LEVELS = 8  # published models have 3 or 4
OPENCLIP_CONTEXTS = (1024, 1280, 2048)  # widths of the prompts of SD2, of SDXL's refiner, of SDXL
OPENCLIP_TEXT_WIDTHS = (1024, 1280)  # H, bigG
OPENCLIP_VISION_WIDTHS = (1280, 1664)

_PLACE = re.compile(r"(?:\w+/)?(?:(?P<side>down|up)_blocks_(?P<level>\d+)/\w+_(?P<layer>\d+)|mid_block)/(?P<part>.+)")
_LAST_AXIS_IS_WIDTH = re.compile(
    r"(?:resnet(?:_\d+)?/)?conv[12]/(?:kernel|bias)"
    r"|(?:attention|motion)/(?:norm/scale|blocks_\d+/attn[12]/(?:\w+/)?to_(?:q|k|v|out)/kernel)"
)
_CLIP_NORM = r"layers_\d+/layer_norm\d/(?:scale|bias)"  # there are many, so that one odd tensor is then what is wrong
QUERIES = rf".*/motion/{NAME}/queries"  # one for each frame that motion modules know


def infer_config(component: str, shapes: Shapes, **known: Any) -> Any:
    """Returns the config of the network, whole or in part, that has parameters of these shapes.

    What shapes do not tell follows the published models:
    - UNet: 8 heads; heads of 64 channels where prompts are 1024, 1280 or 2048 wide or projections linear (SD2, SDXL).
      Of a part (motion modules, an adapter), the rest is as in SD1.5 or SDXL where it has their widths.
    - motion modules: 8 heads; 32 positions where there is no position table.
    - CLIP: heads of 64 channels in text encoders, 16 heads in picture encoders 1024 wide or more; "gelu" for OpenCLIP's
      widths, "quick_gelu" for others.
    - T2I-Adapter: one channel or three, unshuffled by 8 or by 16 (SDXL), of which the first layer's width tells.
    - DynamiCrafter: the frame rate that stands for none, 24, or the stride 3 where image tokens have learned strengths.
    - autoencoder: SD1.5's scaling factor.
    - group norms: 32 groups, or fewer where a width does not divide by 32.

    Args:
        component: which network the shapes are of: `unet`, `vae`, ...
        shapes: path in our tree -> shape; buffers (position tables) may be among them.
        known: fields of the config to take as given, such as `linear_projection` or `scaling_factor`.

    Raises:
        InputError: shapes that no such network has; the message names the path.
    """
    if component not in _INFER:
        raise InputError(f"No config can be inferred for {component!r}.{nearest(component, _INFER)}")
    return dataclasses.replace(_INFER[component](shapes, known), **known)


def _unet(shapes: Shapes, known: Mapping[str, Any]) -> UNetConfig:
    is_part = all("/motion/" in path or ADAPTER_PATH.fullmatch(path) for path in shapes)
    levels = _read_levels(shapes)
    like = _published(levels.widths) if is_part else _plain(levels.widths)
    widths = like.block_out_channels
    last = len(widths) - 1

    attends, blocks = {"down": set(), "up": set()}, defaultdict(dict)
    for path in shapes:
        place = _PLACE.fullmatch(path)
        if place and place["part"].startswith("attention/"):
            level = int(place["level"] or 0)
            attends.get(place["side"], set()).add(level)
            if block := re.match(r"attention/blocks_(\d+)/", place["part"]):
                blocks[level if place["side"] == "down" else last - level][int(block[1])] = path
    if blocks or not is_part:
        down_attention, up_attention = (tuple(i in attends[side] for i in range(last + 1)) for side in ("down", "up"))
        depth = tuple(_count(blocks[i]) if i in blocks else 1 for i in range(last + 1))
    else:
        down_attention, up_attention, depth = like.down_attention, like.up_attention, like.transformer_depth
    context = _context(shapes) or like.cross_attention_dim
    linear = known.get("linear_projection", context in OPENCLIP_CONTEXTS)
    motion = _motion(shapes, widths)
    adapters = [adapter.name for adapter in adapters_in(shapes)]
    return UNetConfig(
        in_channels=_size(shapes, "conv_in/kernel", 2, 4) or like.in_channels,
        out_channels=_size(shapes, "conv_out/kernel", 3, 4) or like.out_channels,
        block_out_channels=widths,
        layers_per_block=levels.layers_per_block,
        down_attention=down_attention,
        up_attention=up_attention,
        transformer_depth=depth,
        num_heads=tuple(_heads(width, linear or context in OPENCLIP_CONTEXTS) for width in widths),
        cross_attention_dim=context,
        linear_projection=linear,
        norm_groups=math.gcd(32, *widths),
        added_conditioning=like.added_conditioning if is_part else _added_conditioning(shapes),
        motion=motion,
        pooled_norms=bool(motion and motion.max_positions == 24 and not motion.mid_block),  # AnimateDiff v1
        **by_site(adapters),
    )


def _any_unet(shapes: Shapes, known: Mapping[str, Any]) -> UNetConfig | DynamiCrafterConfig:
    return (_dynamicrafter if is_dynamicrafter(shapes) else _unet)(shapes, known)


def _dynamicrafter(shapes: Shapes, known: Mapping[str, Any]) -> DynamiCrafterConfig:
    levels = _read_levels(shapes)
    widths = _plain(levels.widths).block_out_channels
    inner = _shape(shapes, "init_attn/proj_in/kernel", 2)[1]
    if inner % INIT_HEADS:
        raise InputError(f"'init_attn/proj_in/kernel' is {inner} wide; wanted {INIT_HEADS} heads.")
    attends = {int(match[1]) for path in shapes if (match := re.match(r"down_blocks_(\d+)/\w+/attention/", path))}
    image_scale = any(path.endswith("/attn2/alpha") for path in shapes)
    joined = _size(shapes, "init_attn/cc_projection/kernel", 0, 2)
    return DynamiCrafterConfig(
        in_channels=_shape(shapes, "conv_in/kernel", 4)[2],
        out_channels=_shape(shapes, "conv_out/kernel", 4)[3],
        block_out_channels=widths,
        layers_per_block=levels.layers_per_block,
        level_attention=tuple(level in attends for level in range(len(widths))),
        head_dim=inner // INIT_HEADS,
        cross_attention_dim=_context(shapes) or DynamiCrafterConfig.cross_attention_dim,
        default_fs=DYNAMICRAFTER_256.default_fs if image_scale else DynamiCrafterConfig.default_fs,
        image_scale=image_scale,
        text_in_time=joined is not None,
        time_context_dim=DynamiCrafterConfig.time_context_dim if joined is None else joined - inner,
    )


def _context(shapes: Shapes) -> int | None:
    """Width of a prompt's tokens: what cross-attentions' keys and values are made of, or else their adapters'."""
    cross = r".*/attention/blocks_\d+/attn2/"
    places = (cross + r"to_[kv]/kernel", cross + r"\w+/to_[kv]/kernel", rf".*/motion/{NAME}/to_[kv]/kernel")
    return next(filter(None, (_size(shapes, place, 0, 2) for place in places)), None)


def _controlnet(shapes: Shapes, known: Mapping[str, Any]) -> ControlNetConfig:
    unet = _unet(shapes, known)
    pattern = re.compile(r"controlnet_cond_embedding/blocks_(\d+)/kernel")
    blocks = {int(match[1]): path for path in shapes if (match := pattern.fullmatch(path))}
    convolutions = ["controlnet_cond_embedding/conv_in/kernel", *(blocks[i] for i in range(1, _count(blocks), 2))]
    widths = tuple(_shape(shapes, path, 4)[3] for path in convolutions)
    return dataclasses.replace(of_unet(unet), up_attention=unet.down_attention[::-1], picture_widths=widths)


def _sparse_controlnet(shapes: Shapes, known: Mapping[str, Any]) -> SparseControlNetConfig:
    first = "controlnet_cond_embedding/kernel"
    reads_latents = first in shapes
    unet = dataclasses.replace(_unet(shapes, known), pooled_norms=False)
    if unet.motion is None:
        raise InputError("No motion modules, which every SparseCtrl has.")
    if reads_latents:
        controlnet = dataclasses.replace(of_unet(unet), up_attention=unet.down_attention[::-1], picture_widths=())
    else:
        first = "controlnet_cond_embedding/conv_in/kernel"
        controlnet = dataclasses.replace(_controlnet(shapes, known), pooled_norms=False)
    channels, usual = _shape(shapes, first, 4)[2], 4 if reads_latents else 3
    has_mask = channels != usual  # published ones have
    return of_controlnet(
        controlnet,
        motion=dataclasses.replace(unet.motion, attentions=1),
        picture_channels=channels - has_mask,
        has_mask=has_mask,
    )


def _t2i_adapter(shapes: Shapes, known: Mapping[str, Any]) -> T2IAdapterConfig:
    levels = _count({int(match[1]): path for path in shapes if (match := re.match(r"body_(\d+)/", path))})
    blocks = {int(match[1]): path for path in shapes if (match := re.match(r"body_\d+/resnets_(\d+)/", path))}
    is_light = any(path.endswith("/out_conv/kernel") for path in shapes)
    last = "out_conv" if is_light else "resnets_0/block1"
    widths = tuple(_size(shapes, f"body_{level}/{last}/kernel", -1, 2 if is_light else 4) for level in range(levels))
    if not levels or None in widths:
        raise InputError(f"No blocks of a T2I-Adapter are among {', '.join(sorted(shapes)[:5])}.")
    first = ("body_0/in_conv/kernel", 2) if is_light else ("conv_in/kernel", 4)
    read = _shape(shapes, *first)[-2]
    fitting = [(channels, scale) for scale in (8, 16) for channels in (3, 1) if channels * scale**2 == read]
    if not fitting:
        raise InputError(f"{first[0]!r} reads {read} channels; wanted 64 or 192 (SD1.5), 256 or 768 (SDXL).")
    channels, scale = fitting[0]
    kind = "light_adapter" if is_light else "full_adapter_xl" if scale == 16 else "full_adapter"
    return T2IAdapterConfig(kind, channels, widths, _count(blocks), scale)


def _vae(shapes: Shapes, known: Mapping[str, Any]) -> VAEConfig:
    levels = _read_levels(shapes)
    widths = _plain(levels.widths).block_out_channels
    return VAEConfig(
        block_out_channels=widths,
        layers_per_block=levels.layers_per_block,
        latent_channels=_size(shapes, "decoder/conv_in/kernel", 2, 4) or VAEConfig.latent_channels,
        norm_groups=math.gcd(32, *widths),
    )


def _clip_text(shapes: Shapes, known: Mapping[str, Any]) -> CLIPTextConfig:
    vocabulary, width = _shape(shapes, "token_embedding/embedding", 2)
    width = _size(shapes, _CLIP_NORM, 0, 1) or width
    return CLIPTextConfig(
        **_clip_fields(shapes, width, "text_projection"),
        num_heads=width // 64 if width % 64 == 0 else 1,
        hidden_act="gelu" if width in OPENCLIP_TEXT_WIDTHS else "quick_gelu",
        vocab_size=vocabulary,
        max_positions=_shape(shapes, "position_embedding/embedding", 2)[0],
    )


def _clip_vision(shapes: Shapes, known: Mapping[str, Any]) -> CLIPVisionConfig:
    patch, _, _, width = _shape(shapes, "patch_embedding/kernel", 4)
    width = _size(shapes, _CLIP_NORM, 0, 1) or width
    positions = _shape(shapes, "position_embedding/embedding", 2)[0]
    grid = math.isqrt(positions - 1)
    if not grid or grid**2 + 1 != positions:
        raise InputError(f"'position_embedding/embedding' has {positions} rows; wanted one more than a square.")
    heads = 16 if width >= 1024 else width // 64
    return CLIPVisionConfig(
        **_clip_fields(shapes, width, "visual_projection"),
        num_heads=heads if heads and width % heads == 0 else 1,
        hidden_act="gelu" if width in OPENCLIP_VISION_WIDTHS else "quick_gelu",
        image_size=grid * patch,
        patch_size=patch,
    )


def _clip_fields(shapes: Shapes, width: int, projection: str) -> dict[str, Any]:
    layers = {int(match[1]): path for path in shapes if (match := re.match(r"layers_(\d+)/", path))}
    return dict(
        width=width,
        mlp_width=_size(shapes, r"layers_\d+/mlp/fc1/bias", 0, 1) or _shape(shapes, "layers_0/mlp/fc1/kernel", 2)[1],
        num_layers=_count(layers),
        projection_dim=_size(shapes, f"{projection}/kernel", 1, 2),
    )


def _image_projection(shapes: Shapes, known: Mapping[str, Any]) -> AnyConfig:
    try:
        return config_from_shapes(shapes, known.get("head_dim", 64))
    except (IndexError, TypeError, ArithmeticError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        held = ", ".join(f"{path!r} {list(shape)}" for path, shape in sorted(shapes.items())[:5])
        raise InputError(f"No image projection has such shapes: {held}, ...") from error


def _raft(shapes: Shapes, known: Mapping[str, Any]) -> RAFTConfig:
    is_large = any("/gru2_conv" in path for path in shapes)
    like = LARGE if is_large else SMALL
    last = "conv3" if like.bottleneck else "conv1"
    stages = tuple(_shape(shapes, f"feature_encoder/layer{i}_0/{last}/kernel", 4)[3] for i in (1, 2, 3))
    features = _shape(shapes, "feature_encoder/conv2/kernel", 4)[3]
    hidden = _shape(shapes, "update_block/gru1_convz/kernel", 4)[3]
    layers = {
        name: tuple(_shape(shapes, f"update_block/{name}{k}/kernel", 4)[3] for k in range(1, count + 1))
        for name, count in (("convc", len(like.correlation_widths)), ("convf", 2))
    }
    looked_up = _shape(shapes, "update_block/convc1/kernel", 4)[2]
    squares = {n * (2 * radius + 1) ** 2: (n, radius) for n in (1, 2, 3, 4) for radius in range(1, 9)}
    levels, radius = squares.get(looked_up, (like.levels, like.radius))
    return dataclasses.replace(
        like,
        widths=(_shape(shapes, "feature_encoder/conv1/kernel", 4)[3], *stages),
        features=features,
        hidden=hidden,
        context=_shape(shapes, "context_encoder/conv2/kernel", 4)[3] - hidden,
        levels=levels,
        radius=radius,
        correlation_widths=layers["convc"],
        flow_widths=layers["convf"],
        motion_width=_shape(shapes, "update_block/conv/kernel", 4)[3],
        flow_head=_shape(shapes, "update_block/flow_head_conv1/kernel", 4)[3],
    )


def _of_convolutions(infer: Callable[..., Any]) -> Callable[..., Any]:
    return lambda shapes, known: infer(lambda path: _shape(shapes, path, 4), shapes)


def _dover(shapes: Shapes, known: Mapping[str, Any]) -> DOVERConfig:
    head = _shape(shapes, "technical_head/fc_hid/kernel", 2)[1]
    return DOVERConfig(_swin(shapes), _convnext(shapes), head)


def _swin(shapes: Shapes) -> SwinConfig:
    start = "technical_backbone/"
    *patch, _, width = _shape(shapes, f"{start}patch_embed/proj/kernel", 5)
    tables = {path: shape for path, shape in shapes.items() if path.endswith("/relative_position_bias_table")}
    stages = _numbered(tables, rf"{start}layers_(\d+)/.*")
    blocks = [_numbered(tables, rf"{start}layers_{i}/blocks_(\d+)/.*") for i in range(stages)]
    first = [f"{start}layers_{i}/blocks_0/" for i in range(stages)]
    near = sum(f"{path}attn/fragment_position_bias_table" in shapes for path in first)
    rows = _shape(shapes, f"{first[0]}attn/relative_position_bias_table", 2)[0] if first else 0
    # a window as wide as high: of the products (2d - 1) (2h - 1)^2 that with the widest one
    sides = [h for h in range(1, 33) if rows % (2 * h - 1) ** 2 == 0 and rows // (2 * h - 1) ** 2 % 2]
    if not sides:
        raise InputError(f"{first[0] if first else start!r}: {rows} biases of positions are those of no window.")
    side = sides[-1]
    return SwinConfig(
        width=width,
        depths=tuple(blocks),
        heads=tuple(_shape(shapes, f"{path}attn/relative_position_bias_table", 2)[1] for path in first),
        window=((rows // (2 * side - 1) ** 2 + 1) // 2, side, side),
        patch=tuple(patch),
        mlp_ratio=_shape(shapes, f"{first[0]}fc1/kernel", 2)[1] // width,
        fragment_stages=near,
    )


def _convnext(shapes: Shapes) -> ConvNeXtConfig:
    start = "aesthetic_backbone/"
    stages = _numbered(shapes, rf"{start}stages_(\d+)/.*")
    depths = tuple(_numbered(shapes, rf"{start}stages_{i}/blocks_(\d+)/.*") for i in range(stages))
    longest = max(range(stages), key=lambda i: depths[i], default=0)
    kernels = [f"{start}stages_{longest}/blocks_{j}/dwconv/kernel" for j in range(max(depths, default=0))]
    frames = [_shape(shapes, path, 5)[0] for path in kernels]
    period = next((n for n in range(1, len(frames) + 1) if frames == (frames[:n] * len(frames))[: len(frames)]), 0)
    return ConvNeXtConfig(
        depths=depths,
        widths=tuple(_shape(shapes, f"{start}downsample_{i}/conv/kernel", 5)[4] for i in range(stages)),
        frames=tuple(frames[:period]),
        stem=tuple(_shape(shapes, f"{start}downsample_0/conv/kernel", 5)[:3]),
    )


def _lpips(shapes: Shapes, known: Mapping[str, Any]) -> LPIPSConfig:
    def found(backbone):
        last = [stage.layers[-1].number for stage in BACKBONES[backbone]]
        return [shapes.get(f"features_{number}/kernel", ()) for number in last]

    backbone = max(BACKBONES, key=lambda name: sum(len(shape) == 4 for shape in found(name)))
    widths = [_axis(f"features of {backbone}, stage {i}", shape, -1) for i, shape in enumerate(found(backbone), 1)]
    return LPIPSConfig(backbone, tuple(widths))


def _dino(shapes: Shapes, known: Mapping[str, Any]) -> DINOConfig:
    patch, _, _, width = _shape(shapes, "patch_embedding/kernel", 4)
    places = _shape(shapes, "positions", 3)[1]
    grid = math.isqrt(max(places - 1, 0))
    if not grid or grid**2 + 1 != places:
        raise InputError(f"'positions' has {places} rows; wanted one more than a square.")
    fields = _clip_fields(shapes, width, "none")
    return DINOConfig(**fields, num_heads=max(1, width // 64), patch_size=patch, grid=grid)


def _numbered(paths: Iterable[str], pattern: str) -> int:
    """How many numbers paths have in the place of a pattern's group, counted from 0."""
    return _count({int(match[1]): path for path in paths if (match := re.fullmatch(pattern, path))})


_INFER: dict[str, Callable[[Shapes, Mapping[str, Any]], Any]] = {
    "unet": _any_unet,
    "unet_ema": _unet,
    "controlnet": _controlnet,
    "sparse_controlnet": _sparse_controlnet,
    "t2i_adapter": _t2i_adapter,
    "vae": _vae,
    "text_encoder": _clip_text,
    "text_encoder_2": _clip_text,
    "image_encoder": _clip_vision,
    "image_proj": _image_projection,
    "raft": _raft,
    "dover": _dover,
    "upscaler": _of_convolutions(upscaler.config_from_shapes),
    "ifnet": _of_convolutions(ifnet.config_from_shapes),
    "lpips": _lpips,
    "dino": _dino,
    "i3d": lambda shapes, known: i3d.config_from_shapes(lambda path, rank: _shape(shapes, path, rank)),
}


@dataclasses.dataclass(frozen=True)
class _Levels:
    """Width of each level, the finest first, None where nothing tells it; residual blocks in each down block."""

    widths: tuple[int | None, ...]
    layers_per_block: int


def _read_levels(shapes: Shapes) -> _Levels:
    places = {path: place for path in shapes if (place := _PLACE.fullmatch(path))}
    numbered = {path: place for path, place in places.items() if place["side"]}
    if not numbered:
        raise InputError(f"No blocks of several levels are among {', '.join(sorted(shapes)[:5]) or 'no parameters'}.")
    levels = _count({int(place["level"]): path for path, place in numbered.items()})
    if levels > MAX_LEVELS:
        raise InputError(f"{levels} levels of blocks; a network has at most {MAX_LEVELS}.")
    layers = {
        side: _count({int(place["layer"]): path for path, place in numbered.items() if place["side"] == side})
        for side in {place["side"] for place in numbered.values()}
    }

    votes = [Counter() for _ in range(levels)]  # one odd tensor is then what is wrong, not all others
    for path, place in places.items():
        if _LAST_AXIS_IS_WIDTH.fullmatch(place["part"]):
            number = int(place["level"] or 0)
            votes[number if place["side"] == "down" else levels - 1 - number][_axis(path, shapes[path], -1)] += 1
    widths = tuple(vote.most_common(1)[0][0] if vote else None for vote in votes)
    if not any(widths):
        raise InputError(f"Nothing tells how wide the network is among {', '.join(sorted(shapes)[:5])}.")
    return _Levels(widths, layers.get("down") or max(layers["up"] - 1, 1))


def _plain(widths: tuple[int | None, ...]) -> UNetConfig:
    """A UNet of these widths, an unknown one being its neighbour's, without anything that may be left out."""
    known = [i for i, width in enumerate(widths) if width]
    filled = tuple(widths[min(known, key=lambda j: abs(j - i))] for i in range(len(widths)))
    nowhere, once = (False,) * len(widths), (1,) * len(widths)
    return UNetConfig(
        block_out_channels=filled,
        down_attention=nowhere,
        up_attention=nowhere,
        transformer_depth=once,
        num_heads=once,
    )


def _published(widths: tuple[int | None, ...]) -> UNetConfig:
    """SD1.5 or SDXL, if it has these widths."""
    for config in (SD15, SDXL):
        theirs = config.block_out_channels
        if len(theirs) == len(widths) and all(width in (None, published) for width, published in zip(widths, theirs)):
            return config
    return _plain(widths)


def _added_conditioning(shapes: Shapes) -> AddedConditioning | None:
    width = _size(shapes, "add_embedding/linear_1/kernel", 0, 2)
    if width is None:
        return None
    time_dim = AddedConditioning.time_dim
    return AddedConditioning(time_dim if 6 * time_dim < width else width // 8, width)


def _motion(shapes: Shapes, widths: tuple[int, ...]) -> MotionConfig | None:
    paths = [path for path in shapes if "/motion/" in path]
    if not paths:
        return None
    tables = {path: shapes[path] for path in paths if path.endswith("/positions")}
    for path, shape in tables.items():
        if len(shape) != 3 or shape[2] not in widths:
            raise InputError(f"{path!r} has shape {list(shape)}; wanted [1, positions, channels].")
    blocks = {int(match[1]): path for path in paths if (match := re.match(r".*/motion/blocks_(\d+)/", path))}
    return MotionConfig(
        max_positions=_size(tables, ".*", 1, 3) or _size(shapes, QUERIES, 0, 2) or 32,
        mid_block=any(path.startswith("mid_block/") for path in paths),
        num_heads=math.gcd(8, *widths),
        num_layers=_count(blocks) or 1,
        norm_groups=math.gcd(32, *widths),
        conv_in_channels=_size(shapes, f"{PICTURE_INPUT}/motion/kernel", 2, 4),
    )


def _heads(width: int, of_64: bool) -> int:
    return width // 64 if of_64 and width % 64 == 0 else math.gcd(8, width)


def _count(numbered: Mapping[int, str]) -> int:
    """How many there are, numbered from 0 (each with a path that has it); InputError where a number is left out."""
    for wanted, number in enumerate(sorted(numbered)):
        if number != wanted:
            raise InputError(f"{numbered[number]!r} has number {number}, but nothing has number {wanted}.")
    return len(numbered)


def _size(shapes: Shapes, pattern: str, axis: int, rank: int) -> int | None:
    """The size along an axis that most tensors have whose path the pattern matches; None where there is none."""
    sizes = Counter(_axis(path, shapes[path], axis, rank) for path in shapes if re.fullmatch(pattern, path))
    return sizes.most_common(1)[0][0] if sizes else None


def _shape(shapes: Shapes, path: str, rank: int) -> tuple[int, ...]:
    if path not in shapes:
        raise InputError(f"Missing {path!r}.{nearest(path, shapes)}")
    for axis in range(rank):
        _axis(path, shapes[path], axis, rank)
    return shapes[path]


def _axis(path: str, shape: tuple[int, ...], axis: int, rank: int | None = None) -> int:
    if not shape or (rank is not None and len(shape) != rank) or shape[axis] < 1:
        wanted = f"{rank} sizes" if rank else "sizes"
        raise InputError(f"{path!r} has shape {list(shape)}; wanted {wanted} of at least 1.")
    return shape[axis]
