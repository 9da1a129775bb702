"""DINO's vision transformer (Caron et al. 2021): a picture to one vector, alike for pictures of one subject.

Published layouts: facebookresearch's `dino_vitbase16_pretrain.pth`, and transformers' ViTModel. Its layers are CLIP's.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from i2v_jax.models.clip import CLIPConfig, norm, run_layers
from i2v_jax.models.layers import parameter

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
"""Of the channels of ImageNet, 0 to 1."""


@dataclasses.dataclass(frozen=True)
class DINOConfig(CLIPConfig):
    """A vision transformer. Defaults: ViT-B/16.

    Attributes:
      patch_size: height and width of a patch, in pixels.
      grid: patches of a side, as trained: 14 of 224 pixels.
    """

    hidden_act: str = "gelu"
    norm_epsilon: float = 1e-6
    patch_size: int = 16
    grid: int = 14

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any], **overrides: Any) -> "DINOConfig":
        """Reads the `config.json` of a transformers ViTModel.

        Raises:
          KeyError: a setting is not there.
        """
        fields = {ours: config[theirs] for ours, theirs in _KEYS.items()}
        return cls(**(fields | dict(grid=config["image_size"] // config["patch_size"]) | overrides))


_KEYS = {
    "width": "hidden_size",
    "mlp_width": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_act": "hidden_act",
    "norm_epsilon": "layer_norm_eps",
    "patch_size": "patch_size",
}
"""Field -> key in a `config.json`."""


class Patches(nn.Module):
    """A convolution whose stride is its size; pixels that fill no patch are dropped."""

    config: DINOConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b gh gw c"]:
        c, side = self.config, (self.config.patch_size,) * 2
        kernel = parameter(self, "kernel", nn.initializers.lecun_normal(), (*side, 3, c.width), c.param_dtype)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), (c.width,), c.param_dtype)
        pixels, kernel = pixels.astype(c.dtype), kernel.astype(c.dtype)
        axes = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(pixels, kernel, side, "VALID", dimension_numbers=axes) + bias.astype(
            c.dtype
        )


class DINO(nn.Module):
    """Encodes pictures."""

    config: DINOConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b c"]:
        """Runs the encoder.

        Args:
          pixels: normalised by `MEAN` and `STD`, of any size from a patch on. Of another than that trained at, the
            position table is resized, as the published code does.

        Returns:
          The class token's state after the last norm.
        """
        c = self.config
        initial = nn.initializers.normal(0.02)
        class_token = parameter(self, "class_token", initial, (1, 1, c.width), c.param_dtype).astype(c.dtype)
        table = parameter(self, "positions", initial, (1, 1 + c.grid**2, c.width), c.param_dtype).astype(c.dtype)
        patches = Patches(c, name="patch_embedding")(pixels)
        count, height, width = patches.shape[:3]
        of_class, of_patches = table[:, :1], table[:, 1:]
        if (height, width) != (c.grid, c.grid):
            square = of_patches.reshape(c.grid, c.grid, c.width)
            rows, columns = resizing(c.grid, height), resizing(c.grid, width)
            of_patches = jnp.einsum("ih,jw,hwc->ijc", rows, columns, square).reshape(1, height * width, c.width)
        tokens = patches.reshape(count, height * width, c.width) + of_patches
        first = jnp.broadcast_to(class_token + of_class, (count, 1, c.width))
        *_, last = run_layers(c, jnp.concatenate([first, tokens], 1), causal=False)
        return norm(c, "norm")(last[:, 0])


def resizing(count: int, wanted: int) -> Float[np.ndarray, "wanted count"]:
    """Returns the matrix of the published code's bicubic resize (Keys, a = -0.75, edges repeated).

    Its step is that of `wanted + 0.1` places, which guards against a size rounded down.
    """
    at = (np.arange(wanted) + 0.5) * count / (wanted + 0.1) - 0.5
    weights = np.zeros((wanted, count))
    for offset in (-1, 0, 1, 2):
        place = np.floor(at).astype(int) + offset
        x = np.abs(at - place)
        near, far = 1.25 * x**3 - 2.25 * x**2 + 1, -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
        np.add.at(weights, (np.arange(wanted), np.clip(place, 0, count - 1)), np.where(x <= 1, near, far))
    return weights.astype(np.float32)
