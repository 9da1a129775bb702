"""Animate a picture with Stable Diffusion XL and Hotshot-XL's motion modules, 8 frames of 512x512.

Its base is SDXL fine-tuned at 512x512; any SDXL base will do. No I2V-Adapter was trained with them: image tokens and
the Frame Similarity Prior tie the video to its picture.
"""

from ml_collections import ConfigDict

from configs.sample import sdxl


def get_config() -> ConfigDict:
    config = sdxl.get_config()
    config.frames = 8  # as they were trained; they know up to 24
    config.weights.base = "hotshotco/SDXL-512"
    config.weights.motion = "hotshotco/Hotshot-XL/hsxl_temporal_layers.f16.safetensors"
    config.noise_schedule.beta_end = 0.012  # the base's own
    return config
