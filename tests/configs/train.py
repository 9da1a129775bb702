"""The small model of tests/data on any small folder of clips."""

from pathlib import Path

from ml_collections import ConfigDict

from configs.train import tiny
from tests.configs import sample

ROOT = Path(__file__).resolve().parents[2]


def get_config() -> ConfigDict:
    config = tiny.get_config()
    model = sample.get_config()
    config.weights = model.weights
    config.weights.adapter = ""
    config.noise_schedule = model.noise_schedule
    config.data.height = config.data.width = 64
    config.held_out.share = 0.0
    config.samples.pictures = (str(ROOT / "assets" / "cat.jpg"),)
    config.samples.prompts = ("a cat",)
    return config
