"""The stages of the bundled model of the small world, in order: vae, pictures, image_tokens, lessons,
captions, motion, adapter.

    python train.py --config configs/train/small_world.py:motion

`make small-world` runs them all; each goes on with the weights that those before it have trained. `bundled_adapter`,
`bundled_motion` and so on go on with what is bundled: another adapter by `bundled_adapter --config.seed=1`.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from i2v_jax.errors import InputError, nearest

STAGES = ("vae", "pictures", "image_tokens", "lessons", "captions", "motion", "adapter")
BUNDLED = "bundled_"
ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "runs" / "small_world"


def get_config(stage: str = "adapter") -> ConfigDict:
    if stage not in (known := (*STAGES, *(BUNDLED + it for it in STAGES))):
        raise InputError(f"small_world.py:{stage}: wanted one of {', '.join(known)}.{nearest(stage, known)}")
    config = runpy.run_path(str(Path(__file__).with_name("sd15_stage1.py")))["get_config"]()
    config.folder = str(RUNS / stage)
    bundled, stage = stage.startswith(BUNDLED), stage.removeprefix(BUNDLED)
    config.seed = STAGES.index(stage)
    before = () if bundled else STAGES[: STAGES.index(stage)]
    if bundled:
        base = ROOT / "assets" / "small_world"
    else:  # the VAE's scaling factor is known after its stage: `base` has it
        base = RUNS / ("base" if before else "initial")
    config.weights.base = str(base)
    config.weights.trained = tuple(str(RUNS / it / "trained.safetensors") for it in before[1:])
    with_tokens, with_motion = stage not in STAGES[:2], stage not in STAGES[:3]
    config.weights.image_adapter = str(base / "ip_adapter.safetensors") if with_tokens else ""
    config.weights.image_encoder = str(base / "image_encoder")
    config.weights.motion = str(base / "motion.safetensors") if with_motion else ""
    config.branches = ()

    config.noise_schedule.prediction_type = "v_prediction"  # learns what is common to all frames sooner than epsilon
    config.objective.first_frame = "noisy"
    config.objective.vae_slice = 0
    config.optimizer.kind = "muon"  # after 120 steps at the loss that AdamW has after twice as many
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.b2 = 0.99
    config.optimizer.clip_norm = 1.0
    config.data.source = "small_world:train"
    config.data.height = 48
    config.data.width = 48
    config.data.frames, config.data.stride = (8, 2) if with_motion else (4, 5)
    config.data.workers = 1
    if stage in STAGES[-2:]:  # so that models can do without image tokens, and guidance has something to lead away from
        config.objective.update(prompt_dropout=0.05, image_dropout=0.15, joint_dropout=0.1)
    config.dtype = "float32"
    config.checkpoints.every_steps = 200
    config.log.every_steps = 20
    config.samples.every_steps = 0

    if stage == "vae":
        config.train = ("vae/.*",)
        config.loss = "reconstruction"
        config.reconstruction.crop = 32
        config.reconstruction.edges = 0.5
        config.optimizer.kind = "adamw"
        config.optimizer.learning_rate = 2e-3
        config.data.frames, config.data.stride = 2, 15
        config.convolution = "xla"  # with few channels faster than the other
        config.steps, config.batch = 6000, 8
        config.checkpoints.every_steps = 1000
        config.log.every_steps = 100
    elif stage == "pictures":  # not the text encoder: it would unlearn words of motion, of which they show nothing
        config.train = ("unet/.*",)
        config.steps, config.batch = 700, 16
    elif stage == "image_tokens":
        config.train = ("unet/.*/image_tokens/.*", "image_encoder/.*", "image_proj/.*")
        config.steps, config.batch = 250, 16
    elif stage in ("lessons", "captions", "motion"):
        config.train = ("unet/.*",)  # motion modules, and on with all else
        config.objective.first_frame = "early"  # which says where things are, so that words can say where they go
        config.objective.timesteps = "cubic"
        config.steps, config.batch = 900, 8
        if stage == "lessons":  # one motion a clip, and not another word: what each motion is called
            config.data.source = "small_world:lessons"
        else:
            config.train += ("text_encoder/.*",)
            config.steps = 1400
        if stage == "motion":  # what things look like as they go; and a base that can do without image tokens
            config.objective.timesteps = "uniform"
            config.steps = 6650
    else:
        config.train = ("unet/.*/first_frame/.*",)
        config.branches = ("first_frame",)
        config.objective.first_frame = "clean"
        config.steps, config.batch = 900, 8
    return config
