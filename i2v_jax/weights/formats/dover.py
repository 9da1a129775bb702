"""Names of DOVER: both backbones and heads in one file, with an index table of every window attention."""

import numpy as np

from i2v_jax.weights.names import BUFFER, DENSE, NORM, RAW, SAME, Kind, Layout, Row, Table, under


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
    Row("norm1", "norm1", NORM),
    Row("attn.relative_position_bias_table", "attn/relative_position_bias_table", RAW),
    Row("attn.fragment_position_bias_table", "attn/fragment_position_bias_table", RAW),
    Row(f"attn.{INDEX}", f"attn/{INDEX}", BUFFER),
    Row("attn.qkv", "attn/qkv", DENSE),
    Row("attn.proj", "attn/proj", DENSE),
    Row("norm2", "norm2", NORM),
    Row("mlp.fc1", "fc1", DENSE),
    Row("mlp.fc2", "fc2", DENSE),
]
_SWIN = [
    Row("patch_embed.proj", "patch_embed/proj", CONV3D),
    Row("patch_embed.norm", "patch_embed/norm", NORM),
    *under("layers.{i}.blocks.{j}.", "layers_{i}/blocks_{j}/", _SWIN_BLOCK),
    Row("layers.{i}.downsample.reduction", "layers_{i}/downsample_reduction", DENSE),
    Row("layers.{i}.downsample.norm", "layers_{i}/downsample_norm", NORM),
    Row("norm", "norm", NORM),
]
_CONVNEXT_BLOCK = [
    Row("gamma", "gamma", RAW),
    Row("dwconv", "dwconv", CONV3D),
    Row("norm", "norm", NORM),
    Row("pwconv1", "pwconv1", DENSE),
    Row("pwconv2", "pwconv2", DENSE),
]
_CONVNEXT = [
    Row("downsample_layers.0.0", "downsample_0/conv", CONV3D),
    Row("downsample_layers.0.1", "downsample_0/norm", NORM),
    Row("downsample_layers.{i}.0", "downsample_{i}/norm", NORM),
    Row("downsample_layers.{i}.1", "downsample_{i}/conv", CONV3D),
    *under("stages.{i}.{j}.", "stages_{i}/blocks_{j}/", _CONVNEXT_BLOCK),
    Row("norm", "norm", NORM),
]
_HEAD = [Row(name, name, DENSE_AS_CONV3D) for name in ("fc_hid", "fc_last")]

DOVER = Table(
    "DOVER",
    [
        *under("technical_backbone.", "technical_backbone/", _SWIN),
        *under("aesthetic_backbone.", "aesthetic_backbone/", _CONVNEXT),
        *under("technical_head.", "technical_head/", _HEAD),
        *under("aesthetic_head.", "aesthetic_head/", _HEAD),
    ],
)
