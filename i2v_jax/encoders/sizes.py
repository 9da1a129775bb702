"""SDXL's conditioning on sizes and crops (Podell et al. 2023, section 2.2): six numbers for each video."""

import numpy as np
from jaxtyping import Float32

Pair = tuple[int, int]


def encode(original: Pair, crop: Pair, target: Pair, count: int) -> Float32[np.ndarray, "count 6"]:
    """Returns the sizes of a number of videos, which share them, in the order that diffusers and the paper have.

    Args:
      original: height and width of the picture before it was scaled, pixels.
      crop: top and left of what was cropped out of the scaled picture, pixels; (0, 0) for well centred ones.
      target: height and width of the video, pixels.
      count: how many videos.
    """
    return np.tile(np.array([*original, *crop, *target], np.float32), (count, 1))
