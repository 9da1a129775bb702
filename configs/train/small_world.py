"""The stages of the bundled model of the small world, in order: vae, pictures, image_tokens, lessons,
captions, motion, adapter.

    python train.py --config configs/train/small_world.py:motion

`make small-world` runs them all; each goes on with the weights that those before it have trained. `bundled_adapter`,
`bundled_motion` and so on go on with what is bundled: another adapter by `bundled_adapter --config.seed=1`.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs.models import small_world
from configs.train import sd15_stage1
from i2v_jax.errors import InputError, nearest

BUNDLED = "bundled_"
ROOT = Path(__file__).resolve().parents[2]
RUNS = Path.cwd() / "runs" / "small_world"  # as all runs, where one stands

MOVING = ("unet/.*", "text_encoder/.*")  # motion modules, and on with all else
EARLY = dict(first_frame="early", timesteps="cubic")  # where things are at first, so that words can say where they go
# So that models can do without image tokens, and guidance has something to lead away from.
DROPOUT = dict(prompt_dropout=0.05, image_dropout=0.15, joint_dropout=0.1)
STAGES = dict(  # what differs from `common`
    vae=dict(
        train=("vae/.*",),
        loss="reconstruction",
        reconstruction=dict(crop=32, edges=0.5),
        optimizer=dict(kind="adamw", learning_rate=2e-3),
        data=dict(frames=2, stride=15),
        convolution="xla",  # with few channels faster than the other
        steps=6000,
        checkpoints=dict(every_steps=1000),
        log=dict(every_steps=100),
    ),
    # Not the text encoder: it would unlearn words of motion, of which pictures show nothing.
    pictures=dict(train=("unet/.*",), data=dict(frames=4, stride=5), steps=700, batch=16),
    image_tokens=dict(
        train=("unet/.*/image_tokens/.*", "image_encoder/.*", "image_proj/.*"),
        data=dict(frames=4, stride=5),
        steps=250,
        batch=16,
    ),
    # One motion a clip, and not another word: what each motion is called.
    lessons=dict(train=("unet/.*",), objective=EARLY, data=dict(source="small_world:lessons"), steps=900),
    captions=dict(train=MOVING, objective=EARLY, steps=1400),
    # What things look like as they go.
    motion=dict(train=MOVING, objective=EARLY | dict(timesteps="uniform") | DROPOUT, steps=6650),
    adapter=dict(
        train=("unet/.*/first_frame/.*",),
        branches=("first_frame",),
        objective=dict(first_frame="clean") | DROPOUT,
        steps=1500,
    ),
)


def get_config(stage: str = "adapter") -> ConfigDict:
    names = list(STAGES)
    if stage not in (known := (*names, *(BUNDLED + it for it in names))):
        raise InputError(f"small_world.py:{stage}: wanted one of {', '.join(known)}.{nearest(stage, known)}")
    config = common()
    config.folder = str(RUNS / stage)
    bundled, stage = stage.startswith(BUNDLED), stage.removeprefix(BUNDLED)
    number = config.seed = names.index(stage)
    before = [] if bundled else names[:number]
    if bundled:
        base = ROOT / "assets" / "small_world"
    else:  # the VAE's scaling factor is known after its stage: `base` has it
        base = RUNS / ("base" if before else "initial")
    config.weights.base = str(base)
    config.weights.trained = tuple(str(RUNS / it / "trained.safetensors") for it in before[1:])
    with_tokens, with_motion = number >= names.index("image_tokens"), number >= names.index("lessons")
    config.weights.image_adapter = str(base / "ip_adapter.safetensors") if with_tokens else ""
    config.weights.image_encoder = str(base / "image_encoder")
    config.weights.motion = str(base / "motion.safetensors") if with_motion else ""
    config.update(STAGES[stage])
    return config


def beside_bundled(learning_rate: float, steps: int) -> ConfigDict:
    """What small parts are trained with, beside the whole bundled model."""
    config = common()
    config.weights = small_world.weights()
    config.optimizer.kind = "adamw"
    config.optimizer.learning_rate = learning_rate
    config.steps = steps
    return config


def common() -> ConfigDict:
    """What holds for all stages that do not say otherwise."""
    config = sd15_stage1.get_config()
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
    config.data.frames, config.data.stride = 8, 2
    config.data.workers = 1
    config.dtype = "float32"
    config.batch = 8
    config.checkpoints.every_steps = 200
    config.log.every_steps = 20
    config.samples.every_steps = 0
    return config
