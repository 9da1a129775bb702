"""Names of the Flax models that diffusers (before 0.40) and transformers (before 5.0) had.

They are those of the PyTorch models, and the arrays are stored as here; only 1x1 convolutions keep their window.
"""

import re
from collections.abc import Iterable

import numpy as np

from i2v_jax.weights.formats.clip import CLIP_TEXT, CLIP_VISION
from i2v_jax.weights.formats.controlnet import DIFFUSERS_CONTROLNET, DIFFUSERS_CONTROLNET_LINEAR
from i2v_jax.weights.formats.diffusers import OLD_VAE, unet_rows
from i2v_jax.weights.names import (
    CONVOLUTION,
    DENSE,
    DENSE_AS_CONV,
    MATRIX,
    SAME,
    TINY_CONVOLUTION,
    Kind,
    Layout,
    Row,
    Table,
)


def _of_rank(rank: int) -> Layout:
    def same(array: np.ndarray) -> np.ndarray:
        if array.ndim != rank:
            raise ValueError(f"rank {array.ndim}, wanted {rank}")
        return array

    return Layout(same, same)


# How PyTorch stores a tensor -> how Flax does.
LAYOUTS = {
    MATRIX: _of_rank(2),
    CONVOLUTION: _of_rank(4),
    TINY_CONVOLUTION: Layout(
        lambda kernel: kernel.reshape(kernel.shape[2:]) if kernel.ndim == 4 else _of_rank(4).to_ours(kernel),
        lambda kernel: kernel[None, None],
    ),
    SAME: SAME,
}


def _kind(kind: Kind) -> Kind:
    """The same kind of layer under Flax's leaf names, which are ours. A tensor that a row names itself stays so."""
    return kind if "" in kind else {leaf: (leaf, LAYOUTS[layout]) for leaf, layout in kind.values()}


def _flax(name: str, rows: Iterable[Row], number: str) -> Table:
    """The Flax model of a PyTorch model's rows; `number` says how a numbered layer is written there."""
    numbered = re.compile(r"\.(\d+|\{\w+\})(?=\.|$)")
    return Table(name, [Row(numbered.sub(number, row.theirs), row.ours, _kind(row.kind)) for row in rows])


FLAX_TABLES = {
    "unet": (
        _flax("diffusers Flax UNet", unet_rows(DENSE_AS_CONV), r"_\1"),
        _flax("diffusers Flax UNet, linear projections", unet_rows(DENSE), r"_\1"),
    ),
    "controlnet": (
        _flax("diffusers Flax ControlNet", DIFFUSERS_CONTROLNET.rows, r"_\1"),
        _flax("diffusers Flax ControlNet, linear projections", DIFFUSERS_CONTROLNET_LINEAR.rows, r"_\1"),
    ),
    "vae": (_flax("diffusers FlaxAutoencoderKL", OLD_VAE.rows, r"_\1"),),
    "text_encoder": (_flax("transformers Flax CLIP text", CLIP_TEXT.rows, r".\1"),),
    "image_encoder": (_flax("transformers Flax CLIP vision", CLIP_VISION.rows, r".\1"),),
}
FLAX_TABLES["text_encoder_2"] = FLAX_TABLES["text_encoder"]
