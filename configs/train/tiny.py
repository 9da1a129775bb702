"""The bundled model of the small world on any small folder of clips: for a first look at training."""

from ml_collections import ConfigDict

from configs.models import small_world
from configs.train import sd15_stage1


def get_config() -> ConfigDict:
    config = sd15_stage1.get_config()
    config.steps = 200
    config.batch = 4
    config.weights = small_world.weights()
    config.weights.adapter = ""
    config.noise_schedule = small_world.noise_schedule()
    config.optimizer.learning_rate = 1e-3
    config.objective.vae_slice = 0
    config.data.source = "data/clips"
    config.data.frames = 8
    config.data.stride = 1
    config.data.height = 48
    config.data.width = 48
    config.data.workers = 0
    config.dtype = "float32"
    config.folder = "runs/tiny"
    config.checkpoints.every_steps = 50
    config.log.every_steps = 5
    config.held_out.share = 0.1
    config.held_out.every_steps = 20
    config.samples.every_steps = 100
    config.samples.pictures = (str(small_world.SMALL_WORLD / "pictures" / "0.png"),)
    config.samples.prompts = ("a pink star moves left",)
    config.samples.steps = 10
    config.samples.guidance_scale = 1.5
    return config
