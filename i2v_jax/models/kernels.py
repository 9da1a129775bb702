"""Which implementations of attention and convolution are fastest where."""

from typing import Any

import jax.numpy as jnp

from i2v_jax.errors import InputError, nearest
from i2v_jax.models import attention as attentions
from i2v_jax.models import convolution as convolutions

KNOWN = dict(attention=tuple(attentions.IMPLEMENTATIONS), convolution=convolutions.IMPLEMENTATIONS)


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


def choose(platform: str, dtype: Any, attention: str = "auto", convolution: str = "auto") -> dict[str, str]:
    """Returns `attention` and `convolution` for a network's config: those named, the fastest where it says "auto".

    Raises:
      InputError: unknown implementation, or one that does not run on the platform or in the dtype.
    """
    given = dict(attention=attention, convolution=convolution)
    for what, name in given.items():
        known = ("auto", *KNOWN[what])
        if name not in known:
            raise InputError(f"Unknown {what} {name!r}; known: {', '.join(known)}.{nearest(name, known)}")
    if attention == "cudnn" and not (platform in ("gpu", "cuda") and jnp.dtype(dtype).itemsize == 2):
        raise InputError(
            f"attention='cudnn' runs on NVIDIA GPUs in bfloat16; this is {platform} in {jnp.dtype(dtype).name}. "
            "Take 'auto'."
        )
    if attention == "flash" and platform != "tpu":
        raise InputError(f"attention='flash' runs on TPUs; this is {platform}. Take 'auto'.")
    return fastest(platform, dtype) | {what: name for what, name in given.items() if name != "auto"}
