"""I2V-Adapter on Stable Diffusion XL and AnimateDiff's SDXL-beta motion modules: 512x512 (paper section 4.1).

204,883,200 trained parameters. A 16 GB chip holds neither the frozen 3 billion weights beside the activations of a clip
nor their gradients: the frozen weights are cut over `mesh.fsdp` chips, activations made again (docs/pods.md).
"""

from ml_collections import ConfigDict

from configs.models import sdxl
from configs.train import sd15_stage1


def get_config() -> ConfigDict:
    config = sd15_stage1.get_config()
    config.weights = sdxl.weights()
    config.noise_schedule = sdxl.noise_schedule()
    config.data.height = 512
    config.data.width = 512
    config.remat = "full"
    config.frozen = "fsdp"
    config.mesh.fsdp = 8
    config.folder = "runs/sdxl"
    config.samples.steps = 25
    return config
