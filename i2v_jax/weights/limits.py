"""Configs that files tell, checked before a network is made of them: types, sizes, no more layers than tensors.

A config.json that lies then costs neither memory nor time.
"""

import dataclasses
import math
import types
import typing
from typing import Any

from i2v_jax.errors import InputError

MAX_SIZE = 2**20
"""Of widths, vocabularies, positions, heads; published models stay below 2**16."""
MAX_LEVELS = 8  # published models have 3 or 4


def check_config(config: Any, tensors: int) -> None:
    """Checks the config of a network, a dataclass, against its annotations and against what a file holds.

    Args:
        config: of any of the networks.
        tensors: how many the file holds; a network has at least one in every layer.

    Raises:
        InputError: a field that is of another type or too large, or more layers than tensors; the message names it.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not _fits(value, hints[field.name]):
            raise InputError(
                f"{field.name}={str(value)[:80]} in the config; wanted {_wanted(hints[field.name])}, every size at "
                f"most {MAX_SIZE}."
            )
        if dataclasses.is_dataclass(value):
            check_config(value, tensors)
    levels = len(getattr(config, "block_out_channels", (1,)))
    if not 0 < levels <= MAX_LEVELS:
        raise InputError(f"block_out_channels has {levels} levels in the config; wanted 1 to {MAX_LEVELS}.")
    for name in ("layers_per_block", "transformer_depth", "num_layers", "depth"):
        value = getattr(config, name, 0)
        if max(value if isinstance(value, tuple) else (value,)) * levels > max(tensors, 1):
            raise InputError(f"{name}={value} in the config; the file holds only {tensors} tensors.")


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if isinstance(hint, types.UnionType):
        return any(_fits(value, choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    if hint is int:
        return type(value) is int and 0 <= value <= MAX_SIZE
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint


def _wanted(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)
