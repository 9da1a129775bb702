"""Block-weighted merge of two community models: another share of `b` in each level of the UNet.

    python -m convert merge block_weighted a=ONE b=OTHER merged=BOTH.safetensors --number up_1=0.8

`block_weighted:sdxl` is for SDXL's three levels. Names of tensors: docs/merging.md.
"""

from ml_collections import ConfigDict

from configs import variants

LEVELS = dict(sd15=4, sdxl=3)


def get_config(family: str = "sd15") -> ConfigDict:
    levels = variants.row(LEVELS, family, "block_weighted.py")
    config = ConfigDict()
    config.models = ("a", "b")
    config.numbers = dict(
        # shares of b: 0 is all a, 1 all b
        **{f"down_{i}": 0.25 for i in range(levels)},  # the finest first
        mid=0.5,
        **{f"up_{i}": 0.75 for i in range(levels)},  # the coarsest first
        unet=0.5,  # what is in no level: time embedding, first and last layer
        rest=0.0,  # text encoders, autoencoder
    )
    blocks = [(f"unet/{side}_blocks_{i}/.*", f"{side}_{i}") for side in ("down", "up") for i in range(levels)]
    blocks += [("unet/mid_block/.*", "mid"), ("unet/.*", "unet")]
    config.results = dict(
        merged=tuple((pattern, f"(1 - {share}) * a + {share} * b") for pattern, share in blocks)
        + ((r"(?!unet/).*", "(1 - rest) * a + rest * b"),)
    )
    config.unmatched = "refuse"
    config.seed = 0
    return config
