"""DynamiCrafter (Xing et al. 2023): weights and noise schedule of each published model, for all commands.

`256`, `512`, `1024`, named by the size of their videos (the latter two are wider than high), and `interp`, which
was trained to end in a second picture. Each is one file of about 10 GB with all networks in it.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs import variants
from configs.models import sd15


class Published(NamedTuple):
    """A published model."""

    hub: str
    height: int
    width: int
    fs: int  # frames a second, fewer for more motion; of 256 the stride between frames, more for more motion
    base_scale: float  # of the dynamic rescale, 0: none
    predicts_v: bool = True  # from zero terminal SNR


MODELS = {
    "256": Published("Doubiiu/DynamiCrafter", 256, 256, 3, 0.0, predicts_v=False),
    "512": Published("Doubiiu/DynamiCrafter_512", 320, 512, 24, 0.7),
    "1024": Published("Doubiiu/DynamiCrafter_1024", 576, 1024, 10, 0.3),
    "interp": Published("Doubiiu/DynamiCrafter_512_Interp", 320, 512, 5, 0.7),
}


def published(name: str, file: str) -> Published:
    """Returns a model by its name; `file` is the config that was asked for it."""
    return variants.row(MODELS, name, file)


def weights(model: Published) -> ConfigDict:
    """As those of SD1.5; the base has all networks. Fine-tuned models go by `base` too."""
    weights = sd15.weights()
    weights.base = f"{model.hub}/model.ckpt"
    weights.motion = weights.adapter = weights.image_adapter = weights.image_encoder = ""
    return weights


def noise_schedule(model: Published) -> ConfigDict:
    """Stable Diffusion's, in double precision as the published code has it."""
    schedule = sd15.noise_schedule()
    schedule.kind = "scaled_linear_double"
    if model.predicts_v:
        schedule.prediction_type = "v_prediction"
        schedule.zero_terminal_snr = True
    schedule.base_scale = model.base_scale  # clean latents are this much smaller at noisy timesteps
    return schedule


def sampler_options(model: Published) -> dict[str, Any]:
    """Of `ldm_ddim`, as published."""
    return dict(spacing="trailing" if model.predicts_v else "leading", eta=1.0)
