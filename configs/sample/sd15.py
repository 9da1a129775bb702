"""Animate a picture with Stable Diffusion 1.5, AnimateDiff v1 and I2V-Adapter, as the paper's SD1.5 model.

Every key can be set on the command line: `python sample.py --config configs/sample/sd15.py --config.image=cat.jpg`.
The keys of `weights` and `noise_schedule` are explained in configs/models/sd15.py.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.models import sd15


def get_config() -> ConfigDict:
    config = ConfigDict()

    # What to animate: one picture; where none is named, a CSV with columns picture, prompt, negative_prompt, seed.
    config.image = placeholder(str)
    config.csv = placeholder(str)
    config.prompt = ""
    config.negative_prompt = (
        "worst quality, low quality, normal quality, lowres, bad anatomy, bad hands, watermark, moles"
    )
    config.prompt_2 = placeholder(str)  # for a second text encoder; unset: the same
    config.negative_prompt_2 = placeholder(str)
    config.seed = 42

    # The video.
    config.height = 512
    config.width = 512
    config.fit = "crop"  # a picture of another aspect: crop, pad, stretch
    config.frames = 16
    config.fps = 8
    config.match_colours = True  # LAB a and b of each frame to the first one's
    config.output = "output"  # folder of the mp4, gif, contact sheet and run record

    add_sampling(config)
    config.weights = sd15.weights()
    config.noise_schedule = sd15.noise_schedule()
    add_arithmetic(config)
    return config


def add_sampling(config: ConfigDict) -> None:
    """How the latents are sampled."""
    config.steps = 25
    config.guidance_scale = 7.5
    config.guidance_rescale = 0.0
    config.sampler = "ddim"  # ddim, euler, euler_ancestral, dpmpp_2m, lcm
    config.sampler_options = ConfigDict(
        dict(
            spacing="leading",  # leading, trailing, linspace
            steps_offset=1,
            eta=0.0,  # ddim
            set_alpha_to_one=True,  # ddim
            karras_sigmas=False,  # dpmpp_2m
            original_steps=50,  # lcm
        )
    )
    config.t0 = 1.0  # Frame Similarity Prior: start of the run, (0, 1]
    config.p = 0.5  # Frame Similarity Prior: share of unblurred elements, [0, 1]
    config.adapter_scale = 1.0
    config.image_token_scale = 1.0
    config.sizes = ConfigDict(  # what SDXL is told of size and crop, in pixels; (): the video's own size, and (0, 0)
        dict(
            original_size=(),  # (height, width)
            crop=(),  # (top, left)
            target_size=(),
            negative_original_size=(),  # (): as above
            negative_crop=(),
            negative_target_size=(),
        )
    )
    config.truncate_prompts = False  # cut prompts over 77 tokens with a warning, in place of an error


def add_arithmetic(config: ConfigDict) -> None:
    """Arithmetic and devices."""
    config.dtype = "auto"  # float32, bfloat16; auto: bfloat16 on GPU and TPU, float32 on CPU
    config.attention = "auto"  # auto, xla, blocked, cudnn, flash
    config.convolution = "auto"  # auto, xla, winograd
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, frames=1))  # -1: all devices that are left
    config.batch_per_device = 1  # videos at a time on each data device
    config.vae_slice = 1  # frames that each device decodes at a time
    config.compilation_cache = ".cache/jax"
