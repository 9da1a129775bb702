"""The bundled small model on the bundled picture: what `make sample` runs. Its weights are random."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

ROOT = Path(__file__).resolve().parents[2]


def get_config() -> ConfigDict:
    config = runpy.run_path(str(ROOT / "configs/sample/sd15.py"))["get_config"]()
    small = ROOT / "assets" / "small"
    config.image = str(ROOT / "assets" / "cat.jpg")
    config.prompt = "a cat looking around, its ears moving"
    config.negative_prompt = ""
    config.height = 256
    config.width = 256
    config.steps = 10
    config.dtype = "float32"
    config.weights.base = str(small)
    config.weights.motion = str(small / "motion.safetensors")
    config.weights.adapter = str(small / "i2v_adapter.safetensors")
    config.weights.image_adapter = str(small / "ip_adapter.safetensors")
    config.weights.image_encoder = str(small / "image_encoder")
    return config
