"""The small world's motion modules, trained on at half the speed: what a model is moved away from, to move more.

    python train.py --config configs/train/half_speed.py

A fine-tuning after which things move less is what EDG's extrapolation (docs/merging.md) begins with: the bundled
motion modules are its `pre`, these its `tuned`. A clip's frames are neighbours; the bundled model has seen every other.
"""

from ml_collections import ConfigDict

from configs.train import small_world as stages


def get_config() -> ConfigDict:
    config = stages.beside_bundled(learning_rate=5e-4, steps=250)
    config.train = ("unet/.*/motion/.*",)
    config.objective.first_frame = "clean"
    config.objective.update(stages.DROPOUT)
    config.optimizer.warmup_steps = 20
    config.data.stride = 1
    config.batch = 4
    config.folder = "runs/half_speed"
    return config
