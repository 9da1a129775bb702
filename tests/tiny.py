"""Tiny models: settings in diffusers' and transformers' words, of which test files make their own, and a whole one."""

from pathlib import Path
from typing import Any

import diffusers
import transformers

from tests.processes import ROOT

SMALL: Path = ROOT / "tests" / "data" / "small"
"""A whole Stable Diffusion 1.5 of two levels, with an adapter, motion modules and an image encoder."""


def parts() -> dict[str, Any]:
    """Returns what a pipeline of diffusers is made of, but the scheduler, from `SMALL`."""
    kinds = dict(
        vae=diffusers.AutoencoderKL,
        text_encoder=transformers.CLIPTextModel,
        tokenizer=transformers.CLIPTokenizer,
        unet=diffusers.UNet2DConditionModel,
    )
    return {name: kind.from_pretrained(SMALL / name) for name, kind in kinds.items()}


def levels(*attending: bool, kind: str = "2D") -> dict[str, tuple[str, ...]]:
    """Block types of a UNet by which levels attend, the finest first; its way up is its way down turned round."""
    down = tuple(f"{'CrossAttn' if attends else ''}DownBlock{kind}" for attends in attending)
    return dict(down_block_types=down, up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)))


def autoencoder_levels(count: int) -> dict[str, tuple[str, ...]]:
    """Block types of an autoencoder."""
    return dict(down_block_types=("DownEncoderBlock2D",) * count, up_block_types=("UpDecoderBlock2D",) * count)


def of_xl(*depth: int, time_dim: int = 8, projection: int = 64) -> dict[str, Any]:
    """What makes a UNet one of SDXL's kind: depth by level, linear projections, pooled text and sizes."""
    return dict(
        use_linear_projection=True,
        transformer_layers_per_block=depth,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_dim,
        projection_class_embeddings_input_dim=projection,
    )


def of_controlnet(unet: dict[str, Any]) -> dict[str, Any]:
    """A UNet's settings without those of its way up, which a ControlNet has not."""
    return {name: value for name, value in unet.items() if name != "up_block_types"}


def motion(widths: tuple[int, ...], groups: int = 8, heads: int = 4, positions: int = 32) -> dict[str, Any]:
    """Settings of motion modules, one layer a block, none in the middle."""
    return dict(
        block_out_channels=widths,
        motion_layers_per_block=1,
        motion_norm_num_groups=groups,
        motion_num_attention_heads=heads,
        motion_max_seq_length=positions,
        use_motion_mid_block=False,
    )


def resampler_matrices(layer: str, width: int, inner: int, normal) -> dict[str, Any]:
    """The matrices of one layer of a published IP-Adapter's resampler, drawn by `normal(*shape)`."""
    return {
        f"{layer}.0.to_q.weight": normal(inner, width),
        f"{layer}.0.to_kv.weight": normal(2 * inner, width),
        f"{layer}.0.to_out.weight": normal(width, inner),
        f"{layer}.1.1.weight": normal(4 * width, width),
        f"{layer}.1.3.weight": normal(width, 4 * width),
    }


UNET = dict(
    block_out_channels=(16, 32),
    norm_num_groups=8,
    layers_per_block=1,
    cross_attention_dim=24,
    attention_head_dim=2,
    **levels(True, False),
)
"""Stable Diffusion 1.5's kind, of two levels."""
CLIP = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, projection_dim=24)
"""Of either encoder."""
SDXL = dict(
    block_out_channels=(320, 640, 1280),
    attention_head_dim=(5, 10, 20),
    cross_attention_dim=2048,
    **levels(False, True, True),
    **of_xl(1, 2, 10, time_dim=256, projection=2816),
)
"""The published one, to be made on the meta device."""
