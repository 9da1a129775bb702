"""I2V-Adapter on Stable Diffusion 1.5 and AnimateDiff v1, first stage: 256x256 (paper section 4.1).

Every key can be set on the command line: `python train.py --config configs/train/sd15_stage1.py --config.batch=64`.
The keys of `weights` and `noise_schedule` are explained in configs/models/sd15.py.
"""

from pathlib import Path

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.models import sd15

CAT = str(Path(__file__).resolve().parents[2] / "assets" / "cat.jpg")


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of new weights, noise and the order of clips
    config.steps = 40_000  # of the whole run; here one epoch of 10 million clips
    config.batch = 256  # clips a step, over all hosts
    config.accumulate = 1  # parts that a batch is worked through in, one after another; bounds memory

    # What is trained: regular expressions over whole paths `component/...`. All else is frozen.
    config.train = (r"unet/.*/first_frame/.*",)  # one or more patterns

    config.weights = sd15.weights()
    config.weights.adapter = ""  # a published adapter to go on from; without one the branch starts as the paper says
    config.branches = ("first_frame",)  # adapters to add where no file holds them

    # A ControlNet, the component `controlnet`: it follows pictures that are made of each clip's own frames.
    config.control = ConfigDict(
        dict(
            process="",  # what makes them: canny, soft_edge, scribble, ... (docs/controls.md); "": no ControlNet
            source=placeholder(str),  # a ControlNet to go on from; unset: a new one, which begins as a copy of the UNet
        )
    )

    # A LoRA: factors beside kernels, whose paths end in /lora/down and /lora/up; wants `train` to name them.
    config.lora = ConfigDict(
        dict(
            rank=0,  # of the factors; 0: no LoRA
            layers=(
                r"unet/.*/attention/blocks_\d+/attn[12]/to_(q|k|v|out)",
            ),  # patterns of the layers that they change
        )
    )

    # A MIVA: one motion from a few clips, see configs/train/miva.py and docs/miva.md; wants `train` to name it.
    config.miva = ConfigDict(
        dict(
            rank=0,  # of its changes of weights; 0: no MIVA
            tokens=0,  # of its implicit prompt
            parts=(),  # of it: frames, prompt, motion
            name="",  # of its motion, as its file has it; "": that of the folder
            source=placeholder(str),  # a MIVA to go on with; unset: a new one
        )
    )

    add_loss(config)
    config.noise_schedule = sd15.noise_schedule()
    add_optimizer(config)
    add_clips(config)
    add_arithmetic(config)

    # What is written.
    config.folder = "runs/sd15_stage1"  # checkpoints, curves, samples; a run that is there is gone on with
    config.checkpoints = ConfigDict(
        dict(
            every_steps=1000,  # between two of them
            keep=3,  # how many are kept
            best=False,  # those of lowest loss, rather than the last
        )
    )
    config.log = ConfigDict(dict(every_steps=20))  # between two points of the curves
    add_samples(config)
    config.held_out = ConfigDict(
        dict(
            share=0.0,  # of the clips, chosen by a hash of their ids, not trained on, whose loss is a curve; 0: none
            every_steps=200,  # between two points of that curve
            clips=32,  # of them that are measured, at most; kept in memory
            patience=0,  # points without a lower loss after which the run ends, with the best weights; 0: it never does
        )
    )
    return config


def add_samples(config: ConfigDict) -> None:
    """What is sampled meanwhile."""
    config.samples = ConfigDict(
        dict(
            every_steps=1000,  # between two looks at what the model makes; 0: none
            pictures=(CAT,),  # that it animates
            prompts=("a cat turns its head",),  # one for each
            steps=25,  # of the sampler
            guidance_scale=7.5,  # 1: no classifier-free guidance
            guidance_rescale=0.0,  # [0, 1], against colours that guidance makes too strong
            sampler="ddim",  # ddim, euler, euler_ancestral, dpmpp_2m, ldm_ddim (of DynamiCrafter)
            spacing="leading",  # of the sampler's timesteps: leading, trailing, linspace
            eta=0.0,  # of ddim and ldm_ddim: share of new noise in each step
            fs=0,  # of DynamiCrafter: frames a second told (of 256: the stride); 0: its own
            t0=1.0,  # Frame Similarity Prior: start of the run, (0, 1]
            p=0.5,  # Frame Similarity Prior: share of unblurred elements, [0, 1]
        )
    )


