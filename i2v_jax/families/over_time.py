"""Weights over time (EDG, Tian et al. 2025, stage 3): which weights serve which timesteps of a run.

A stage is the model with the tensors of one file in the place of its own, or with what a file of differences adds.
Tensors that are the same in several stages are on the devices once. docs/merging.md.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from i2v_jax.errors import InputError
from i2v_jax.tree import unflatten
from i2v_jax.weights.assemble import TRIM_AFTER, Assembled, Place, return_freed_memory
from i2v_jax.weights.checkpoint import LORA, open_checkpoint, open_files
from i2v_jax.weights.styles import merge_styles, style
from i2v_jax.weights.tensors import OWN_FORMAT, Entry, Tensors
from i2v_jax.weights.translate import recognise

KEY = "weights_over_time"
"""Of a sampling command's config."""
FIXED = ("vae",)
"""Components that are the model's own throughout: one set of latents goes through all stages."""
UNUSED = ("noise_schedule", "leftovers", "unet_ema")
"""What files hold beside networks."""


class Span(NamedTuple):
    """Timesteps above `above`, down to it, and the file of their weights; "" is the model's own.

    The last span above 0 is on to the end, timestep 0 included.
    """

    above: int
    source: str


class Stage(NamedTuple):
    """Component -> parameters, of timesteps above `above`."""

    above: int
    parameters: Mapping[str, Any]


def parse(given: Sequence[Any]) -> tuple[Span, ...]:
    """Reads `((500, "dyn.safetensors"), (0, "con.safetensors"))`.

    Raises:
        InputError: it is of another form, or its times are out of order.
    """
    spans = []
    for pair in given:
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2
        if not is_pair or type(pair[0]) is not int or not isinstance(pair[1], str):
            raise InputError(
                f"{KEY}={tuple(given)}: {pair!r} is no pair of a timestep and a file. Wanted "
                "((500, 'dyn.safetensors'), (0, 'con.safetensors')): from the noise down to "
                "timestep 500 the first, then the second."
            )
        spans.append(Span(*pair))
    for earlier, later in zip(spans, spans[1:]):
        if earlier.above <= later.above:
            raise InputError(
                f"{KEY}: {later.above} stands after {earlier.above}. A run goes from high timesteps to low: give them "
                "in that order, each once."
            )
    return tuple(spans)


def check(spans: Sequence[Span], num_train_timesteps: int) -> None:
    """Raises InputError for times that a run does not come by."""
    for span in spans:
        if not 0 <= span.above < num_train_timesteps - 1:
            raise InputError(
                f"{KEY}: the timestep {span.above} of {span.source!r} is out of range; wanted 0 to "
                f"{num_train_timesteps - 2}. Timesteps go from {num_train_timesteps - 1}, all noise, to 0."
            )


def sources(spans: Iterable[Span]) -> list[tuple[str, float]]:
    """Returns the files, each once, with their scales.

    Raises:
        InputError: a scale is no finite number.
    """
    try:
        return [style(source) for source in dict.fromkeys(span.source for span in spans) if source]
    except InputError as error:
        raise InputError(f"{KEY}: {error}") from error


def opened(source: str | Path) -> list[tuple[str | Path, str]]:
    """Returns what is read of a source: its path with "", or with the folder of each of its components."""
    path = Path(source).expanduser()
    if not path.is_dir():
        return [(source, "")]
    return [(source, "" if folder == path.name else folder) for _, folder in open_files(source)]


def at(stages: Sequence[Span | Stage], timestep: float) -> int:
    """Returns the number of the stage that a timestep is of; 0 where there are no stages."""
    return next((i for i, stage in enumerate(stages) if timestep > stage.above), max(len(stages) - 1, 0))


def variants(
    found: Mapping[str, Assembled], spans: Sequence[Span], skip_unknown: bool = False, **options: Any
) -> list[tuple[int, dict[str, Assembled]]]:
    """Returns (above, components) of each stage, unread; the last one is down to the end.

    Args:
        found: the model's components.
        spans: of a run.
        skip_unknown: leave out tensors that nothing knows, and layers that the model lacks.
        options: of `open_checkpoint`.

    Raises:
        InputError: a file cannot be read or is of another network.
    """
    made = []
    for span in spans:
        components = dict(found)
        for source, scale in sources([span]):
            components |= _changed(found, source, scale, skip_unknown, options)
        made.append((span.above, components))
    if spans and spans[-1].above > 0:
        made.append((0, dict(found)))
    return made


