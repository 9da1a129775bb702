"""A long video: 64 frames of Stable Diffusion 1.5 in windows of 16, docs/longer.md. Any number by `--frames`.

    python sample.py --config configs/sample/long.py --image=sea.jpg --prompt="a calm sea"

`long.py:loop` goes on with its first frame; `long.py:free_noise` is FreeNoise (Qiu et al. 2024), of which a step wants
memory for all frames; `:sdxl`, `:sdxl_loop`, `:sdxl_free_noise` are of SDXL. Prompts by frame:
`--config.prompt_travel="{0: 'a calm sea', 24: 'a storm'}"`.
"""

from ml_collections import ConfigDict

from configs import variants
from configs.sample import sd15, sdxl

KINDS = {
    "": dict(schedule="shifted"),
    "loop": dict(schedule="looped"),
    "free_noise": dict(average="attention", overlap=12, noise="shuffle"),  # as diffusers has it
}
VARIANTS = {kind or "windows": (sd15, kind) for kind in KINDS}
VARIANTS |= {f"sdxl_{kind}".rstrip("_"): (sdxl, kind) for kind in KINDS}


def get_config(name: str = "windows") -> ConfigDict:
    base, kind = variants.row(VARIANTS, name, "long.py")
    config = base.get_config()
    config.frames = 64
    config.windows.length = 16  # as the motion modules were trained
    config.windows.update(KINDS[kind])
    return config
