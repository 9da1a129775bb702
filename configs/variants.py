"""Configs that are tables: `--config configs/sample/hyper_sd.py:sdxl_4` is the row `sdxl_4`."""

from collections.abc import Mapping
from typing import Any

from i2v_jax.errors import InputError, nearest


def row(table: Mapping[str, Any], name: str, file: str) -> Any:
    """Returns a row of a config's table.

    Raises:
      InputError: there is none of that name; names all, and the nearest.
    """
    if name not in table:
        raise InputError(f"{file}:{name}: wanted one of {', '.join(table)}.{nearest(name, table)}")
    return table[name]
