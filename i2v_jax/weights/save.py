"""Our own files: components, or parts of them, under `component/path` as safetensors or orbax, configs beside them."""

import dataclasses
import json
import math
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from i2v_jax.errors import InputError
from i2v_jax.tree import Tree, flatten
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import OWN_FORMAT, OWN_VERSION, Tensors
from i2v_jax.weights.translate import Imported, OwnTable

EXPORTED_CONFIGS = "i2v_jax.configs"
"""Key in the metadata of files in the formats of others; our own format has "configs"."""


def save_own(
    path: str | Path,
    components: Mapping[str, Tensors | Tree],
    configs: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int], object] = lambda count: None,
    ahead_bytes: float = math.inf,
) -> None:
    """Writes components, or parts of them, one tensor at a time, so that `load_*` reads them without any other file.

    Args:
        path: the `.safetensors` file; replaced only once the new one is complete.
        components: component -> its parameters (and buffers), as nested dictionaries of arrays or as tensors by path:
            whole, or what `tree.select` chose.
        configs: component -> its config; may be left out for a part that is loaded beside its base.
        metadata: further text to keep in the header.
        progress: called with the bytes of each tensor once they are written.
        ahead_bytes: how many bytes of tensors may wait to be written, see `tensors.ahead`.

    Raises:
        InputError: the file cannot be written.
    """
    save_tensors(path, own_tensors(components), own_metadata(configs or {}, metadata or {}), progress, ahead_bytes)


def save_own_orbax(
    path: str | Path,
    components: Mapping[str, Tensors | Tree],
    configs: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> None:
    """Writes components as an orbax checkpoint: `StandardCheckpointer().restore(path)` gives {component: {...}}.

    Args:
        path: the folder, which is not there yet; it appears once it is complete.
        components, configs, metadata: as for `save_own`.
        progress: called with the bytes of each few arrays once they are written.

    Raises:
        InputError: the folder is there already, or cannot be written.
    """
    from i2v_jax.weights.storage.orbax import save_orbax  # orbax takes seconds to import

    save_orbax(path, own_tensors(components), own_metadata(configs or {}, metadata or {}), progress)


def own_metadata(configs: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, str]:
    """Returns the header of one of our own files: its format and version, and the components' configs."""
    header = {**metadata, "format": OWN_FORMAT, "version": OWN_VERSION}
    if configs:
        header["configs"] = json.dumps({name: json.loads(config_to_json(config)) for name, config in configs.items()})
    return header


def own_tensors(components: Mapping[str, Tensors | Tree]) -> Tensors:
    """Returns the tensors of components under their names in our own files, `component/path`."""
    return Tensors(
        {
            f"{component}/{path}": entry
            for component, held in components.items()
            for path, entry in (held if isinstance(held, Tensors) else Tensors.of(flatten(held))).entries.items()
        },
        "parameters",
    )


def own_config(imported: Imported) -> str | None:
    """Returns the config, as JSON, that a file of ours holds of a component; None where it holds none.

    A file of ours is one in our own format, or one that we exported into another and that carries what it lacks.

    Raises:
        InputError: the file's configs are damaged.
    """
    is_own, metadata = isinstance(imported.table, OwnTable), imported.parameters.metadata
    key = "configs" if is_own else EXPORTED_CONFIGS
    if key not in metadata:
        return None
    try:
        config = json.loads(metadata[key]).get(imported.table.component if is_own else imported.component)
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{key!r} in the metadata are no JSON object ({error}).") from error
    return config and json.dumps(config)


def exported_metadata(configs: Mapping[str, Any]) -> dict[str, str]:
    """Returns what a file in a format of others carries in its metadata of configs that it could not tell otherwise.

    Args:
        configs: component -> config; empty for none.
    """
    as_json = {name: json.loads(config_to_json(config)) for name, config in configs.items()}
    return {EXPORTED_CONFIGS: json.dumps(as_json)} if configs else {}


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
