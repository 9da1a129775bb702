"""How networks compute: dtype, kernels, what a backward pass makes again; "auto" is decided by the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from i2v_jax.errors import InputError, nearest
from i2v_jax.models.kernels.choice import choose

DTYPES = ("auto", "float32", "bfloat16")


class Arithmetic(NamedTuple):
    """How networks compute.

    Attributes:
      dtype: of frozen weights and activations.
      attention, convolution: kernels, see `models.kernels`.
      remat: what the backward pass recomputes, see `UNetConfig`.
    """

    dtype: Any
    attention: str
    convolution: str
    remat: str = "none"

    @classmethod
    def of_config(cls, config: ConfigDict, device: jax.Device) -> "Arithmetic":
        """Returns the arithmetic that a command's config asks for on a device.

        Raises:
          InputError: an unknown dtype, or a kernel that does not run there.
        """
        dtype = jnp.dtype(choose_dtype(config.dtype, device.platform))
        kernels = choose(device, dtype, config.attention, config.convolution)
        return cls(dtype, **kernels, remat=config.get("remat", "none"))

    @property
    def kernels(self) -> dict[str, str]:
        """Fields of a network's config."""
        return dict(attention=self.attention, convolution=self.convolution)


def choose_dtype(name: str, platform: str) -> str:
    """Returns the dtype's name: for "auto" float32 on CPUs, bfloat16 elsewhere.

    Raises:
      InputError: an unknown dtype.
    """
    if name not in DTYPES:
        raise InputError(f"dtype={name!r}; known: {', '.join(DTYPES)}.{nearest(name, DTYPES)}")
    if name == "auto":
        return "float32" if platform == "cpu" else "bfloat16"
    return name
