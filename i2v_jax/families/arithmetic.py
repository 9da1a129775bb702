"""How networks compute: dtype, kernels, what a backward pass makes again; "auto" is decided by the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from i2v_jax.errors import check_known
from i2v_jax.models.kernels.choice import choose

DTYPES = ("auto", "float32", "bfloat16")


class Arithmetic(NamedTuple):
    """How networks compute.

    Attributes:
      dtype: of frozen weights and activations.
      attention, convolution: kernels, see `models.kernels`.
      remat: what the backward pass recomputes, see `UNetConfig`.
      scan_blocks: whether blocks are a loop, see `UNetConfig`.
    """

    dtype: Any
    attention: str
    convolution: str
    remat: str = "none"
    scan_blocks: bool = False

    @classmethod
    def on(
        cls,
        device: jax.Device,
        dtype: Any,
        attention: str = "auto",
        convolution: str = "auto",
        remat: str = "none",
    ) -> "Arithmetic":
        """Returns the arithmetic for a device; "auto" is what is fastest there.

        Raises:
          InputError: a kernel that is unknown or does not run there.
        """
        dtype = jnp.dtype(dtype)
        kernels = choose(device, dtype, attention, convolution)
        return cls(dtype, **kernels, remat=remat, scan_blocks=device.platform == "tpu")  # whose compiler is slow

    @classmethod
    def of_config(cls, config: ConfigDict, device: jax.Device) -> "Arithmetic":
        """Returns the arithmetic that a command's config asks for on a device.

        Raises:
          InputError: an unknown dtype, or a kernel that does not run there.
        """
        dtype = choose_dtype(config.dtype, device.platform)
        return cls.on(device, dtype, config.attention, config.convolution, config.get("remat", "none"))

    @property
    def kernels(self) -> dict[str, str]:
        """Fields of a network's config."""
        return dict(attention=self.attention, convolution=self.convolution)

    @property
    def of_unet(self) -> dict[str, Any]:
        """Fields of a UNet's config, but for the dtypes."""
        return self.kernels | dict(remat=self.remat, scan_blocks=self.scan_blocks)


def choose_dtype(name: str, platform: str) -> str:
    """Returns the dtype's name: for "auto" float32 on CPUs, bfloat16 elsewhere.

    Raises:
      InputError: an unknown dtype.
    """
    check_known("dtype=", name, DTYPES)
    if name == "auto":
        return "float32" if platform == "cpu" else "bfloat16"
    return name
