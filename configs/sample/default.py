"""The bundled model of the small world on held-out pictures of it: what `make sample` runs. See assets/README.md.

With a picture of your own: `--config.image=PICTURE --config.prompt="a red disc moves left"`.
"""

from ml_collections import ConfigDict

from configs.models import small_world
from configs.sample import sd15


def get_config() -> ConfigDict:
    config = sd15.get_config()
    config.csv = str(small_world.SMALL_WORLD / "pictures" / "clips.csv")
    config.negative_prompt = ""
    config.height = 48
    config.width = 48
    config.frames = 8
    config.steps = 10
    config.guidance_scale = 1.5
    config.dtype = "float32"
    config.batch_per_device = 4
    config.vae_slice = 16
    config.weights = small_world.weights()
    config.noise_schedule = small_world.noise_schedule()
    return config
