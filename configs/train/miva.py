"""A MIVA: one motion from about ten clips of it, without captions (docs/miva.md); and what it is compared with.

    python train.py --config configs/train/miva.py:sd15 --config.data.source=CLIPS --config.folder=runs/swing
    python sample.py --config configs/sample/sd15.py --image=PICTURE \\
        --config.mivas="('runs/swing/trained.safetensors=1.0',)"

CLIPS is a folder of NAME.mp4. For `small_world`, `sd15` and `sdxl` there are also `NAME_lora`, LoRA alone, and
`NAME_lamp`, LAMP-like: a first-frame attention and the motion modules themselves, by `weights.loras` and
`weights.trained` of sampling. `lora` and `lamp` are the small world's.
"""

from ml_collections import ConfigDict

from configs import variants
from configs.models import small_world
from configs.train import sd15_stage1, sdxl
from configs.train import small_world as stages

WAYS = ("miva", "lora", "lamp")


def get_config(model: str = "small_world") -> ConfigDict:
    bases = dict(small_world=_small_world, sd15=_sd15, sdxl=_sdxl)
    known = {base if way == "miva" else f"{base}_{way}": (make, way) for base, make in bases.items() for way in WAYS}
    known |= {way: (_small_world, way) for way in ("lora", "lamp")}
    make, way = variants.row(known, model, "miva.py")
    config = make()
    config.branches = ()
    config.objective.prompt_dropout = 1.0  # none has a prompt
    config.data.no_captions = True
    config.data.flip = False  # True doubles the clips of a motion that has no side
    config.held_out.share = 0.1
    config.held_out.patience = 5
    config.samples.prompts = ("",) * len(config.samples.pictures)
    if way == "miva":
        config.train = ("unet/.*/miva/.*",)
        config.objective.implicit_dropout = 0.1  # so that guidance has something to lead away from
        config.miva.tokens = 77
        config.miva.parts = ("frames", "prompt", "motion")
        config.folder = "runs/miva"
    else:
        rank = config.miva.rank
        config.miva.rank = 0
        config.folder = f"runs/{way}"
    if way == "lora":
        config.train = (".*/lora/.*",)
        config.lora.rank = rank
        config.lora.layers = (r"unet/.*/(attention|motion)/blocks_\d+/attn[12]/to_(q|k|v|out)",)
    if way == "lamp":
        config.train = ("unet/.*/first_frame/.*", "unet/.*/motion/.*")
        config.branches = ("first_frame",)
        config.weights.adapter = ""
        config.optimizer.learning_rate /= 10  # whole weights
    return config


def _small_world() -> ConfigDict:
    """The bundled model, 48x48 pixels, on ten clips of a motion that its base does not know."""
    config = stages.beside_bundled(learning_rate=2e-3, steps=600)
    config.objective.first_frame = "clean"
    config.objective.image_dropout = 0.15
    config.optimizer.warmup_steps = 20
    config.data.source = "small_world:swing"
    config.miva.rank = 8
    config.batch = 9
    config.checkpoints.every_steps = 100
    config.held_out.every_steps = 50
    config.samples.every_steps = 200
    config.samples.pictures = tuple(str(small_world.SMALL_WORLD / "pictures" / f"{i}.png") for i in (0, 2))
    config.samples.steps = 10
    config.samples.guidance_scale = 1.5
    return config


def _sd15() -> ConfigDict:
    """Stable Diffusion 1.5 with AnimateDiff, beside the I2V-Adapter, 16x256x256: on a GPU of 12 GB."""
    config = sd15_stage1.get_config()
    config.weights.adapter = "space-xun/i2v_adapter/i2v_module.pth"
    _few_clips(config)
    return config


def _sdxl() -> ConfigDict:
    """Stable Diffusion XL with AnimateDiff's motion modules, for which no I2V-Adapter is published."""
    config = sdxl.get_config()
    config.frozen, config.mesh.fsdp = "replicated", 1
    _few_clips(config)
    return config


def _few_clips(config: ConfigDict) -> None:
    config.data.source = "data/motion"
    config.data.workers = 2
    config.miva.rank = 16
    config.remat = "full"
    config.objective.vae_slice = 1
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 20
    config.batch = 1
    config.steps = 1500
    config.checkpoints.every_steps = 250
    config.held_out.every_steps = 100
    config.samples.every_steps = 500
