"""SDXL-Lightning (Lin et al. 2024): Stable Diffusion XL distilled to 1, 2, 4 or 8 steps, `sdxl_lightning.py:8`.

Without a number, 4. These are the makers' UNets (ByteDance/SDXL-Lightning), which are better than their LoRAs, and want
`trailing` timesteps, no guidance, and their own number of steps; that of one step, an experiment, predicts the picture.
They were distilled on pictures; motion modules and noise schedule are those of sdxl.py.
"""

from ml_collections import ConfigDict

from configs import variants
from configs.sample import sdxl

FILES = {"1": "1step_unet_x0", "2": "2step_unet", "4": "4step_unet", "8": "8step_unet"}


def get_config(name: str = "4") -> ConfigDict:
    config = sdxl.get_config()
    file = variants.row(FILES, name, "sdxl_lightning.py")
    config.weights.unet = f"ByteDance/SDXL-Lightning/sdxl_lightning_{file}.safetensors"
    config.noise_schedule.prediction_type = "sample" if name == "1" else "epsilon"
    config.sampler = "euler"
    config.sampler_options.spacing = "trailing"
    config.steps = int(name)
    config.guidance_scale = 1.0
    return config
