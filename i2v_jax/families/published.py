"""Networks of published weights by the names that configs give them, for planning a run whose weights are not here."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from i2v_jax.encoders.controls import component as control
from i2v_jax.errors import InputError, nearest
from i2v_jax.families.arithmetic import Arithmetic
from i2v_jax.families.checks import check_training
from i2v_jax.families.family import family_of
from i2v_jax.families.model import assemble, miva_of_config
from i2v_jax.families.weights import Weights
from i2v_jax.hub import local
from i2v_jax.models import (
    clip,
    controlnet,
    dynamicrafter,
    image_projection,
    motion,
    sparse_control,
    t2i_adapter,
    unet,
    vae,
)
from i2v_jax.models.adapters import by_site, import_modules
from i2v_jax.weights.controls import assemble_controlnet, new_config

DYNAMICRAFTER = dict(
    unet=dynamicrafter.DYNAMICRAFTER,
    vae=vae.SD_VAE,
    text_encoder=clip.OPENCLIP_H_TEXT,
    image_encoder=clip.VIT_H_VISION,
    image_proj=image_projection.DYNAMICRAFTER_RESAMPLER,
)
PUBLISHED = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": dict(unet=unet.SD15, vae=vae.SD_VAE, text_encoder=clip.SD15_TEXT),
    "stabilityai/stable-diffusion-xl-base-1.0": dict(
        unet=unet.SDXL, vae=vae.SDXL_VAE, text_encoder=clip.SD15_TEXT, text_encoder_2=clip.OPENCLIP_BIGG_TEXT
    ),
    "Doubiiu/DynamiCrafter/model.ckpt": DYNAMICRAFTER | dict(unet=dynamicrafter.DYNAMICRAFTER_256),
    **dict.fromkeys(
        (f"Doubiiu/DynamiCrafter_{name}/model.ckpt" for name in ("512", "1024", "512_Interp")), DYNAMICRAFTER
    ),
    "guoyww/animatediff/mm_sd_v15.ckpt": dict(motion=motion.V1, pooled_norms=True),
    "guoyww/animatediff/mm_sd_v15_v2.ckpt": dict(motion=motion.V2, pooled_norms=False),
    "guoyww/animatediff/v3_sd15_mm.ckpt": dict(motion=motion.V3, pooled_norms=False),
    "guoyww/animatediff/mm_sdxl_v10_beta.ckpt": dict(motion=motion.SDXL_BETA, pooled_norms=False),
    "wangfuyun/AnimateLCM/AnimateLCM_sd15_t2v.ckpt": dict(motion=motion.ANIMATE_LCM, pooled_norms=False),
    **{
        f"ByteDance/AnimateDiff-Lightning/animatediff_lightning_{steps}step_diffusers.safetensors": dict(
            motion=motion.V2, pooled_norms=False
        )
        for steps in (1, 2, 4, 8)
    },
    "madebyollin/sdxl-vae-fp16-fix": vae.SDXL_VAE,
    "lllyasviel/control_v11p_sd15_openpose": controlnet.SD15_CONTROLNET,
    "xinsir/controlnet-openpose-sdxl-1.0": controlnet.SDXL_CONTROLNET,
    "guoyww/animatediff/v3_sd15_sparsectrl_rgb.ckpt": sparse_control.RGB,
    "guoyww/animatediff/v3_sd15_sparsectrl_scribble.ckpt": sparse_control.SCRIBBLE,
    "guoyww/animatediff-sparsectrl-rgb": sparse_control.RGB,
    "guoyww/animatediff-sparsectrl-scribble": sparse_control.SCRIBBLE,
    "TencentARC/t2iadapter_depth_sd15v2": t2i_adapter.FULL,
    "TencentARC/t2iadapter_openpose_sd14v1": t2i_adapter.FULL,
    "TencentARC/t2iadapter_sketch_sd15v2": t2i_adapter.FULL_GREY,
    "TencentARC/t2iadapter_canny_sd15v2": t2i_adapter.FULL_GREY,
    "TencentARC/t2iadapter_color_sd14v1": t2i_adapter.LIGHT,
    "TencentARC/t2i-adapter-canny-sdxl-1.0": t2i_adapter.FULL_XL,
    "TencentARC/t2i-adapter-sketch-sdxl-1.0": t2i_adapter.FULL_XL,
    "h94/IP-Adapter/models/ip-adapter-plus_sd15.safetensors": image_projection.IP_ADAPTER_PLUS_SD15,
    "h94/IP-Adapter/models/ip-adapter-plus-face_sd15.safetensors": image_projection.IP_ADAPTER_PLUS_SD15,
    "h94/IP-Adapter/models/ip-adapter-full-face_sd15.safetensors": image_projection.IP_ADAPTER_FULL_FACE_SD15,
    "h94/IP-Adapter/models/ip-adapter_sd15.safetensors": image_projection.IP_ADAPTER_SD15,
    "h94/IP-Adapter/models/image_encoder": clip.VIT_H_VISION,
    "h94/IP-Adapter/sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors": image_projection.IP_ADAPTER_PLUS_SDXL,
    "h94/IP-Adapter/sdxl_models/ip-adapter_sdxl.safetensors": image_projection.IP_ADAPTER_SDXL,
    "h94/IP-Adapter/sdxl_models/image_encoder": clip.VIT_BIGG_VISION,
}
OF_SLOTS = {"adapter": "first_frame", "image_adapter": "image_tokens"}
"""What is named of a model's weights, and the adapter that it holds."""
HALF_PRECISION_VAES = ("madebyollin/sdxl-vae-fp16-fix",)
"""SDXL's autoencoders that need no float32."""

