"""The bundled model of the small world on held-out pictures of it: what `make sample` runs. See assets/README.md.

With a picture of your own: `--config.image=PICTURE --config.prompt="a red disc moves left"`.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

ROOT = Path(__file__).resolve().parents[2]


def get_config() -> ConfigDict:
    config = runpy.run_path(str(ROOT / "configs/sample/sd15.py"))["get_config"]()
    small = ROOT / "assets" / "small_world"
    config.csv = str(small / "pictures" / "clips.csv")
    config.negative_prompt = ""
    config.height = 48
    config.width = 48
    config.frames = 8
    config.steps = 10
    config.guidance_scale = 1.5
    config.noise_schedule.prediction_type = "v_prediction"
    config.dtype = "float32"
    config.batch_per_device = 4
    config.vae_slice = 16
    config.weights.base = str(small)
    config.weights.motion = str(small / "motion.safetensors")
    config.weights.adapter = str(small / "i2v_adapter.safetensors")
    config.weights.image_adapter = str(small / "ip_adapter.safetensors")
    config.weights.image_encoder = str(small / "image_encoder")
    return config
