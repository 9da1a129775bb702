"""Masks where pictures are wanted: what has no colours to look at."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from i2v_jax.errors import InputError
from i2v_jax.media import Picture

PURE = 0.99  # share of pixels that are black or white, from which on a picture is a mask; lossy files leave few others


def check_alpha(given: Any) -> None:
    """Raises InputError for a picture (file, array, Pillow's) of one colour, with its shapes in transparency alone."""
    if isinstance(given, np.ndarray) and given.dtype == np.uint8 and given.ndim == 3 and given.shape[-1] == 4:
        given = Image.fromarray(given)
    if isinstance(given, Image.Image):
        _check_alpha(given, "The picture")
    elif isinstance(given, str | os.PathLike):
        try:
            with Image.open(os.path.expanduser(given)) as image:
                _check_alpha(image, repr(str(given)))
        except (OSError, ValueError, SyntaxError) as error:
            if isinstance(error, InputError):
                raise
            return  # whoever reads its pixels says why it cannot be read


def _check_alpha(image: Image.Image, name: str) -> None:
    if not image.has_transparency_data:
        return
    pixels = np.asarray(image.convert("RGBA"))
    colours, alpha = pixels[..., :3], pixels[..., 3]
    if (colours == colours[0, 0]).all() and (alpha != alpha[0, 0]).any():
        raise InputError(
            f"{name} is a mask: one colour, with its shapes in the transparency alone. Lay it on a background (white "
            "lines on black, as control networks learned them), and save it without transparency."
        )


def check_no_masks(name: str, pictures: Sequence[Picture], process: str) -> None:
    """Raises InputError where all pictures are black and white alone."""
    if all(_is_mask(picture) for picture in pictures):
        raise InputError(
            f"{name} is black and white alone, a mask or outlines, and process={process!r} wants pictures. Give the "
            "pictures; or process='none', which takes ready-made control pictures as they are."
        )


def _is_mask(picture: Picture) -> bool:
    grey = (picture == picture[..., :1]).all()
    black, white = (picture[..., 0] == 0).mean(), (picture[..., 0] == 255).mean()
    return bool(grey and black and white and black + white >= PURE)
