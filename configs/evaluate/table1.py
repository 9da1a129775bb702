"""The paper's comparison (Table 1) on 50 pictures of MJHQ-30K: our models, and others' videos by their folders.

`table1.py:small_world` runs on the bundled model and clips. Give --config.source=FOLDER and --config.metric_weights.*;
further rows by --config.runs="('I2V-Adapter (SD1.5): config=sd15', 'SVD: videos=videos/svd')".
"""

from ml_collections import ConfigDict

from configs.evaluate import default
from configs.sample import sd15
from i2v_jax.errors import InputError, nearest

PAPERS = ("dover_technical", "clip_temp", "raft_flow_score", "raft_warping_error")
PLACES = ("mjhq30k", "small_world")


def get_config(place: str = "mjhq30k") -> ConfigDict:
    config = of_paper(place, "table1")
    config.header = "Method"
    config.runs = ("I2V-Adapter (small world):",)
    if place == "mjhq30k":
        config.runs = ("I2V-Adapter (SD1.5): config=sd15", "I2V-Adapter (SDXL): config=sdxl")
    return config


def of_paper(place: str, name: str) -> ConfigDict:
    """Returns what the paper's tables have in common: its metrics, and its model and pictures or the small world."""
    if place not in PLACES:
        raise InputError(f"{name}.py:{place}: wanted one of {', '.join(PLACES)}.{nearest(place, PLACES)}")
    config = default.get_config()
    config.name = config.published = name
    config.metrics = PAPERS
    config.metric_weights.clip = "openai/clip-vit-base-patch32"
    if place == "mjhq30k":
        config.set, config.count = "mjhq30k", 50
        theirs = sd15.get_config()
        for key in ("steps", "guidance_scale", "height", "width", "frames", "negative_prompt", "match_colours"):
            config[key] = theirs[key]
        config.weights, config.noise_schedule = theirs.weights, theirs.noise_schedule
        config.batch_per_device, config.vae_slice = 1, 1
        config.dtype = theirs.dtype
    return config