def add_loss(config: ConfigDict) -> None:
    """What is minimised."""
    config.loss = "denoising"  # by `objective`; "reconstruction", which trains a VAE, by `reconstruction`
    config.objective = ConfigDict(
        dict(
            first_frame="clean",  # clean, noisy as the others, early: clean where most is noise
            timesteps="uniform",  # uniform, cubic: more of the noisier ones
            prompt_dropout=0.1,  # share of prompts replaced by the empty one
            prompt_swap=0.0,  # share of clips given another clip's prompt, which a ControlNet is to overrule
            image_dropout=0.0,  # share of clips without image tokens
            joint_dropout=0.0,  # share of clips with the empty prompt and a zero picture's image tokens
            exclusive_dropout=False,  # the three shares are of different clips, as DynamiCrafter is trained
            implicit_dropout=0.0,  # share of clips without a MIVA's implicit prompt
            picture="first",  # of DynamiCrafter: the frame that is the picture: first, random; ends: first and last
            image_noise=0.0,  # of DynamiCrafter: most noise on the picture's latents (TimeNoise), such as 100; 0: none
            image_noise_power=5.0,  # how late in the timesteps that noise grows
            min_snr_gamma=placeholder(float),  # weigh timesteps by min(SNR, gamma)
            vae_slice=1,  # frames that the VAE encodes at a time; 0: all
        )
    )
    config.reconstruction = ConfigDict(
        dict(
            crop=0,  # side of the squares that are looked at; 0: whole frames
            edges=1.0,  # weights of the terms beside the pixels'
            divergence=1e-4,  # weight of the latents' distance from a normal distribution
        )
    )


def add_optimizer(config: ConfigDict) -> None:
    """How it is minimised."""
    config.optimizer = ConfigDict(
        dict(
            kind="adamw",  # adamw, muon
            learning_rate=1e-4,  # the highest of the schedule
            schedule="constant",  # constant, cosine, linear
            warmup_steps=0,  # that the learning rate rises over
            final_share=0.0,  # of the learning rate, at the end of a falling schedule
            b1=0.9,  # decay of the average of gradients, [0, 1]
            b2=0.999,  # decay of the average of squared gradients, [0, 1]
            epsilon=1e-8,  # added to the divisor, above 0
            weight_decay=0.01,  # 0 or more
            clip_norm=placeholder(float),  # gradients' norm is cut to this; unset: not
        )
    )
    config.average_decay = placeholder(float)  # of a running average of the trained weights, such as 0.9999


def add_clips(config: ConfigDict) -> None:
    """What is trained on."""
    config.data = ConfigDict(
        dict(
            source="data/webvid",  # a prepared dataset, a folder of *.mp4 + *.txt or pictures, a CSV, or stored latents
            videos=placeholder(str),  # the folder that a CSV's paths are relative to
            frames=16,  # of a clip; 1 for pictures
            stride=4,  # 4: every fourth frame of the video
            least_stride=0,  # strides are drawn from this one to `stride`; 0: always `stride`
            rate="",  # of DynamiCrafter: what it is told of a clip: fps; stride, of the 256 model
            height=256,  # in pixels, a multiple of 8
            width=256,  # in pixels, a multiple of 8
            workers=8,  # processes that decode, on each host
            buffer=4,  # clips that each of them holds ready
            max_bad=0.2,  # share of unusable clips at which the run stops
            flip=False,  # mirror every other clip, drawn by chance, left to right
            no_captions=False,  # take clips without captions, and none of the others'
            bad_list="",  # file that unusable clips are listed in; "" is bad_clips.{host}.jsonl in the run's folder
        )
    )


def add_arithmetic(config: ConfigDict) -> None:
    """Arithmetic and devices."""
    config.dtype = "auto"  # of frozen weights and activations: float32, bfloat16; auto: bfloat16 on GPU and TPU
    config.attention = "auto"  # auto, xla, blocked, cudnn, flash
    config.convolution = "auto"  # auto, xla, winograd
    config.remat = "none"  # none, full, or a name in jax.checkpoint_policies
    config.mesh = ConfigDict(
        dict(
            data=-1,  # devices that share out the clips; -1: all that are left
            fsdp=1,  # devices that share out clips and weights
        )
    )
    config.rules = ConfigDict(  # logical axes of activations -> mesh axes
        dict(batch=("data", "fsdp"), frames=("frames",), space=("frames",), height=(), width=())
    )
    config.frozen = "replicated"  # replicated: each device holds all frozen weights; fsdp: a share of them
    config.distributed = ConfigDict(
        dict(
            mode="auto",  # auto: TPU metadata or Slurm where there is one; off; flags: the three keys below
            coordinator=placeholder(str),  # address:port of process 0
            processes=placeholder(int),  # how many
            process=placeholder(int),  # the number of this one, from 0
        )
    )
    config.compilation_cache = "auto"  # folder of compiled programs; auto: JAX's own, or ~/.cache/i2v-jax; "": none
