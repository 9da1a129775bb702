"""The paper's ablation of the Frame Similarity Prior (Table 2): `prior.py:t0` or `prior.py:p` sweeps one of the two."""

from ml_collections import ConfigDict

from configs import variants
from configs.evaluate import default

SWEEPS = {
    "t0": tuple(f"t0={t0} p=1.0" for t0 in (1.0, 0.9, 0.8, 0.7, 0.6)),
    "p": tuple(f"t0=1.0 p={p}" for p in (0.9, 0.7, 0.5, 0.3, 0.1)),
}


def get_config(sweep: str = "t0") -> ConfigDict:
    config = default.get_config()
    config.runs = variants.row(SWEEPS, sweep, "prior.py")
    config.name = f"prior_{sweep}"
    return config
