"""Other looks of the same shapes: what a style is learned from."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import UInt8
from skimage import color

Pictures = UInt8[np.ndarray, "*frames h w 3"]

BLUEPRINT = (12, 28, 92), (245, 248, 255)
"""Its darkest and its lightest colour, RGB; all others lie between."""


def blueprint(pictures: Pictures) -> Pictures:
    """Brightness alone, from a dark blue to white."""
    share = color.rgb2gray(pictures)[..., None]
    dark, light = np.array(BLUEPRINT)
    return np.round(dark + share * (light - dark)).astype(np.uint8)


LOOKS: Mapping[str, Callable[[Pictures], Pictures]] = {"blueprint": blueprint}
"""Name, which captions give -> what makes pictures look so."""
