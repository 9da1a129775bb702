"""SDXL-Turbo (Sauer et al. 2023) with AnimateDiff's SDXL-beta motion modules, 512x512 in 4 (1 to 4) steps.

As its makers have it (stabilityai/sdxl-turbo): no guidance, and so no negative prompt.
"""

from ml_collections import ConfigDict

from configs.sample import sdxl


def get_config() -> ConfigDict:
    config = sdxl.get_config()
    config.weights.base = "stabilityai/sdxl-turbo"
    config.sampler = "euler_ancestral"
    config.sampler_options.spacing = "trailing"
    config.steps = 4
    config.guidance_scale = 1.0
    return config
