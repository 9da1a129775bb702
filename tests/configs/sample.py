"""The small model of tests/data on the bundled picture."""

from pathlib import Path

from ml_collections import ConfigDict

from configs.models import sd15, small_world
from configs.sample import default

ROOT = Path(__file__).resolve().parents[2]


def get_config() -> ConfigDict:
    config = default.get_config()
    config.weights = small_world.weights(ROOT / "tests" / "data" / "small")
    config.noise_schedule = sd15.noise_schedule()
    config.csv = ""
    config.image = str(ROOT / "assets" / "cat.jpg")
    config.prompt = "a cat, the camera zooms in"
    config.height = config.width = 128
    config.guidance_scale = 1.5
    config.batch_per_device = config.vae_slice = 1
    config.t0 = 0.5
    config.p = 1.0
    return config
