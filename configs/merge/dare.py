"""DARE (Yu et al. 2024): most of two models' changes of their base dropped, what stays made up for, then added.

    python -m convert merge dare base=sd15 a=ONE b=OTHER merged=BOTH.safetensors

`dare:ties` adds them as TIES does: where they disagree on a sign, the greater sum decides.
"""

from ml_collections import ConfigDict

from configs import variants

RESULTS = dict(
    linear="base + weight * (drop(a - base, rate) + drop(b - base, rate))",
    ties="base + weight * elect(drop(a - base, rate), drop(b - base, rate))",
)


def get_config(way: str = "linear") -> ConfigDict:
    config = ConfigDict()
    config.models = ("base", "a", "b")
    config.numbers = dict(
        rate=0.9,  # share of each change that is dropped
        weight=1.0,  # of the changes
    )
    config.results = dict(merged=variants.row(RESULTS, way, "dare.py"))
    config.unmatched = "refuse"
    config.seed = 0
    return config
