"""Names of DOVER: both backbones and heads in one file, with an index table of every window attention."""

import numpy as np

from i2v_jax.weights.names import BUFFER, DENSE, NORM, RAW, SAME, Kind, Layout, Row, Table, alike, under


def _of_one(weight: np.ndarray) -> np.ndarray:
    """[out, in, 1, 1, 1] to [in, out]."""
    if weight.shape[2:] != (1, 1, 1):
        raise ValueError(weight.shape)
    return weight.reshape(weight.shape[:2]).transpose(1, 0)


CONV3D: Kind = {
    "weight": (
        "kernel",
        Layout(lambda weight: weight.transpose(2, 3, 4, 1, 0), lambda kernel: kernel.transpose(4, 3, 0, 1, 2)),
    ),
    "bias": ("bias", SAME),
}
DENSE_AS_CONV3D: Kind = {
    "weight": ("kernel", Layout(_of_one, lambda kernel: kernel.transpose(1, 0)[:, :, None, None, None])),
    "bias": ("bias", SAME),
}
INDEX = "relative_position_index"

_SWIN_BLOCK = [
    *alike(norm1=NORM),
    *under("attn.", "attn/", alike(relative_position_bias_table=RAW, fragment_position_bias_table=RAW)),
    *under("attn.", "attn/", alike(**{INDEX: BUFFER}, qkv=DENSE, proj=DENSE)),
    *alike(norm2=NORM),
    *under("mlp.", "", alike(fc1=DENSE, fc2=DENSE)),
]
_SWIN = [
    *under("patch_embed.", "patch_embed/", alike(proj=CONV3D, norm=NORM)),
    *under("layers.{i}.blocks.{j}.", "layers_{i}/blocks_{j}/", _SWIN_BLOCK),
    *under("layers.{i}.downsample.", "layers_{i}/downsample_", alike(reduction=DENSE, norm=NORM)),
    *alike(norm=NORM),
]
_CONVNEXT_BLOCK = alike(gamma=RAW, dwconv=CONV3D, norm=NORM, pwconv1=DENSE, pwconv2=DENSE)
_CONVNEXT = [
    Row("downsample_layers.0.0", "downsample_0/conv", CONV3D),
    Row("downsample_layers.0.1", "downsample_0/norm", NORM),
    Row("downsample_layers.{i}.0", "downsample_{i}/norm", NORM),
    Row("downsample_layers.{i}.1", "downsample_{i}/conv", CONV3D),
    *under("stages.{i}.{j}.", "stages_{i}/blocks_{j}/", _CONVNEXT_BLOCK),
    *alike(norm=NORM),
]
_HEAD = alike(fc_hid=DENSE_AS_CONV3D, fc_last=DENSE_AS_CONV3D)

DOVER = Table(
    "DOVER",
    [
        *under("technical_backbone.", "technical_backbone/", _SWIN),
        *under("aesthetic_backbone.", "aesthetic_backbone/", _CONVNEXT),
        *under("technical_head.", "technical_head/", _HEAD),
        *under("aesthetic_head.", "aesthetic_head/", _HEAD),
    ],
)
