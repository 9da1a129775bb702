"""The small model of tests/data on any small folder of clips."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

ROOT = Path(__file__).resolve().parents[2]


def get_config() -> ConfigDict:
    config = runpy.run_path(str(ROOT / "configs" / "train" / "tiny.py"))["get_config"]()
    model = runpy.run_path(str(Path(__file__).with_name("sample.py")))["get_config"]()
    for name in ("base", "motion", "image_adapter", "image_encoder"):
        config.weights[name] = model.weights[name]
    config.noise_schedule = model.noise_schedule
    config.data.height = config.data.width = 64
    config.samples.pictures = (str(ROOT / "assets" / "cat.jpg"),)
    config.samples.prompts = ("a cat",)
    return config
