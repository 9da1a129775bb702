"""Which implementations of attention and convolution are fastest where."""

from typing import Any

import jax.numpy as jnp

from i2v_jax.errors import InputError


def fastest(platform: str, dtype: Any) -> dict[str, str]:
    """Returns `attention` and `convolution` for a network's config.

    Args:
      platform: "cpu", "gpu" ("cuda", "rocm") or "tpu": that of the devices the program will run on.
      dtype: of the activations.

    Raises:
      InputError: another platform.
    """
    if platform == "cpu":
        return dict(attention="blocked", convolution="winograd")
    if platform == "tpu":
        return dict(attention="flash", convolution="xla")
    if platform in ("gpu", "cuda"):
        half = jnp.dtype(dtype).itemsize == 2  # all that cuDNN's fused attention takes
        return dict(attention="cudnn" if half else "xla", convolution="xla")
    if platform == "rocm":
        return dict(attention="xla", convolution="xla")
    raise InputError(f"No kernels known for platform {platform!r}; known: cpu, gpu, tpu.")
