"""The bundled small model on the bundled picture: what `make sample` runs. See assets/README.md for what it can do.

Size, frames and prompt are like those it was trained on; t0 below 1 starts near the picture and helps a weak model.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

ROOT = Path(__file__).resolve().parents[2]


def get_config() -> ConfigDict:
    config = runpy.run_path(str(ROOT / "configs/sample/sd15.py"))["get_config"]()
    small = ROOT / "assets" / "small"
    config.image = str(ROOT / "assets" / "cat.jpg")
    config.prompt = "a cat, the camera zooms in"
    config.negative_prompt = ""
    config.height = 128
    config.width = 128
    config.frames = 8
    config.steps = 20
    config.guidance_scale = 1.5
    config.t0 = 0.5
    config.p = 1.0
    config.dtype = "float32"
    config.weights.base = str(small)
    config.weights.motion = str(small / "motion.safetensors")
    config.weights.adapter = str(small / "i2v_adapter.safetensors")
    config.weights.image_adapter = str(small / "ip_adapter.safetensors")
    config.weights.image_encoder = str(small / "image_encoder")
    return config
