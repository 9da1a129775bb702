"""A style, or a thing, from a few pictures: a LoRA beside the UNet, or the whole UNet (as in DreamBooth, Ruiz et al.).

    python train.py --config configs/train/style.py:sd15_lora --config.data.source=PICTURES
    python sample.py --config configs/sample/sd15.py --image=PICTURE --prompt="a cat, ink" \\
        --config.weights.loras="('runs/style/trained.safetensors=0.8',)"

PICTURES is a folder of NAME.png (or .jpg, .webp) with NAME.txt, what each shows and a word for the style. What has
trained the whole UNet is sampled with by `--config.weights.trained="('runs/style/trained.safetensors',)"`. Motion
modules are left out in training and put back in sampling, for which nothing is trained (I2V-Adapter, section 4.5); in
the small world they are there, and frozen.
"""

from ml_collections import ConfigDict

from configs import variants
from configs.train import sd15_stage2, sdxl
from configs.train import small_world as stages

SPATIAL = "unet/((?!motion/|first_frame/|image_tokens/).)*"  # all but motion modules and adapters


def get_config(model: str = "small_world_lora") -> ConfigDict:
    bases = dict(small_world=_small_world, sd15=_sd15, sdxl=_sdxl)
    known = {f"{base}_{way}": (make, way) for base, make in bases.items() for way in ("lora", "whole")}
    make, way = variants.row(known, model, "style.py")
    config = make(way)
    if way == "lora":
        config.train = (".*/lora/.*",)
    else:
        config.train = (SPATIAL,)
        config.lora.rank = 0
    config.branches = ()
    config.samples.every_steps = 0  # of a model without motion modules there are no videos
    config.folder = "runs/style"
    return config


def _small_world(way: str) -> ConfigDict:
    """The bundled model, 48x48 pixels; ten pictures of another look come from its own world, twice as large as a frame:
    `python -m i2v_jax.data.small_world data/blueprint --look=blueprint --clips=10 --size=96`.

    It has forgotten single pictures, so a camera makes clips of them (`i2v_jax/data/camera.py`), and all is there that
    is there in sampling; motion modules and adapters are frozen.
    """
    config = stages.beside_bundled(learning_rate=dict(lora=2e-3, whole=3e-4)[way], steps=dict(lora=90, whole=60)[way])
    config.data.source = "camera:data/blueprint"
    config.objective.first_frame = "clean"
    config.objective.update(stages.DROPOUT)
    config.batch = 6
    config.lora.rank = 8
    config.optimizer.warmup_steps = 10
    config.checkpoints.every_steps = 30
    return config


def _sd15(way: str) -> ConfigDict:
    """Stable Diffusion 1.5, 512x512."""
    config = sd15_stage2.get_config()
    _alone(config)
    _few_pictures(config, way)
    return config


def _sdxl(way: str) -> ConfigDict:
    """Stable Diffusion XL, 1024x1024."""
    config = sdxl.get_config()
    _alone(config)
    _few_pictures(config, way)
    config.data.height = config.data.width = 1024
    config.frozen, config.mesh.fsdp = "replicated", 1
    return config


def _alone(config: ConfigDict) -> None:
    """Neither motion modules nor what an image-to-video model has beside its base."""
    config.weights.motion = config.weights.adapter = config.weights.image_adapter = ""
    config.weights.trained = ()
    config.objective.first_frame = "noisy"
    config.data.frames = 1


def _few_pictures(config: ConfigDict, way: str) -> None:
    """Settings that people train LoRA and DreamBooth models with on one accelerator."""
    config.data.source = "data/style"
    config.data.workers = 2
    config.lora.rank = 16
    config.objective.prompt_dropout = 0.05
    config.noise_schedule.kind = "scaled_linear"  # the base's own, without motion modules
    config.optimizer.learning_rate = dict(lora=1e-4, whole=2e-6)[way]
    config.batch = 4
    config.steps = 1000
    config.checkpoints.every_steps = 250
