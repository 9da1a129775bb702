"""Animate a picture along poses: Stable Diffusion 1.5 with an OpenPose ControlNet (I2V-Adapter, section 4.5).

`python sample.py --config configs/sample/pose.py --image=dancer.jpg --prompt="a dancer" --control=poses.mp4`, at any
size of multiples of 8, such as `--height=640 --width=384`. `poses.mp4` shows skeletons in OpenPose's colours, a frame
each. The ControlNet takes 1.45 GB more to fetch. Others go by `--config.weights.controls`, several in a tuple.
"""

from ml_collections import ConfigDict

from configs.sample import sd15


def get_config() -> ConfigDict:
    config = sd15.get_config()
    config.weights.controls = ("lllyasviel/control_v11p_sd15_openpose",)
    return config
