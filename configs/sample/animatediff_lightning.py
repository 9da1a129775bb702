"""AnimateDiff-Lightning (Lin & Yang 2024): motion modules for Stable Diffusion 1.5 distilled to 1, 2, 4 or 8 steps.

    python sample.py --config configs/sample/animatediff_lightning.py:8 --config.image=cat.jpg

Without a number, 4. Each file wants its own number of steps (ByteDance/AnimateDiff-Lightning; 3 of `:2` are good too),
`trailing` timesteps ("sgm_uniform" elsewhere) and no guidance. That of one step is for research, say its makers, who
recommend bases that are fine-tuned to a style, such as emilianJR/epiCRealism.
"""

from ml_collections import ConfigDict

from configs import variants
from configs.sample import sd15

STEPS = {str(steps): steps for steps in (1, 2, 4, 8)}


def get_config(name: str = "4") -> ConfigDict:
    config = sd15.get_config()
    config.steps = variants.row(STEPS, name, "animatediff_lightning.py")
    file = f"animatediff_lightning_{config.steps}step_diffusers.safetensors"
    config.weights.motion = f"ByteDance/AnimateDiff-Lightning/{file}"
    config.negative_prompt = ""
    config.sampler = "euler"
    config.sampler_options.spacing = "trailing"
    config.guidance_scale = 1.0
    return config
