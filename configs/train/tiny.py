"""The bundled model of the small world on any small folder of clips: for a first look at training."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

ROOT = Path(__file__).resolve().parents[2]


def get_config() -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("sd15_stage1.py")))["get_config"]()
    small = ROOT / "assets" / "small_world"
    config.steps = 200
    config.batch = 4
    config.weights.base = str(small)
    config.weights.motion = str(small / "motion.safetensors")
    config.weights.image_adapter = str(small / "ip_adapter.safetensors")
    config.weights.image_encoder = str(small / "image_encoder")
    config.optimizer.learning_rate = 1e-3
    config.objective.vae_slice = 0
    config.noise_schedule.prediction_type = "v_prediction"
    config.data.source = "data/clips"
    config.data.frames = 8
    config.data.stride = 1
    config.data.height = 48
    config.data.width = 48
    config.data.workers = 0
    config.dtype = "float32"
    config.folder = "runs/tiny"
    config.checkpoints.every_steps = 50
    config.log.every_steps = 5
    config.samples.every_steps = 100
    config.samples.pictures = (str(small / "pictures" / "0.png"),)
    config.samples.prompts = ("a pink star moves left",)
    config.samples.steps = 10
    config.samples.guidance_scale = 1.5
    return config
