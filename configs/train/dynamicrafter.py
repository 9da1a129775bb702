"""DynamiCrafter fine-tuned on captioned clips: `dynamicrafter.py:512`, `:256`, `:1024`, `:interp`.

    python train.py --config configs/train/dynamicrafter.py:512 --config.data.source=CLIPS
    python sample.py --config configs/sample/dynamicrafter.py:512 --image=PICTURE --prompt="a cat runs" \\
        --config.weights.trained="('runs/dynamicrafter/trained.safetensors',)"

The UNet and the image projection, 1.49 G weights, as published: with their gradients and AdamW's averages 24 GB in
float32, cut over `mesh.fsdp` chips. Those of the attentions alone: --config.train="('unet/.*/(attn1|attn2)/.*',)".
docs/dynamicrafter.md.
"""

from ml_collections import ConfigDict

from configs.models import dynamicrafter
from configs.train import sd15_stage1


def get_config(name: str = "512") -> ConfigDict:
    model = dynamicrafter.published(name, "dynamicrafter.py")
    config = sd15_stage1.get_config()
    config.train = ("unet/.*", "image_proj/.*")
    config.branches = ()
    config.weights = dynamicrafter.weights(model)
    config.noise_schedule = dynamicrafter.noise_schedule(model)

    config.objective.first_frame = "noisy"
    config.objective.picture = "ends" if name == "interp" else "random"
    config.objective.exclusive_dropout = True
    config.objective.prompt_dropout = config.objective.image_dropout = config.objective.joint_dropout = 0.05
    if name in ("512", "1024"):  # the two that were published so (cond-image-leakage, Zhao et al. 2024)
        config.objective.image_noise = 100.0

    config.optimizer.learning_rate = 1e-5
    config.optimizer.clip_norm = 0.5
    config.data.height, config.data.width = model.height, model.width
    config.data.stride, config.data.least_stride = 6, 1
    config.data.rate = "fps" if model.predicts_v else "stride"
    config.batch = 64
    config.steps = 20_000
    config.remat = "full"
    config.frozen = "fsdp"
    config.mesh.fsdp = 8

    config.folder = "runs/dynamicrafter"
    config.samples.sampler = "ldm_ddim"
    config.samples.update(dynamicrafter.sampler_options(model))
    config.samples.guidance_rescale = 0.7 if model.predicts_v else 0.0
    config.samples.fs = model.fs
    return config
