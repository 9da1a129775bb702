"""AnimateLCM (Wang et al. 2024): Stable Diffusion 1.5 with its motion modules and its LoRA, 16 frames in 6 steps.

As its makers have it (wangfuyun/AnimateLCM): 4 to 8 steps, guidance 1 to 2; 1 halves the time. Its motion modules know
64 frames, which their file does not tell.
"""

from ml_collections import ConfigDict

from configs.sample import sd15


def get_config() -> ConfigDict:
    config = sd15.get_config()
    config.negative_prompt = "bad quality, worse quality, low resolution"
    config.weights.motion = "wangfuyun/AnimateLCM/AnimateLCM_sd15_t2v.ckpt"
    config.weights.motion_frames = 64
    config.weights.loras = ("wangfuyun/AnimateLCM/AnimateLCM_sd15_t2v_lora.safetensors=0.8",)
    config.sampler = "lcm"
    config.steps = 6
    config.guidance_scale = 2.0
    return config
