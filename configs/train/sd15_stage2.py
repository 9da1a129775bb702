"""I2V-Adapter on Stable Diffusion 1.5 and AnimateDiff v1, second stage: 512x512, from the first stage's adapter."""

from ml_collections import ConfigDict

from configs.train import sd15_stage1


def get_config() -> ConfigDict:
    config = sd15_stage1.get_config()
    config.weights.trained = ("runs/sd15_stage1/trained.safetensors",)
    config.remat = "products"  # activations of 512x512 clips do not fit a 16 GB chip otherwise
    config.data.height = 512
    config.data.width = 512
    config.folder = "runs/sd15_stage2"
    return config
