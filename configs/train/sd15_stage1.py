"""I2V-Adapter on Stable Diffusion 1.5 and AnimateDiff v1, first stage: 256x256 (paper section 4.1).

Every key can be set on the command line: `python train.py --config configs/train/sd15_stage1.py --config.batch=64`.
The keys of `weights` and `noise_schedule` are explained in configs/models/sd15.py.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.models import sd15


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.steps = 40_000  # one epoch of 10 million clips
    config.batch = 256  # clips a step, over all hosts
    config.accumulate = 1  # parts that a batch is worked through in, one after another; bounds memory

    # What is trained: regular expressions over whole paths `component/...`. All else is frozen.
    config.train = (r"unet/.*/first_frame/.*",)

    config.weights = sd15.weights()
    config.weights.adapter = ""  # a published adapter to go on from; without one the branch starts as the paper says
    config.branches = ("first_frame",)  # adapters to add where no file holds them

    add_loss(config)
    config.noise_schedule = sd15.noise_schedule()
    add_optimizer(config)
    add_clips(config)
    add_arithmetic(config)

    # What is written.
    config.folder = "runs/sd15_stage1"  # checkpoints, curves, samples; a run that is there is gone on with
    config.checkpoints = ConfigDict(dict(every_steps=1000, keep=3, best=False))  # best: keep those of lowest loss
    config.log = ConfigDict(dict(every_steps=20))
    config.samples = ConfigDict(
        dict(
            every_steps=1000,  # 0: none
            pictures=("assets/cat.jpg",),
            prompts=("a cat turns its head",),
            steps=25,
            guidance_scale=7.5,
            t0=1.0,
            p=0.5,
        )
    )
    return config


def add_loss(config: ConfigDict) -> None:
    """What is minimised."""
    config.loss = "denoising"  # by `objective`; "reconstruction", which trains a VAE, by `reconstruction`
    config.objective = ConfigDict(
        dict(
            first_frame="clean",  # clean, noisy as the others, early: clean where most is noise
            timesteps="uniform",  # uniform, cubic: more of the noisier ones
            prompt_dropout=0.1,  # share of prompts replaced by the empty one
            image_dropout=0.0,  # share of clips without image tokens
            joint_dropout=0.0,  # share of clips with the empty prompt and a zero picture's image tokens
            min_snr_gamma=placeholder(float),  # weigh timesteps by min(SNR, gamma)
            vae_slice=1,  # frames that the VAE encodes at a time; 0: all
        )
    )
    config.reconstruction = ConfigDict(
        dict(
            crop=0,  # side of the squares that are looked at; 0: whole frames
            edges=1.0,  # weights of the terms beside the pixels'
            divergence=1e-4,
        )
    )


def add_optimizer(config: ConfigDict) -> None:
    """How it is minimised."""
    config.optimizer = ConfigDict(
        dict(
            kind="adamw",  # adamw, muon
            learning_rate=1e-4,
            schedule="constant",  # constant, cosine, linear
            warmup_steps=0,
            final_share=0.0,  # of the learning rate, at the end of a falling schedule
            b1=0.9,
            b2=0.999,
            epsilon=1e-8,
            weight_decay=0.01,
            clip_norm=placeholder(float),
        )
    )
    config.average_decay = placeholder(float)  # of a running average of the trained weights, such as 0.9999


def add_clips(config: ConfigDict) -> None:
    """What is trained on."""
    config.data = ConfigDict(
        dict(
            source="data/webvid",  # a prepared dataset, a folder of *.mp4 + *.txt, a CSV, or stored latents
            videos=placeholder(str),  # the folder that a CSV's paths are relative to
            frames=16,
            stride=4,  # every fourth frame
            height=256,
            width=256,
            workers=8,  # processes that decode, on each host
            buffer=4,  # clips that each of them holds ready
            max_bad=0.2,  # share of unusable clips at which the run stops
            bad_list="",  # file that unusable clips are listed in; "" is bad_clips.{host}.jsonl in the run's folder
        )
    )


def add_arithmetic(config: ConfigDict) -> None:
    """Arithmetic and devices."""
    config.dtype = "auto"  # of frozen weights and activations: float32, bfloat16; auto: bfloat16 on GPU and TPU
    config.attention = "auto"  # auto, xla, blocked, cudnn, flash
    config.convolution = "auto"  # auto, xla, winograd
    config.remat = "none"  # none, full, or a name in jax.checkpoint_policies
    config.mesh = ConfigDict(dict(data=-1, fsdp=1))  # -1: all devices that are left
    config.rules = ConfigDict(  # logical axes of activations -> mesh axes
        dict(batch=("data", "fsdp"), frames=("frames",), space=("frames",), height=(), width=())
    )
    config.frozen = "replicated"  # replicated: each device holds all frozen weights; fsdp: a share of them
    config.distributed = ConfigDict(
        dict(
            mode="auto",  # auto: TPU metadata or Slurm where there is one; off; flags: the three keys below
            coordinator=placeholder(str),  # address:port of process 0
            processes=placeholder(int),
            process=placeholder(int),
        )
    )
    config.compilation_cache = ".cache/jax"
