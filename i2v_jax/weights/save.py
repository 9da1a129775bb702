"""Our own files: a component's tree, or a part of it, as safetensors under its paths, its config in the metadata."""

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from i2v_jax.errors import InputError
from i2v_jax.weights.files import Tensors, save_tensors
from i2v_jax.weights.translate import OWN_FORMAT, OWN_VERSION
from i2v_jax.weights.tree import Tree, flatten


def save_tree(path: str | Path, tree: Tree, config: Any = None, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a component's parameters, one tensor at a time, so that `load_*` reads them without any other file.

    Args:
        path: the `.safetensors` file; replaced only once the new one is complete.
        tree: nested dictionaries of arrays: a whole component, or what `tree.select` chose of it.
        config: the component's config; may be left out for a part that is loaded beside its base.
        metadata: further text to keep in the header.

    Raises:
        InputError: the file cannot be written.
    """
    header = {**(metadata or {}), "format": OWN_FORMAT, "version": OWN_VERSION}
    if config is not None:
        header["config"] = config_to_json(config)
    save_tensors(path, Tensors.of(flatten(tree)), header)


def config_to_json(config: Any) -> str:
    """Returns a config dataclass (dtypes and nested configs included) as JSON."""
    return json.dumps(dataclasses.asdict(config), default=lambda value: np.dtype(value).name)


def config_from_json(cls: type, text: str) -> Any:
    """Returns the config that `config_to_json` wrote.

    Raises:
        InputError: the text is no such config.
    """
    try:
        return _build(cls, json.loads(text))
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"Not a {cls.__name__}: {text[:200]} ({error}).") from error


def _build(cls: type, values: dict) -> Any:
    hints = typing.get_type_hints(cls)

    def value_of(name, value):
        nested = [hint for hint in (hints[name], *typing.get_args(hints[name])) if dataclasses.is_dataclass(hint)]
        if isinstance(value, dict) and nested:
            return _build(nested[0], value)
        if name in ("dtype", "param_dtype"):
            return np.dtype(value)
        return tuple(value) if isinstance(value, list) else value

    return cls(**{name: value_of(name, value) for name, value in values.items() if name in hints})
