"""Low-rank adaptation (LoRA): read from its files, merged into the weights, written again.

Beside a layer's `kernel` stand `lora/{down,up,alpha,mid}`: W + scale * alpha / rank * (down @ mid @ up), where `mid` is
only in LyCORIS' convolutions, and alpha is the rank where there is none.
"""

import dataclasses
import itertools
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from i2v_jax.errors import InputError, nearest
from i2v_jax.hub import read_text
from i2v_jax.weights.formats.clip import CLIP_TEXT
from i2v_jax.weights.formats.diffusers import DIFFUSERS_UNET
from i2v_jax.weights.formats.lora import LORA_TABLES
from i2v_jax.weights.kinds.find import refuse_unread
from i2v_jax.weights.names import Table
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.tensors import Entry, Tensors
from i2v_jax.weights.translate import Imported, export_tensors, recognise

LORA = re.compile(r"(?P<layer>.*)/lora/(?P<leaf>down|up|mid|alpha)")
PEFT_METADATA = "lora_adapter_metadata"
PEFT_CONFIG = "adapter_config.json"
MODULES = {"unet": DIFFUSERS_UNET, "text_encoder": CLIP_TEXT, "text_encoder_2": CLIP_TEXT}
"""The names by which PEFT's settings know a component's layers."""
INNER_MODEL = "text_model."
"""What stands before a text encoder's layers, up to transformers 5.5."""


def load_lora(source: "str | Path | Tensors") -> dict[str, Imported]:
    """Opens a LoRA file of any format, unread; scales that stand in its metadata become alphas of the tree.

    Args:
        source: as in `open_tensors`.

    Returns:
        Component -> its LoRA weights.

    Raises:
        InputError: the file is none, or of a method that is not LoRA, or holds tensors that nothing knows.
    """
    tensors = open_tensors(source)
    refuse_unread(tensors, tensors.source)
    found = recognise(tensors, LORA_TABLES)
    for imported in found.values():
        strange = [*imported.unknown, *imported.misshapen]
        strange += [name for path, name in imported.names.items() if not LORA.fullmatch(path)]
        if strange:
            raise InputError(f"{tensors.source} ({imported.table.name}): {strange[0]!r} is no LoRA weight known here.")
    return {component: with_alphas(component, imported) for component, imported in found.items()}


def with_alphas(component: str, imported: Imported) -> Imported:
    """Returns LoRA weights with the alphas that stand beside the tensors: in the metadata, or in adapter_config.json.

    Raises:
        InputError: the settings are damaged, or name layers by regular expressions.
    """
    lora = imported.parameters.select(LORA.pattern)
    settings = _peft_settings(component, lora) if lora else {}
    if not settings:
        return imported
    entries = dict(imported.parameters.entries)
    for layer, leaves in _layers(lora).items():
        if "down" in leaves and "alpha" not in leaves:
            try:
                alpha = _peft_alpha(settings, _module(component, layer), leaves["down"].shape[-1])
            except (TypeError, ValueError, AttributeError, IndexError) as error:
                raise InputError(
                    f"{imported.parameters.source}: its PEFT settings cannot be used ({error})."
                ) from error
            entries[f"{layer}/lora/alpha"] = Entry.of(np.float32(alpha))
    return dataclasses.replace(imported, parameters=imported.parameters.holding(entries))


def _peft_settings(component: str, tensors: Tensors) -> dict[str, Any]:
    """PEFT's LoraConfig of a component: from the metadata, `component.` before its keys, or from the file beside."""
    beside = [file.parent / PEFT_CONFIG for file in tensors.files()[:1]]
    try:
        texts = [tensors.metadata[PEFT_METADATA]] if PEFT_METADATA in tensors.metadata else []
        texts += [read_text(path) for path in beside if path.is_file()]
        settings = json.loads(texts[0]) if texts else {}
        own = {
            key.removeprefix(f"{component}."): value
            for key, value in settings.items()
            if key.startswith(f"{component}.")
        }
        return own or {key: value for key, value in settings.items() if "." not in key}
    except (OSError, ValueError, RecursionError, AttributeError, TypeError) as error:
        raise InputError(f"{tensors.source}: its PEFT settings cannot be read ({error}).") from error


