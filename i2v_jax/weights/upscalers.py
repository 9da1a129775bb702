"""Networks that finish videos, from wherever their weights are: upscalers, and IFNet."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from i2v_jax.models.ifnet import IFNetConfig
from i2v_jax.models.upscaler import UpscalerConfig
from i2v_jax.weights.assemble import Assembled, Place, Source, to_device
from i2v_jax.weights.measuring import assembled


def assemble_upscaler(
    source: Source, *, config: Mapping[str, Any] | None = None, dtype: Any = jnp.float32, **overrides: Any
) -> Assembled:
    """Finds and checks an upscaler's tensors; arguments and errors as for `assemble.assemble_unet`.

    RRDBNet in the three layouts that there are, and SRVGGNet; of files with averaged weights too, these.
    """
    return assembled("upscaler", "upscaler", UpscalerConfig, source, config, dtype, overrides)


def load_upscaler(source: Source, *, place: Place = to_device, **options: Any) -> tuple[UpscalerConfig, dict[str, Any]]:
    """Loads an upscaler; arguments, returns and errors are those of `assemble.load_unet`."""
    return assemble_upscaler(source, **options).load(place)


def assemble_ifnet(
    source: Source, *, config: Mapping[str, Any] | None = None, dtype: Any = jnp.float32, **overrides: Any
) -> Assembled:
    """Finds and checks an IFNet's tensors; arguments and errors as for `assemble.assemble_unet`.

    Those of RIFE 4.5 to 4.26, with the teacher that some files have beside them, or without.
    """
    return assembled("IFNet", "ifnet", IFNetConfig, source, config, dtype, overrides)


def load_ifnet(source: Source, *, place: Place = to_device, **options: Any) -> tuple[IFNetConfig, dict[str, Any]]:
    """Loads an IFNet; arguments, returns and errors are those of `assemble.load_unet`."""
    return assemble_ifnet(source, **options).load(place)
