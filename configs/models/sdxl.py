"""Stable Diffusion XL with AnimateDiff's SDXL-beta motion modules: weights and noise schedule, for all commands.

No I2V-Adapter for SDXL was published: train one (configs/train/sdxl.py), and name it by `weights.adapter`.
"""

from ml_collections import ConfigDict

from configs.models import sd15


def weights() -> ConfigDict:
    """As those of SD1.5; the image adapter may also be sdxl_models/ip-adapter_sdxl.safetensors, with the image encoder
    sdxl_models/image_encoder."""
    weights = sd15.weights()
    weights.base = "stabilityai/stable-diffusion-xl-base-1.0"
    weights.motion = "guoyww/animatediff/mm_sdxl_v10_beta.ckpt"
    weights.adapter = ""
    weights.image_adapter = "h94/IP-Adapter/sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors"
    weights.image_encoder = "h94/IP-Adapter/models/image_encoder"
    return weights


def noise_schedule() -> ConfigDict:
    """That of the SDXL-beta motion modules."""
    schedule = sd15.noise_schedule()
    schedule.kind = "scaled_linear"
    schedule.beta_end = 0.020
    return schedule
