"""Animate a picture along poses: Stable Diffusion XL with an OpenPose ControlNet, 16 frames of 512x512.

As configs/sample/pose.py, with the model of configs/sample/sdxl.py. The ControlNet takes 2.5 GB more to fetch.
"""

from ml_collections import ConfigDict

from configs.sample import sdxl


def get_config() -> ConfigDict:
    config = sdxl.get_config()
    config.weights.controls = ("xinsir/controlnet-openpose-sdxl-1.0",)
    return config
