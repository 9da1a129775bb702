"""Optical flow by OpenCV, and pictures seen through a flow.

What is at (x, y) in a frame is at (x, y) + flow[y, x] in the next one.
"""

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

Picture = UInt8[np.ndarray, "h w 3"]
Flow = Float32[np.ndarray, "h w 2"]  # (right, down) in pixels

SMALL = 256  # pixels; pictures with a shorter side are small
SMALLEST = 12  # pixels of a side, below which OpenCV's search has no patch to match


def dense_inverse_search(frame: Picture, following: Picture) -> Flow:
    """Dense inverse search (Kroeger et al. 2016) down to the finest scale, by OpenCV.

    It matches patches of 8 pixels, much of what is in a small picture, so these are doubled first.
    """
    size = frame.shape[1::-1]
    scale = 2 if min(size) < SMALL else 1
    pair = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (frame, following)]
    if scale > 1:
        pair = [cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC) for picture in pair]
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(0)  # the preset ends at half size, which costs thin and small things
    return cv2.resize(search.calc(*pair, None), size, interpolation=cv2.INTER_AREA) / scale


def warp(image: Float[np.ndarray, "h w c"], flow: Flow) -> Float32[np.ndarray, "h w c"]:
    """Fetches what each pixel moves to: bilinear, from the nearest pixel where that is outside of the picture."""
    x, y = np.meshgrid(*(np.arange(side, dtype=np.float32) for side in image.shape[1::-1]))
    ends = x + flow[..., 0], y + flow[..., 1]
    return cv2.remap(np.float32(image), *ends, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
