"""TIES (Yadav et al. 2023): the largest changes of two models, the mean of those that agree on the sign.

    python -m convert merge ties base=sd15 a=ONE b=OTHER merged=BOTH.safetensors

The largest are found tensor by tensor, so that no more than one is in memory; the paper's are of all of the model.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.models = ("base", "a", "b")
    config.numbers = dict(
        keep=0.2,  # share of each tensor's changes that stays
        weight=1.0,  # of the changes
    )
    config.results = dict(merged="base + weight * elect(trim(a - base, keep), trim(b - base, keep))")
    config.unmatched = "refuse"
    config.seed = 0
    return config
