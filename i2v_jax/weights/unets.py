"""The UNet of any family from wherever its weights are; of which kind one is, its names tell."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from i2v_jax.errors import InputError
from i2v_jax.models.dynamicrafter import DynamiCrafterConfig
from i2v_jax.weights.assemble import (
    Assembled,
    Place,
    Source,
    assemble_unet,
    assembled_whole,
    import_component,
    to_device,
)
from i2v_jax.weights.configs import infer, own_config_of, replaced
from i2v_jax.weights.formats.dynamicrafter import is_dynamicrafter
from i2v_jax.weights.save import config_from_json

OF_IMAGES = ("motion", "adapters", "motion_config", "self_attention_branches", "cross_attention_branches")
"""Options of `assemble_unet` that are of UNets of pictures; with nothing in them, they are left out for others."""


def assemble_any_unet(base: Source, *, skip_unknown: bool = False, **options: Any) -> Assembled:
    """Puts a UNet together, of pictures with its parts or DynamiCrafter's, without reading it.

    Args:
        base: file, folder or hub id.
        skip_unknown: leave tensors out that nothing knows, with a warning.
        options: of `assemble_unet`; parts of a UNet of pictures are not for DynamiCrafter's.

    Raises:
        InputError: it cannot be read, or tensors are missing, unexpected or misshapen.
    """
    imported = import_component(base, "unet", skip_unknown=skip_unknown)
    if not is_dynamicrafter(imported.parameters):
        return assemble_unet(imported, skip_unknown=skip_unknown, **options)
    given = [options.get("motion"), *options.get("adapters", {}).values()]
    if any(given):
        raise InputError(
            f"{imported.parameters.source} is DynamiCrafter, which has layers over time and image tokens of its own. "
            "Leave motion modules and adapters out."
        )
    return assemble_dynamicrafter(imported, **{name: x for name, x in options.items() if name not in OF_IMAGES})


def load_dynamicrafter(
    source: Source, *, place: Place = to_device, **options: Any
) -> tuple[DynamiCrafterConfig, dict[str, Any]]:
    """Loads DynamiCrafter's UNet, from a whole checkpoint or a file of its own.

    Arguments, returns and errors are those of `assemble.load_unet`.
    """
    return assemble_dynamicrafter(source, **options).load(place)


def assemble_dynamicrafter(
    source: Source,
    *,
    trained: Sequence[Source] = (),
    config: Mapping[str, Any] | None = None,
    dtype: Any = jnp.float32,
    **overrides: Any,
) -> Assembled:
    """Finds and checks the tensors of DynamiCrafter's UNet.

    Args:
        source: file, folder or hub id.
        trained: files that `train.py` wrote, whose weights replace those of the same paths.
        config: fields of `DynamiCrafterConfig`; by default what the file says, or its shapes tell.
        dtype: of the parameters and of the activations.
        overrides: fields of the config to set by hand.

    Raises:
        InputError: it cannot be read, or tensors are missing, unexpected or misshapen.
    """
    imported = import_component(source, "unet")
    shapes = {path: entry.shape for path, entry in imported.parameters.entries.items()}
    if config is not None:
        found = config_from_json(DynamiCrafterConfig, json.dumps(dict(config)))
    else:
        found = own_config_of(DynamiCrafterConfig, imported) or infer(DynamiCrafterConfig, shapes, [imported])
    found = replaced(found, dict(dtype=dtype, param_dtype=dtype) | overrides)
    return assembled_whole("DynamiCrafter UNet", found, imported, trained, "unet")
