"""`verify --run`: every component of a conversion on random input, in float32, against the source's PyTorch model."""

import dataclasses
import gc
import importlib.util
from typing import Any

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from convert.networks import NETWORKS
from convert.parts import adapter_part, part_of
from convert.tables import table
from i2v_jax.errors import InputError
from i2v_jax.models.adapters import ADAPTERS, by_site
from i2v_jax.models.sparse_control import SparseControlNetConfig
from i2v_jax.models.unet import UNetConfig
from i2v_jax.tree import unflatten
from i2v_jax.weights.assemble import Assembled
from i2v_jax.weights.checkpoint import Checkpoint, recognise_in
from i2v_jax.weights.components import ASSEMBLE
from i2v_jax.weights.tensors import Tensors

BAR = 1e-5
"""Relative error at most, where no value was rounded."""
ROUNDED = {"float16": 5e-3, "bfloat16": 5e-2}
"""Where the conversion rounded the weights to a dtype: what rounding explains."""


def compare_outputs(files: list[tuple[Tensors, str]], source: Checkpoint, converted: Checkpoint) -> bool | None:
    """Prints how far our networks with the converted weights are from PyTorch's with the source's.

    Args:
        files: the files of the source, as `open_files` gives them; none where the source's weights are in no file (a
            LoRA is merged into them), and only this program's tables can name them for PyTorch.
        source, converted: the two, opened. Components that only one of them holds are passed over.

    Returns:
        Whether every error is within its bar; None where nothing could be run.

    Raises:
        InputError: PyTorch or diffusers is not installed.
    """
    if missing := [name for name in ("torch", "diffusers", "transformers") if importlib.util.find_spec(name) is None]:
        raise InputError(f"--run compares with PyTorch's models: `pip install {' '.join(missing)}`, or leave it out.")
    recognised = [(tensors, recognise_in(tensors, folder)) for tensors, folder in files]
    rows, notes = [], []
    shared = [name for name in source.components if name in converted.components and name in ASSEMBLE]
    for component in tqdm(shared, desc="running", unit="component", leave=False):
        ours, theirs = converted.components[component], source.components[component]
        held, wanted = ({part_of(component, path) for path in side.parameters} for side in (ours, theirs))
        parts = (held & wanted) - {f"{component}: LoRA", *_without_counterpart(component)}
        if component not in parts:
            notes.append(f"{component}: only parts of it are there, which do not run without the base")
            continue
        notes += [f"{part}: left out on both sides, PyTorch has no such part" for part in (held & wanted) - parts]
        pieces = [(tensors, found[component]) for tensors, found in recognised if component in found]
        try:
            errors, by = _errors(component, ours, theirs, pieces, parts)
        except InputError as error:
            notes.append(f"{component}: not run. {error}")
            continue
        notes += _config_notes(component, *(_runnable(side.config, component, parts) for side in (theirs, ours)))
        bar = _bar(ours, theirs)
        rows += [(component, what, f"{error:.1e}", f"{bar:.0e}", _verdict(error, bar), by) for what, error in errors]
        if f"{component}: motion modules" in parts:
            notes.append(f"{component}: group norms over frames were set as diffusers computes them, on both sides")
    if rows:
        print(table(("component", "output", "relative error", "bar", "", "PyTorch weights by"), rows))
    for note in notes or ([] if rows else ["There is nothing to run that both hold."]):
        print(note)
    return all(row[4] == "ok" for row in rows) if rows else None


def _without_counterpart(component: str) -> set[str]:
    """Parts of adapters that diffusers has no place for."""
    return {adapter_part(component, name) for name, adapter in ADAPTERS.items() if "diffusers" not in adapter.spellings}


def _config_notes(component: str, theirs: Any, ours: Any) -> list[str]:
    fields = [field.name for field in dataclasses.fields(theirs)] if type(theirs) is type(ours) else []
    pairs = [(name, getattr(theirs, name), getattr(ours, name)) for name in fields]
    return [
        f"{component}: its config says {name}={one} in the source, {other} in the converted (--config sets both)"
        for name, one, other in pairs
        if one != other
    ]


def _verdict(error: float, bar: float) -> str:
    return "ok" if error <= bar else "WRONG"  # NaN is wrong, too


def _bar(ours: Assembled, theirs: Assembled) -> float:
    there = theirs.parameters.entries
    rounded = {
        entry.dtype.name
        for path, entry in ours.parameters.entries.items()
        if path in there and entry.dtype != there[path].dtype
    }
    return max((ROUNDED[name] for name in rounded if name in ROUNDED), default=BAR)


def _errors(component: str, ours: Assembled, theirs: Assembled, pieces: list, parts: set[str]) -> tuple[list, str]:
    """(output, relative error) of all, and who read PyTorch's weights. One model after the other is in memory."""
    import torch

    from convert.torch_models import torch_model

    config = _runnable(theirs.config, component, parts)
    network = NETWORKS[type(config)]
    if lacking := network.lacking(config):
        raise InputError(lacking)
    given = network.inputs(config, np.random.default_rng(0))
    model, by = torch_model(component, config, theirs, pieces, parts, network.names(config))
    with torch.no_grad():
        wanted = {
            name: [np.asarray(array) for array in arrays] for name, arrays in network.theirs(model, given).items()
        }
    del model
    gc.collect()
    config = _runnable(ours.config, component, parts)
    parameters = unflatten(
        {
            path: jnp.asarray(np.asarray(entry.read(), np.float32))
            for path, entry in ours.parameters.entries.items()
            if part_of(component, path) in parts
        }
    )
    outputs = network.ours(config, {"params": parameters}, given)
    return [
        (name, max(_relative_error(out, ref) for out, ref in zip(outputs[name], wanted[name], strict=True)))
        for name in wanted
    ], by


def _relative_error(out: np.ndarray, ref: np.ndarray) -> float:
    out, ref = np.asarray(out, np.float64), np.asarray(ref, np.float64)
    if out.shape != ref.shape:
        return np.inf
    return float(np.linalg.norm(out - ref) / np.linalg.norm(ref))


def _runnable(config: Any, component: str, parts: set[str]) -> Any:
    """The config in float32; of a UNet, with these parts; motion modules with the norms that diffusers has."""
    changes: dict[str, Any] = dict(dtype=jnp.float32, param_dtype=jnp.float32)
    if isinstance(config, SparseControlNetConfig):
        changes["motion"] = dataclasses.replace(config.motion, pooled_norm=True)
    if type(config) is UNetConfig:
        motion = config.motion if f"{component}: motion modules" in parts else None
        adapters = [name for name in ADAPTERS if adapter_part(component, name) in parts]
        changes |= dict(
            motion=motion and dataclasses.replace(motion, pooled_norm=True),
            pooled_norms=False,
            **by_site(adapters),
        )
    return dataclasses.replace(config, **changes)