UNREAD = (
    *("controls", "adapter", "tokenizer", "tokenizer_2", "trained"),
    *("adapter_modules", "configs", "motion_frames", "skip_unknown"),
)
"""Fields of `Weights` that name no network of their own."""


def networks_of_config(config: ConfigDict, device: jax.Device, **changes: Any) -> dict[str, Any]:
    """As `networks`, of a training's config on a device; `changes` are of the arithmetic."""
    arithmetic = Arithmetic.of_config(config, device)._replace(**changes)
    found = networks(Weights.of_config(config.weights), arithmetic, tuple(config.branches))
    check_training(config, found)
    if not family_of(found["unet"]).has_picture:
        found["unet"] = dataclasses.replace(found["unet"], miva=miva_of_config(config))
    if config.get("control", {}).get("process"):
        found["controlnet"] = _controlnet(config.control.source, found, arithmetic)
    return found


def _controlnet(source: str | None, found: Mapping[str, Any], arithmetic: Arithmetic) -> Any:
    """The config of the ControlNet that is trained: of a source, or a new one's."""
    if not source:
        return new_config(found["unet"], found["vae"].downscale)
    dtypes = dict(dtype=arithmetic.dtype, param_dtype=arithmetic.dtype)
    if local(source):
        return dataclasses.replace(assemble_controlnet(source).config, **arithmetic.of_unet, **dtypes)
    return dataclasses.replace(_computed(_published(source, "control.source"), arithmetic), **dtypes)


def _published(source: str, key: str) -> Any:
    """What is known of a published network; told are those of its kind: bases, motion modules, or the rest."""
    if source in PUBLISHED:
        return PUBLISHED[source]
    has = {"weights.base": "unet", "weights.motion": "motion"}.get(key, "")
    known = [name for name, it in PUBLISHED.items() if (has in it if isinstance(it, dict) else not has)]
    raise InputError(
        f"{key}={source!r} is not on this machine, and its network is not known by name; known: {', '.join(known)}."
        + nearest(source, known)
    )


def networks(weights: Weights, arithmetic: Arithmetic, adapters: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns {component: its network's config}, with no weights read; those of published weights need not be here.

    Args:
      weights, arithmetic, adapters: as of `families.model.assemble`.

    Raises:
      InputError: weights that are neither here nor known.
    """
    weights = dataclasses.replace(weights, loras=(), embeddings=(), mivas=(), over_time=())  # of no published network
    sources = {name: source for name, source in vars(weights).items() if source and name not in UNREAD}
    controls = {control(number): source for number, source in enumerate(weights.controls)}
    sources |= controls
    if all(map(local, sources.values())):
        return {component: part.config for component, part in assemble(weights, arithmetic, adapters=adapters).items()}
    for name, source in sources.items():
        _published(source, f"weights.{name}")
    import_modules(weights.adapter_modules)
    base = dict(PUBLISHED[sources["base"]])
    family = family_of(base["unet"])
    dtypes = dict(dtype=arithmetic.dtype, param_dtype=arithmetic.dtype)
    parts = {} if family.has_picture else _parts_of_unet(sources, weights, adapters)
    base["unet"] = dataclasses.replace(
        base["unet"],
        **arithmetic.of_unet,
        **parts,
    )
    autoencoder = PUBLISHED[sources["vae"]] if "vae" in sources else base["vae"]
    base["vae"] = dataclasses.replace(autoencoder, **arithmetic.kernels)
    if "image_adapter" in sources:
        base["image_encoder"] = PUBLISHED[sources["image_encoder"]]
        base["image_proj"] = PUBLISHED[sources["image_adapter"]]
    base |= {name: _computed(PUBLISHED[source], arithmetic) for name, source in controls.items()}
    found = {component: dataclasses.replace(config, **dtypes) for component, config in base.items()}
    if family.float32_vae and sources.get("vae") not in HALF_PRECISION_VAES:
        found["vae"] = dataclasses.replace(found["vae"], dtype=jnp.float32, param_dtype=jnp.float32)
    return found


def _parts_of_unet(sources: Mapping[str, Any], weights: Weights, adapters: tuple[str, ...]) -> dict[str, Any]:
    """Fields of a picture model's config that its motion modules and adapters set."""
    given = (*adapters, *(name for slot, name in OF_SLOTS.items() if getattr(weights, slot)))
    return (PUBLISHED[sources["motion"]] if "motion" in sources else {}) | by_site(given)


def _computed(control: Any, arithmetic: Arithmetic) -> Any:
    """A control network's config with those settings of the arithmetic that it has: a T2I-Adapter has no attention."""
    fields = {field.name for field in dataclasses.fields(control)}
    return dataclasses.replace(control, **{k: value for k, value in arithmetic.of_unet.items() if k in fields})
