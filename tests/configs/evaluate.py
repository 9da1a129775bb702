"""The small model of tests/data on clips of the small world."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

ROOT = Path(__file__).resolve().parents[2]


def get_config() -> ConfigDict:
    config = runpy.run_path(str(ROOT / "configs" / "evaluate" / "default.py"))["get_config"]()
    model = runpy.run_path(str(Path(__file__).with_name("sample.py")))["get_config"]()
    config.weights, config.noise_schedule = model.weights, model.noise_schedule
    return config