def _peft_alpha(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """A layer's alpha, after the first pattern that its name ends with."""
    alpha = settings.get("lora_alpha", rank)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        name = pattern.removeprefix("^").removesuffix("$").replace(r"\.", ".")
        if not re.fullmatch(r"[\w.]+", name):
            raise InputError(f"alpha_pattern {pattern!r} is a regular expression; names of layers are read here.")
        is_module = name in (module, module.removeprefix(INNER_MODEL))
        if is_module or (not pattern.startswith("^") and module.endswith(f".{name}")):
            alpha = value
            break
    return float(alpha) * (math.sqrt(rank) if settings.get("use_rslora") else 1)


def merge_lora(parameters: Tensors, lora: Tensors, scale: float) -> Tensors:
    """Adds a LoRA to the weights it was trained for; nothing is read before it is asked for.

    Args:
        parameters: path -> array, of one component.
        lora: `<layer>/lora/{down,up,alpha,mid}` -> array: down [in, rank] or [height, width, in, rank], up [rank, out],
            mid [height, width, rank, rank], alpha a number.
        scale: how much of it; the negative scale takes it out again.

    Returns:
        The parameters, those of changed layers computed in float32 and rounded to their own dtype.

    Raises:
        InputError: a layer is not there, half of its LoRA is missing, or shapes do not fit together.
    """
    entries = dict(parameters.entries)
    for layer, leaves in _layers(lora).items():
        kernel = f"{layer}/kernel"
        if kernel not in entries:
            known = [path.removesuffix("/kernel") for path in entries if path.endswith("/kernel")]
            raise InputError(
                f"{lora.source} changes the layer {layer!r}, which {parameters.source} does not have."
                f"{nearest(layer, known)}"
            )
        shape = _product_shape(lora.source, layer, leaves)
        base = entries[kernel]
        if shape != base.shape:
            raise InputError(
                f"{lora.source} changes {layer!r} by an array of shape {list(shape)}; in {parameters.source} it has "
                f"shape {list(base.shape)}. Is the LoRA for another model?"
            )
        entries[kernel] = dataclasses.replace(base, read=_Merged(base, leaves, scale))
    return parameters.holding(entries)


@dataclasses.dataclass(frozen=True)
class _Merged:
    """Reads a layer with its LoRA added."""

    base: Entry
    leaves: dict[str, Entry]
    scale: float

    def __call__(self) -> np.ndarray:
        arrays = {leaf: entry.read().astype(np.float32) for leaf, entry in self.leaves.items()}
        rank = arrays["down"].shape[-1]
        alpha = arrays["alpha"].item() if "alpha" in arrays else rank
        up = arrays["up"] * np.float32(self.scale * alpha / rank)
        down = arrays["down"] @ arrays["mid"] if "mid" in arrays else arrays["down"]
        return (self.base.read().astype(np.float32) + down @ up).astype(self.base.dtype)


def check_lora(lora: Tensors, imported: Imported) -> None:
    """Checks that LoRA weights are of floating point, and that the factors of every layer fit together.

    Args:
        lora: path -> array.
        imported: the file that they are of.

    Raises:
        InputError: half of a layer is missing, or shapes do not fit together, or numbers are of another kind.
    """
    strange = [*imported.misshapen, *imported.unknown]
    for path, entry in lora.entries.items():
        match = LORA.fullmatch(path)
        if not match or ("float" not in entry.dtype.name and match["leaf"] != "alpha"):
            strange.append(f"{imported.names.get(path, path)} ({entry.dtype.name})")
    if strange:
        raise InputError(f"{lora.source}: {strange[0]!r} is no LoRA weight known here.")
    for layer, leaves in _layers(lora).items():
        try:
            _product_shape(lora.source, layer, leaves)
        except InputError as error:
            matches = [imported.table.to_theirs(f"{layer}/lora/{leaf}") for leaf in ("down", "up", *leaves)]
            names = sorted({match.name for match in matches if match})
            raise InputError(f"{error} The file's names for these are {', '.join(names)}.") from error


def _layers(lora: Tensors) -> dict[str, dict[str, Entry]]:
    """Layer -> leaf -> its tensor."""
    layers: dict[str, dict[str, Entry]] = defaultdict(dict)
    for path, entry in lora.entries.items():
        match = LORA.fullmatch(path)
        if not match:
            raise InputError(f"{lora.source}: {path!r} is no LoRA weight.")
        layers[match["layer"]][match["leaf"]] = entry
    return layers


def _product_shape(source: str, layer: str, leaves: Mapping[str, Entry]) -> tuple[int, ...]:
    """The shape of a layer's change, once its factors fit together."""
    for leaf, partner in (("down", "up"), ("up", "down")):
        if leaf not in leaves:
            there = partner if partner in leaves else "alpha"
            raise InputError(f"{source}: {layer!r} has lora/{there} without lora/{leaf}. Is the file cut short?")
    if "alpha" in leaves and math.prod(leaves["alpha"].shape) != 1:
        raise InputError(f"{source}: {layer}/lora/alpha has shape {list(leaves['alpha'].shape)}; wanted one number.")
    shapes = {leaf: leaves[leaf].shape for leaf in ("down", "mid", "up") if leaf in leaves}
    try:
        joints = [left[-1] == right[-2] for left, right in itertools.pairwise(shapes.values())]
        if all(joints) and all(map(math.prod, shapes.values())):
            window = np.broadcast_shapes(*(shape[:-2] for shape in shapes.values()))
            return (*window, shapes["down"][-2], shapes["up"][-1])
    except (ValueError, IndexError):
        pass  # the message is the same
    there = ", ".join(f"{leaf} {list(shape)}" for leaf, shape in shapes.items())
    raise InputError(
        f"{source}: the factors of {layer!r} do not fit together: {there} (rank last in down, first in up)."
    )


def export_lora(components: Mapping[str, Tensors], tables: Mapping[str, Table]) -> Tensors:
    """Translates LoRA weights into a format; where it has no tensor for alphas, they go into the metadata.

    Args:
        components: component -> its LoRA weights by path.
        tables: component -> format.

    Raises:
        InputError: the format has no place for a tensor.
    """
    entries, settings = {}, {}
    for component, lora in components.items():
        table = tables[component].of_tree({path: entry.shape for path, entry in lora.entries.items()})
        without = {path: entry for path, entry in lora.entries.items() if not path.endswith("/lora/alpha")}
        has_place = all(table.to_theirs(path) for path in lora.entries.keys() - without.keys())
        kept = lora if has_place else lora.holding(without)
        entries |= export_tensors(kept, table, lora.holding({})).entries
        if not has_place:
            settings |= {f"{component}.{key}": value for key, value in _settings(component, lora).items()}
    first = next(iter(components.values()))
    metadata = {"format": "pt"} | ({PEFT_METADATA: json.dumps(settings)} if settings else {})
    return dataclasses.replace(first, entries=entries, metadata=metadata)


def _settings(component: str, lora: Tensors) -> dict[str, Any]:
    """PEFT's LoraConfig of LoRA weights: the commonest rank and alpha, and the layers that differ.

    A text encoder's layers are named by what their names end with in transformers before 5.6 and since.
    """
    layers = {_module(component, layer).removeprefix(INNER_MODEL): leaves for layer, leaves in _layers(lora).items()}
    start = "^" if component == "unet" else ""
    ranks = {module: leaves["down"].shape[-1] for module, leaves in layers.items()}
    alphas = {
        module: float(leaves["alpha"].read().item()) if "alpha" in leaves else ranks[module]
        for module, leaves in layers.items()
    }
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"{start}{module}": value for module, value in ranks.items() if value != rank},
        "alpha_pattern": {f"{start}{module}": value for module, value in alphas.items() if value != alpha},
        "target_modules": sorted(layers),
    }


def _module(component: str, layer: str) -> str:
    match = MODULES[component].to_theirs(f"{layer}/kernel")
    return match.name.removesuffix(".weight") if match else layer
