"""EDG's text-in-time adapter in AnimateDiff's motion modules, trained alone on captioned clips (docs/text_in_time.md).

    python train.py --config configs/train/text_in_time.py:sd15 --config.data.source=CLIPS
    python sample.py --config configs/sample/sd15.py --image=PICTURE --prompt="it moves to the left" \\
        --config.weights.trained="('runs/text_in_time/trained.safetensors',)"

For `small_world`, `sd15` (38.7 M trained weights) and `sdxl`. A new adapter changes nothing.
"""

from ml_collections import ConfigDict

from configs import variants
from configs.train import sd15_stage1, sdxl
from configs.train import small_world as stages


def get_config(model: str = "small_world") -> ConfigDict:
    config = variants.row(dict(small_world=_small_world, sd15=_sd15, sdxl=_sdxl), model, "text_in_time.py")()
    config.train = ("unet/.*/motion/text_in_time/.*",)
    config.branches = ("text_in_time",)
    config.objective.first_frame = "clean"
    config.objective.prompt_dropout = 0.1  # so that guidance has something to lead away from
    config.folder = "runs/text_in_time"
    return config


def _small_world() -> ConfigDict:
    """The bundled model, 48x48 pixels, beside its I2V-Adapter."""
    config = stages.beside_bundled(learning_rate=1e-3, steps=1500)
    config.objective.timesteps = "cubic"  # where things are at first, so that words can say where they go
    config.objective.image_dropout = 0.15
    return config


def _sd15() -> ConfigDict:
    """Stable Diffusion 1.5 with AnimateDiff, beside the published I2V-Adapter, 16x256x256."""
    config = sd15_stage1.get_config()
    config.weights.adapter = "space-xun/i2v_adapter/i2v_module.pth"
    return config


def _sdxl() -> ConfigDict:
    """Stable Diffusion XL with AnimateDiff's motion modules, for which no I2V-Adapter is published."""
    return sdxl.get_config()
