"""Animate a picture towards others: Stable Diffusion 1.5, AnimateDiff v3 and its SparseCtrl (Guo et al. 2023).

`python sample.py --config configs/sample/sparse.py --image=morning.jpg --prompt="a beach" --control=keys` shows in its
first and last frame the two pictures in the folder `keys`, say `1.jpg` (the same as `morning.jpg`) and `2.jpg`. Other
frames, as many as pictures: `--config.controls.frames="(0, 7, 15)"`. By drawings rather than pictures:
`--config.weights.controls=guoyww/animatediff/v3_sd15_sparsectrl_scribble.ckpt`. SparseCtrl takes 1.99 GB to fetch.
"""

from ml_collections import ConfigDict

from configs.sample import sd15


def get_config() -> ConfigDict:
    config = sd15.get_config()
    config.weights.motion = "guoyww/animatediff/v3_sd15_mm.ckpt"
    config.weights.adapter = ""  # SparseCtrl ties the video to its pictures, the first among them
    config.weights.loras = ("guoyww/animatediff/v3_sd15_adapter.ckpt=1.0",)  # the look of the clips it was trained on
    config.weights.controls = ("guoyww/animatediff/v3_sd15_sparsectrl_rgb.ckpt",)
    config.controls.frames = (0, 15)  # the first and the last of 16
    return config
