"""Which implementations of attention and convolution are fastest where."""

from typing import Any

import jax
import jax.numpy as jnp

from i2v_jax.errors import InputError, check_known
from i2v_jax.models import attention as attentions
from i2v_jax.models import convolution as convolutions

KNOWN = dict(attention=tuple(attentions.IMPLEMENTATIONS), convolution=convolutions.IMPLEMENTATIONS)


def platform_of(device: jax.Device) -> str:
    """Returns "cpu", "cuda", "rocm" or "tpu"; JAX itself calls both sorts of GPU "gpu"."""
    if device.platform != "gpu":
        return device.platform
    return "rocm" if "rocm" in device.client.platform_version else "cuda"


def fastest(platform: str, dtype: Any) -> dict[str, str]:
    """Returns `attention` and `convolution` for a network's config.

    Args:
      platform: from `platform_of` a device the program will run on.
      dtype: of the activations.

    Raises:
      InputError: another platform.
    """
    half = jnp.dtype(dtype).itemsize == 2
    choices = dict(
        # Winograd's sums of inputs lose too much in bfloat16
        cpu=dict(attention="blocked", convolution="xla" if half else "winograd"),
        tpu=dict(attention="flash", convolution="xla"),
        # cuDNN's fused attention takes half precision only; in float32 whole scores would not fit
        cuda=dict(attention="cudnn" if half else "blocked", convolution="xla"),
        rocm=dict(attention="blocked", convolution="xla"),
    )
    if platform not in choices:
        raise InputError(f"No kernels known for platform {platform!r}; known: {', '.join(choices)}.")
    return choices[platform]


def choose(device: jax.Device, dtype: Any, attention: str = "auto", convolution: str = "auto") -> dict[str, str]:
    """Returns `attention` and `convolution` for a network's config: those named, the fastest where it says "auto".

    Raises:
      InputError: unknown implementation, or one that does not run on the device or in the dtype.
    """
    platform = platform_of(device)
    given = dict(attention=attention, convolution=convolution)
    for what, name in given.items():
        known = ("auto", *KNOWN[what])
        check_known(f"Unknown {what} ", name, known)
    if attention == "cudnn" and not (platform == "cuda" and jnp.dtype(dtype).itemsize == 2):
        raise InputError(
            f"attention='cudnn' runs on NVIDIA GPUs in bfloat16; this is {platform} in {jnp.dtype(dtype).name}. "
            "Take 'auto'."
        )
    if attention == "flash" and platform != "tpu":
        raise InputError(f"attention='flash' runs on TPUs; this is {platform}. Take 'auto'.")
    return fastest(platform, dtype) | {what: name for what, name in given.items() if name != "auto"}
