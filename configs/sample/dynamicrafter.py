"""Animate a picture with DynamiCrafter (Xing et al. 2023): `dynamicrafter.py:512`, or `:256`, `:1024`, `:interp`.

    python sample.py --config configs/sample/dynamicrafter.py:512 --image=cat.jpg --prompt="a cat runs"

16 frames; without a name, those of 512. Between two pictures: `:interp --config.last_picture=end.jpg`; in a loop:
`:interp --config.loop=True`. Settings are the makers'. The file takes about 10 GB to fetch.
"""

from ml_collections import ConfigDict

from configs.models import dynamicrafter
from configs.sample import sd15


def get_config(name: str = "512") -> ConfigDict:
    model = dynamicrafter.published(name, "dynamicrafter.py")
    config = sd15.get_config()
    config.weights = dynamicrafter.weights(model)
    config.noise_schedule = dynamicrafter.noise_schedule(model)
    config.height, config.width = model.height, model.width
    config.negative_prompt = ""
    config.match_colours = False
    config.steps = 50
    config.guidance_rescale = 0.7 if model.predicts_v else 0.0
    config.sampler = "ldm_ddim"
    config.sampler_options.update(dynamicrafter.sampler_options(model))
    config.fs = model.fs  # frames a second that it is told, fewer for more motion; of 256 the stride between frames
    return config