def _changed(found, source: str, scale: float, skip_unknown: bool, options: Mapping[str, Any]) -> dict[str, Assembled]:
    """The components that a file changes, changed."""
    held, has_lora = _held(source, skip_unknown, options)
    whole = {name: tensors for name, tensors in held.items() if tensors and name not in UNUSED}
    if has_lora and not whole:
        return {
            name: part
            for name, part in merge_styles(found, [(source, scale)], skip_unknown).items()
            if part is not found[name] and name not in FIXED
        }
    if scale != 1 or has_lora:
        raise InputError(
            f"{KEY}: {source} holds weights, which take the place of the model's own; a scale, here {scale}, is of "
            "files of differences, such as LoRA."
        )
    if strange := [name for name in whole if name not in found]:
        raise InputError(
            f"{KEY}: {source} holds weights of the {strange[0]}, which this model has not. It has: {', '.join(found)}."
        )
    changed = {}
    for name, given in whole.items():
        if name not in FIXED:
            own = found[name].parameters
            _check_same_network(source, name, own.entries, given.entries)
            changed[name] = dataclasses.replace(found[name], parameters=own.holding(own.entries | given.entries))
    if not changed:
        raise InputError(f"{KEY}: {source} holds nothing that changes over time. It holds: {', '.join(whole)}.")
    return changed


def _held(source: str, skip_unknown: bool, options: Mapping[str, Any]) -> tuple[dict[str, Tensors], bool]:
    """The whole weights that a source holds, by component, and whether it holds factors or differences too.

    Files of our own may hold any few tensors; others are known by whole parts.
    """
    files = open_files(source)
    if all(tensors.metadata.get("format") == OWN_FORMAT for tensors, _ in files):
        parts = {name: part.parameters for tensors, _ in files for name, part in recognise(tensors).items()}
        whole = {name: tensors.select(rf"(?!{LORA}).*") for name, tensors in parts.items()}
        return whole, any(len(whole[name]) < len(tensors) for name, tensors in parts.items())
    checkpoint = open_checkpoint([source], skip_unknown=skip_unknown, **options)
    return {name: part.parameters for name, part in checkpoint.components.items()}, bool(checkpoint.lora)


def _check_same_network(source: str, name: str, own: Mapping[str, Entry], given: Mapping[str, Entry]) -> None:
    for path, entry in given.items():
        if path not in own:
            raise InputError(
                f"{KEY}: {source} is of another network than the model: its {name} has {path}, and the model's not. "
                "All weights of a run are of one network."
            )
        if entry.shape != own[path].shape:
            raise InputError(
                f"{KEY}: {source} is of another network than the model: {name}/{path} has the shape "
                f"{list(entry.shape)}, in the model {list(own[path].shape)}."
            )


def load(made: Sequence[tuple[int, Mapping[str, Assembled]]], place: Place) -> tuple[Stage, ...]:
    """Reads and places the stages' parameters, path by path; what is the same in several is placed once.

    Args:
        made: from `variants`.
        place: see `Assembled.load`.
    """
    trees: list[dict[str, Any]] = [{} for _ in made]
    for component in made[0][1]:
        flat = _load_component([components[component] for _, components in made], place)
        for tree, leaves in zip(trees, flat):
            tree[component] = unflatten(leaves)
    return tuple(Stage(above, tree) for (above, _), tree in zip(made, trees))


def _load_component(parts: Sequence[Assembled], place: Callable[[str, np.ndarray], Any]) -> list[dict[str, Any]]:
    """Each stage's {path: placed array} of a component."""
    flat: list[dict[str, Any]] = [{} for _ in parts]
    dtype, freed = parts[0].config.param_dtype, 0
    for path in parts[0].parameters:
        entries = [part.parameters.entries[path] for part in parts]
        distinct: list[tuple[Entry, np.ndarray, Any]] = []
        for leaves, entry in zip(flat, entries):
            known = next((one for one in distinct if one[0] is entry), None)
            if known is None:
                array = np.asarray(entry.read(), dtype)
                freed += entry.nbytes
                known = next((one for one in distinct if _same(one[1], array)), None)
                if known is None:
                    known = (entry, array, place(path, array))
                    distinct.append(known)
            leaves[path] = known[2]
        if freed > TRIM_AFTER:
            return_freed_memory()
            freed = 0
    return_freed_memory()
    return flat


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays of one dtype hold the same numbers, bit for bit."""
    bits = f"u{one.itemsize}"
    return np.array_equal(np.ascontiguousarray(one).view(bits), np.ascontiguousarray(other).view(bits))


def same_encoders(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two stages share all parameters but the UNet's, so that conditions are the same in both."""
    encoders = [name for name in one if name not in ("unet", *FIXED)]
    pairs = zip(*(jax.tree.leaves([tree[name] for name in encoders]) for tree in (one, other)))
    return all(a is b for a, b in pairs)


def count_twice(stages: Sequence[Stage]) -> int:
    """Returns how many bytes are on the devices beside those of the first stage."""
    first = {id(leaf) for leaf in jax.tree.leaves(stages[0].parameters)}
    others = {id(leaf): leaf for stage in stages[1:] for leaf in jax.tree.leaves(stage.parameters)}
    return sum(leaf.nbytes for key, leaf in others.items() if key not in first)
