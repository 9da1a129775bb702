"""The small model of tests/data on clips of the small world."""

from ml_collections import ConfigDict

from configs.evaluate import default
from tests.configs import sample


def get_config() -> ConfigDict:
    config, model = default.get_config(), sample.get_config()
    config.weights, config.noise_schedule = model.weights, model.noise_schedule
    return config
