"""LCM-LoRA (Luo et al. 2023): `lcm_lora.py:sd15` or `:sdxl`, any model of that family in 4 (2 to 8) steps.

As its makers have it (latent-consistency/lcm-lora-sdv1-5, -sdxl): guidance 1, at most 2. It was distilled on pictures;
motion modules and noise schedule are those of the other configs of the family.
"""

from ml_collections import ConfigDict

from configs import variants
from configs.sample import sd15, sdxl

FAMILIES = dict(
    sd15=(sd15, "latent-consistency/lcm-lora-sdv1-5"),
    sdxl=(sdxl, "latent-consistency/lcm-lora-sdxl"),
)


def get_config(name: str = "sd15") -> ConfigDict:
    config = variants.in_few_steps(FAMILIES, name, "lcm_lora.py")
    config.sampler = "lcm"
    return config
