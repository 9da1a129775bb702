"""The small model of tests/data on the bundled picture."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

ROOT = Path(__file__).resolve().parents[2]


def get_config() -> ConfigDict:
    config = runpy.run_path(str(ROOT / "configs" / "sample" / "default.py"))["get_config"]()
    for name, path in config.weights.items():
        if isinstance(path, str):
            config.weights[name] = path.replace(f"{ROOT}/assets/small_world", f"{ROOT}/tests/data/small")
    config.noise_schedule.prediction_type = "epsilon"
    config.csv = ""
    config.image = str(ROOT / "assets" / "cat.jpg")
    config.prompt = "a cat, the camera zooms in"
    config.height = config.width = 128
    config.guidance_scale = 1.5
    config.batch_per_device = config.vae_slice = 1
    config.t0 = 0.5
    config.p = 1.0
    return config
