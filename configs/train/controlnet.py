"""A ControlNet beside a frozen model, trained on the outlines of clips: `controlnet.py:small_world` or `:sd15`.

    python train.py --config configs/train/controlnet.py:sd15 --config.data.source=CLIPS
    python sample.py --config configs/sample/sd15.py \\
        --config.weights.controls="('runs/controlnet/trained.safetensors',)" --control=VIDEO \\
        --config.controls.process=canny --image=PICTURE --prompt="..."

That of the small world is sampled with by the default config, with the outlines that it was trained on:
`--config.controls.process=soft_edge`.

It begins as a copy of the UNet's first half, with outputs of zeros (Zhang et al. 2023); prompts are
dropped or swapped, so that it learns to read the outlines.
"""

from ml_collections import ConfigDict

from configs import variants
from configs.models import small_world
from configs.train import sd15_stage2
from configs.train import small_world as stages


def get_config(model: str = "small_world") -> ConfigDict:
    config = variants.row(dict(small_world=_small_world, sd15=_sd15), model, "controlnet.py")()
    config.train = ("controlnet/.*",)
    config.branches = ()
    config.objective.first_frame = "clean"
    config.folder = "runs/controlnet"
    return config


def _small_world() -> ConfigDict:
    """The bundled model, with its adapters: 48x48 pixels, 8 frames."""
    config = stages.get_config("bundled_adapter")
    config.weights = small_world.weights()
    config.control.process = "soft_edge"  # at 48 pixels, Canny's lines are mostly those of textures
    config.objective.timesteps = "cubic"  # the noisier ones decide where things go
    config.objective.prompt_dropout = 0.3
    config.objective.prompt_swap = 0.8  # the base takes motion from words, and clips never deny theirs
    config.optimizer.kind = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.steps = 800
    return config


def _sd15() -> ConfigDict:
    """Stable Diffusion 1.5 with AnimateDiff and the published I2V-Adapter, 512x512."""
    config = sd15_stage2.get_config()
    config.weights.adapter = "space-xun/i2v_adapter/i2v_module.pth"
    config.weights.trained = ()
    config.control.process = "canny"
    config.objective.prompt_dropout = 0.5
    config.optimizer.learning_rate = 1e-5
    config.batch = 64
    config.steps = 20_000
    return config
