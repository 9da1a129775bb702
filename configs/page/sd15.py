"""The page with Stable Diffusion 1.5, AnimateDiff v1 and I2V-Adapter: `i2v page --config=sd15`. About 9 GB of weights,
once."""

from ml_collections import ConfigDict

from configs.page import default
from configs.sample import sd15


def get_config() -> ConfigDict:
    config = sd15.get_config()
    default.add_page(config)
    default.add_limits(config)
    config.lively_p = 0.9  # the paper's Table 2
    return config
