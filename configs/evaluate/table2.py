"""The paper's ablation of the Frame Similarity Prior (Table 2); `table2.py:small_world`: by the bundled model."""

from ml_collections import ConfigDict

from configs.evaluate import table1
from configs.evaluate.prior import SWEEPS


def get_config(place: str = "mjhq30k") -> ConfigDict:
    config = table1.of_paper(place, "table2")
    config.runs = (*SWEEPS["t0"], *SWEEPS["p"])
    return config
