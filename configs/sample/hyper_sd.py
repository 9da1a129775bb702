"""Hyper-SD (Ren et al. 2024): LoRAs of 1 to 12 steps for Stable Diffusion 1.5 and XL, and a UNet of XL of one step.

    python sample.py --config configs/sample/hyper_sd.py:sdxl_4 --config.image=cat.jpg

Names say the family, and the number of steps; without one, `sd15_4`. `_unified` is the LoRA of any number of steps from
1 to 8 (lower `sampler_options.eta` for more detail), `_guided` those that keep negative prompts and guidance of 5 to 8.
Settings are the makers' (ByteDance/Hyper-SD); they were distilled on pictures, motion modules and noise schedule are
those of the family's other configs.
"""

from ml_collections import ConfigDict

from configs import variants
from configs.sample import sd15, sdxl

FOLDER = "ByteDance/Hyper-SD"
FAMILIES = dict(sd15=(sd15, "Hyper-SD15"), sdxl=(sdxl, "Hyper-SDXL"))
# Stable Diffusion's own schedulers, which the makers take, end in the noise of timestep 0.
DDIM = dict(sampler="ddim", options=dict(spacing="trailing", set_alpha_to_one=False))
TCD = dict(sampler="tcd", options=dict(eta=1.0))
KINDS = {
    "unified": dict(file="1step-lora", steps=1, **TCD),
    "2": dict(file="2steps-lora", steps=2, **DDIM),
    "4": dict(file="4steps-lora", steps=4, **DDIM),
    "8": dict(file="8steps-lora", steps=8, **DDIM),
    "8_guided": dict(file="8steps-CFG-lora", steps=8, guidance_scale=5.0, **DDIM),
    "12_guided": dict(file="12steps-CFG-lora", steps=12, guidance_scale=5.0, **DDIM),
    "unet": dict(file="1step-Unet", steps=1, sampler="lcm", options=dict(timesteps=(800,))),
}
VARIANTS = {f"{family}_{kind}": (family, kind) for family in FAMILIES for kind in KINDS}
del VARIANTS["sd15_unet"]


def get_config(name: str = "sd15_4") -> ConfigDict:
    family, kind = variants.row(VARIANTS, name, "hyper_sd.py")
    (base, title), chosen = FAMILIES[family], KINDS[kind]
    config = base.get_config()
    source = f"{FOLDER}/{title}-{chosen['file']}.safetensors"
    if kind == "unet":
        config.weights.unet = source
    else:
        config.weights.loras = (source,)
    config.sampler = chosen["sampler"]
    config.sampler_options.update(chosen["options"])
    config.steps = chosen["steps"]
    config.guidance_scale = chosen.get("guidance_scale", 1.0)
    if config.guidance_scale == 1.0:
        config.negative_prompt = ""
    return config
