"""Animate a picture in a style: a community model in one file, a VAE, and LoRA of any kind (LoHa, LoKr, DoRA, ...).

`--config.weights.base=dreamshaper.safetensors --config.weights.loras="('ink.safetensors=0.8', 'zoom.ckpt=0.5')"`
"""

from ml_collections import ConfigDict

from configs.sample import sd15


def get_config() -> ConfigDict:
    config = sd15.get_config()
    config.weights.base = "Lykon/DreamShaper/DreamShaper_8_pruned.safetensors"
    config.weights.vae = "stabilityai/sd-vae-ft-mse"
    config.weights.loras = ()  # your style: each "FILE=SCALE", merged in this order; motion LoRA, too
    return config
