"""Configs that are tables: `--config configs/sample/hyper_sd.py:sdxl_4` is the row `sdxl_4`."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from i2v_jax.errors import InputError, nearest


def row(table: Mapping[str, Any], name: str, file: str) -> Any:
    """Returns a row of a config's table.

    Raises:
      InputError: there is none of that name; names all, and the nearest.
    """
    if name not in table:
        raise InputError(f"{file}:{name}: wanted one of {', '.join(table)}.{nearest(name, table)}")
    return table[name]


def in_few_steps(families: Mapping[str, tuple[ModuleType, str]], name: str, file: str) -> ConfigDict:
    """Returns a family's config with its LoRA for few steps: 4 of them, without guidance.

    Args:
      families: name -> the config that it begins with, the LoRA.
      name: one of them.
      file: of the config, which messages name.
    """
    base, lora = row(families, name, file)
    config = base.get_config()
    config.weights.loras = (lora,)
    config.negative_prompt = ""
    config.steps = 4
    config.guidance_scale = 1.0
    return config
