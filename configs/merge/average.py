"""The plain average of two models: `python -m convert merge average a=ONE b=OTHER merged=AVERAGE.safetensors`."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.models = ("a", "b")
    config.numbers = dict()
    config.results = dict(merged="mean(a, b)")
    config.unmatched = "refuse"
    config.seed = 0
    return config
