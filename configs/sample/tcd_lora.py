"""TCD-LoRA (Zheng et al. 2024): `tcd_lora.py:sd15` or `:sdxl`, any model of that family in 4 steps or more.

As its makers have it (h1t/TCD-SD15-LoRA, h1t/TCD-SDXL-LoRA): no guidance, eta (their gamma) 0.3; with more steps a
larger one. It was distilled on pictures; motion modules and noise schedule are those of the family's other configs.
"""

from ml_collections import ConfigDict

from configs import variants
from configs.sample import sd15, sdxl

FAMILIES = dict(sd15=(sd15, "h1t/TCD-SD15-LoRA"), sdxl=(sdxl, "h1t/TCD-SDXL-LoRA"))


def get_config(name: str = "sd15") -> ConfigDict:
    config = variants.in_few_steps(FAMILIES, name, "tcd_lora.py")
    config.sampler = "tcd"
    config.sampler_options.eta = 0.3
    return config
