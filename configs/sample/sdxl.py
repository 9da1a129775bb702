"""Animate a picture with Stable Diffusion XL and AnimateDiff's SDXL-beta motion modules, 16 frames of 512x512.

With an I2V-Adapter of your own: `--config.weights.adapter=runs/sdxl/trained.safetensors`. Without one, only the image
tokens and the Frame Similarity Prior tie the video to its picture. Any size of multiples of 8 will do; the base was
trained at 1024x1024, the motion modules at 512x512 to 1024x1024. In bfloat16 the weights take 6.7 GB.
"""

from ml_collections import ConfigDict

from configs.models import sdxl
from configs.sample import sd15


def get_config() -> ConfigDict:
    config = sd15.get_config()
    config.negative_prompt = ""  # as the base was trained: zeros
    config.weights = sdxl.weights()
    config.noise_schedule = sdxl.noise_schedule()
    return config
