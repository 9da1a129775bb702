"""The name tables of every format, by component; a file is read by the table that knows its names and shapes best."""

from collections.abc import Mapping

from i2v_jax.weights.formats.clip import CLIP_TEXT, CLIP_TEXT_FLAT, CLIP_VISION, CLIP_VISION_FLAT
from i2v_jax.weights.formats.controlnet import DIFFUSERS_CONTROLNET, DIFFUSERS_CONTROLNET_LINEAR
from i2v_jax.weights.formats.diffusers import (
    DIFFUSERS_IP_UNET,
    DIFFUSERS_IP_UNET_LINEAR,
    DIFFUSERS_PIA,
    DIFFUSERS_UNET,
    DIFFUSERS_UNET_LINEAR,
    DIFFUSERS_VAE,
    HOTSHOT_UNET,
    OLD_VAE,
    OLD_VAE_CONV,
    PIA,
    PUBLISHED_UNET,
    PUBLISHED_UNET_LINEAR,
)
from i2v_jax.weights.formats.dino import DINO_TABLES
from i2v_jax.weights.formats.dover import DOVER
from i2v_jax.weights.formats.dynamicrafter import DYNAMICRAFTER_PROJECTION, DYNAMICRAFTER_UNETS, OPENCLIP_VISION
from i2v_jax.weights.formats.flax import FLAX_TABLES
from i2v_jax.weights.formats.i3d import I3D_TABLES
from i2v_jax.weights.formats.ifnet import RIFE
from i2v_jax.weights.formats.ip_adapter import DIFFUSERS_IMAGE_PROJECTION, IMAGE_PROJECTION, IP_ADAPTER
from i2v_jax.weights.formats.lora import LORA_TABLES
from i2v_jax.weights.formats.lpips import LPIPS_TABLES
from i2v_jax.weights.formats.original import (
    LEFTOVERS,
    NOISE_SCHEDULE,
    ORIGINAL_AVERAGED_UNETS,
    ORIGINAL_CONTROLNETS,
    ORIGINAL_TEXT_ENCODERS,
    ORIGINAL_TEXT_ENCODERS_2,
    ORIGINAL_UNETS,
    ORIGINAL_VAES,
)
from i2v_jax.weights.formats.raft import RAFT_TABLES
from i2v_jax.weights.formats.sparse_control import SPARSE_TABLES
from i2v_jax.weights.formats.t2i_adapter import T2I_TABLES
from i2v_jax.weights.formats.upscaler import UPSCALER_TABLES
from i2v_jax.weights.names import Table

TABLES: Mapping[str, tuple[Table, ...]] = {
    "unet": (
        PIA,
        DIFFUSERS_PIA,
        DIFFUSERS_UNET,
        DIFFUSERS_UNET_LINEAR,
        PUBLISHED_UNET,
        PUBLISHED_UNET_LINEAR,
        HOTSHOT_UNET,
        IP_ADAPTER,
        DIFFUSERS_IP_UNET,
        DIFFUSERS_IP_UNET_LINEAR,
        *ORIGINAL_UNETS,
        *DYNAMICRAFTER_UNETS,
        *LORA_TABLES["unet"],
        *FLAX_TABLES["unet"],
    ),
    "vae": (DIFFUSERS_VAE, OLD_VAE, OLD_VAE_CONV, *ORIGINAL_VAES, *FLAX_TABLES["vae"]),
    "text_encoder": (
        CLIP_TEXT,
        CLIP_TEXT_FLAT,
        *ORIGINAL_TEXT_ENCODERS,
        *LORA_TABLES["text_encoder"],
        *FLAX_TABLES["text_encoder"],
    ),
    "text_encoder_2": (
        CLIP_TEXT,
        CLIP_TEXT_FLAT,
        *FLAX_TABLES["text_encoder"],
        *ORIGINAL_TEXT_ENCODERS_2,
        *LORA_TABLES["text_encoder_2"],
    ),
    "image_encoder": (CLIP_VISION, CLIP_VISION_FLAT, OPENCLIP_VISION, *FLAX_TABLES["image_encoder"]),
    "image_proj": (IMAGE_PROJECTION, DIFFUSERS_IMAGE_PROJECTION, DYNAMICRAFTER_PROJECTION),
    "unet_ema": ORIGINAL_AVERAGED_UNETS,
    "controlnet": (
        DIFFUSERS_CONTROLNET,
        DIFFUSERS_CONTROLNET_LINEAR,
        *ORIGINAL_CONTROLNETS,
        *FLAX_TABLES["controlnet"],
    ),
    "sparse_controlnet": SPARSE_TABLES,
    "t2i_adapter": T2I_TABLES,
    "raft": RAFT_TABLES,
    "dover": (DOVER,),
    "upscaler": UPSCALER_TABLES,
    "ifnet": (RIFE,),
    "lpips": LPIPS_TABLES,
    "dino": DINO_TABLES,
    "i3d": I3D_TABLES,
    "noise_schedule": (NOISE_SCHEDULE,),
    "leftovers": (LEFTOVERS,),
}
"""The formats of each component; of several that know a file equally well, the first."""
