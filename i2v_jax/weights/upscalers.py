"""Upscalers from wherever their weights are."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from i2v_jax.models.upscaler import UpscalerConfig
from i2v_jax.weights.assemble import Assembled, Place, Source, assembled_whole, import_component, to_device
from i2v_jax.weights.configs import config_of
from i2v_jax.weights.measuring import NOT_OF_THESE


def assemble_upscaler(
    source: Source, *, config: Mapping[str, Any] | None = None, dtype: Any = jnp.float32, **overrides: Any
) -> Assembled:
    """Finds and checks an upscaler's tensors; arguments and errors as for `assemble.assemble_unet`.

    RRDBNet in the three layouts that there are, and SRVGGNet; of files with averaged weights too, these.
    """
    imported = import_component(source, "upscaler")
    overrides = {name: value for name, value in overrides.items() if name not in NOT_OF_THESE}
    fields = dict(dtype=dtype, param_dtype=dtype) | overrides
    found = dataclasses.replace(config_of(UpscalerConfig, config, imported), **fields)
    return assembled_whole("upscaler", found, imported)


def load_upscaler(source: Source, *, place: Place = to_device, **options: Any) -> tuple[UpscalerConfig, dict[str, Any]]:
    """Loads an upscaler; arguments, returns and errors are those of `assemble.load_unet`."""
    return assemble_upscaler(source, **options).load(place)
