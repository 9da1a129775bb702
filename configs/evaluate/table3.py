"""The paper's ablation of the model's design (Table 3); `table3.py:small_world` on the bundled model."""

from ml_collections import ConfigDict

from configs.evaluate import default, table1


def get_config(place: str = "mjhq30k") -> ConfigDict:
    config = table1.of_paper(place, "table3")
    config.runs = default.get_config().runs
    return config
