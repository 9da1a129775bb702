"""Animate a picture with Stable Diffusion 1.5, AnimateDiff v1 and I2V-Adapter, as the paper's SD1.5 model.

Every key can be set on the command line: `python sample.py --config configs/sample/sd15.py --config.image=cat.jpg`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()

    # What to animate: one picture; where none is named, a CSV with columns picture, prompt, negative_prompt, seed.
    config.image = placeholder(str)
    config.csv = placeholder(str)
    config.prompt = ""
    config.negative_prompt = (
        "worst quality, low quality, normal quality, lowres, bad anatomy, bad hands, watermark, moles"
    )
    config.seed = 42

    # The video.
    config.height = 512
    config.width = 512
    config.fit = "crop"  # a picture of another aspect: crop, pad, stretch
    config.frames = 16
    config.fps = 8
    config.match_colours = True  # LAB a and b of each frame to the first one's
    config.output = "output"  # folder of the mp4, gif, contact sheet and run record

    # Sampling.
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
    config.truncate_prompts = False  # cut prompts over 77 tokens with a warning, in place of an error

    # Weights: each a file, a folder or a hub id, in any known format; "" leaves a part out.
    config.weights = ConfigDict(
        dict(
            base="stable-diffusion-v1-5/stable-diffusion-v1-5",
            motion="guoyww/animatediff/mm_sd_v15.ckpt",
            adapter="space-xun/i2v_adapter/i2v_module.pth",
            image_adapter="h94/IP-Adapter/models/ip-adapter-plus_sd15.safetensors",
            image_encoder="h94/IP-Adapter/models/image_encoder",
            # in place of the base's own:
            unet=placeholder(str),
            vae=placeholder(str),
            text_encoder=placeholder(str),
            tokenizer=placeholder(str),
            trained=(),  # files that train.py wrote: their weights replace those of the same paths, in every network
        )
    )
    config.noise_schedule = ConfigDict(
        dict(
            kind="linear",  # that of AnimateDiff's SD1.5 motion modules
            beta_start=0.00085,
            beta_end=0.012,
            num_train_timesteps=1000,
            prediction_type="epsilon",
            zero_terminal_snr=False,
        )
    )

    # Arithmetic and devices.
    config.dtype = "auto"  # float32, bfloat16; auto: bfloat16 on GPU and TPU, float32 on CPU
    config.attention = "auto"  # auto, xla, blocked, cudnn, flash
    config.convolution = "auto"  # auto, xla, winograd
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, frames=1))  # -1: all devices that are left
    config.batch_per_device = 1  # videos at a time on each data device
    config.vae_slice = 1  # frames that each device decodes at a time
    config.compilation_cache = ".cache/jax"
    return config
