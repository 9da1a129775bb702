"""The small model of tests/data with an adapter of the user's own, `tests.toy_adapter`, which is trained."""

from ml_collections import ConfigDict

from tests.configs import train


def get_config() -> ConfigDict:
    config = train.get_config()
    config.weights.adapter_modules = ("tests.toy_adapter",)
    config.branches = ("first_frame", "toy")
    config.train = (r"unet/.*/toy/.*",)
    return config
