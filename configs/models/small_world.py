"""The bundled model of the small world: weights and noise schedule, for all commands. See assets/README.md."""

from pathlib import Path

from ml_collections import ConfigDict

from configs.models import sd15

SMALL_WORLD = Path(__file__).resolve().parents[2] / "assets" / "small_world"


def weights(folder: Path = SMALL_WORLD) -> ConfigDict:
    """Those in a folder that is laid out like the bundled one."""
    weights = sd15.weights()
    weights.base = str(folder)
    weights.motion = str(folder / "motion.safetensors")
    weights.adapter = str(folder / "i2v_adapter.safetensors")
    weights.image_adapter = str(folder / "ip_adapter.safetensors")
    weights.image_encoder = str(folder / "image_encoder")
    return weights


def noise_schedule() -> ConfigDict:
    """SD1.5's, whose v the model predicts."""
    schedule = sd15.noise_schedule()
    schedule.prediction_type = "v_prediction"
    return schedule
