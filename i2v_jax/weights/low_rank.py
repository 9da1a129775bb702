"""Low-rank adaptation (LoRA) and its kin: read from their files, merged into the weights, written again.

Beside a layer's `kernel` stand `lora/{down,up,alpha,mid}`: W + scale * alpha / rank * (down @ mid @ up), where `mid` is
only in LyCORIS' convolutions, and alpha is the rank where there is none. Other methods are in `weights.changes`.
"""

import dataclasses
import functools
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
from i2v_jax.weights import changes
from i2v_jax.weights.formats.clip import CLIP_TEXT
from i2v_jax.weights.formats.diffusers import DIFFUSERS_UNET
from i2v_jax.weights.formats.lora import LORA_TABLES
from i2v_jax.weights.kinds.find import refuse_unread
from i2v_jax.weights.names import Table
from i2v_jax.weights.sparse import BITS
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.tensors import Entry, Tensors
from i2v_jax.weights.translate import Imported, export_tensors, recognise

LORA = re.compile(rf"(?P<layer>.*)/lora/(?P<leaf>{'|'.join(sorted(changes.LEAVES))})")
PEFT_METADATA = "lora_adapter_metadata"
PEFT_CONFIG = "adapter_config.json"
MODULES = {"unet": DIFFUSERS_UNET, "text_encoder": CLIP_TEXT, "text_encoder_2": CLIP_TEXT}
"""The names by which PEFT's settings know a component's layers."""
INNER_MODEL = "text_model."
"""What stands before a text encoder's layers, up to transformers 5.5."""


def load_lora(source: "str | Path | Tensors", skip_unknown: bool = False) -> dict[str, Imported]:
    """Opens a LoRA file of any format, unread; scales that stand in its metadata become alphas of the tree.

    Args:
        source: as in `open_tensors`.
        skip_unknown: keep names that nothing knows as `unknown`, rather than refuse the file.

    Returns:
        Component -> its LoRA weights.

    Raises:
        InputError: the file is none, or of a method that is not read, or holds tensors that nothing knows.
    """
    tensors = open_tensors(source)
    refuse_unread(tensors, tensors.source)
    found = recognise(tensors, LORA_TABLES)
    for imported in found.values():
        strange = [*imported.misshapen, *([] if skip_unknown else imported.unknown)]
        strange += [name for path, name in imported.names.items() if _is_other(path, imported)]
        if strange:
            more = f" It holds {len(strange)} such." if len(strange) > 1 else ""
            raise InputError(
                f"{tensors.source} ({imported.table.name}): {strange[0]!r} is no LoRA weight known here.{more}"
            )
    kept = {name: imported for name, imported in found.items() if name in LORA_TABLES}
    if not kept:
        raise InputError(f"{tensors.source} holds no LoRA. It holds {', '.join(found)}.")
    return {component: with_alphas(component, imported) for component, imported in kept.items()}


def _is_other(path: str, imported: Imported) -> bool:
    """Whether a tensor of a file is neither a LoRA weight nor what a tool leaves beside one, such as embeddings."""
    return not LORA.fullmatch(path) and not (imported.component == "leftovers" and path in imported.buffers)


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
    for layer, leaves in layers_of(lora).items():
        try:
            added = _told_by_peft(settings, _module(component, layer), leaves)
        except (TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
            raise InputError(f"{imported.parameters.source}: its PEFT settings cannot be used ({error}).") from error
        entries |= {f"{layer}/lora/{leaf}": entry for leaf, entry in added.items()}
    return dataclasses.replace(imported, parameters=imported.parameters.holding(entries))


def _told_by_peft(settings: Mapping[str, Any], module: str, leaves: Mapping[str, Entry]) -> dict[str, Entry]:
    """The leaves of a layer that stand in PEFT's settings alone: its alpha; whether (IA)^3 is on its input."""
    rank = changes.rank_of({leaf: entry.shape for leaf, entry in leaves.items()})
    if "down" in leaves:
        alpha = None if "alpha" in leaves else _peft_alpha(settings, module, rank, "lora_alpha")
    elif "ia3_l" in leaves:
        names = settings.get("feedforward_modules") or []
        if isinstance(names, str):
            raise InputError(f"feedforward_modules {names!r} is a regular expression; names of layers are read here.")
        is_on_input = any(module == name or module.endswith(f".{name}") for name in names)
        return {"on_input": Entry.of(np.int32(is_on_input))} if len(leaves["ia3_l"].shape) == 4 else {}
    elif rank:
        alpha = None if "alpha" in leaves else _peft_alpha(settings, module, rank, "alpha")
    elif "lokr_w1" in leaves:  # of two whole factors, where others know no alpha: it goes into the first
        scale = _peft_alpha(settings, module, 1, "alpha") / float(_by_pattern(settings, module, "rank_pattern", "r", 1))
        whole = leaves["lokr_w1"]
        return {"lokr_w1": dataclasses.replace(whole, read=functools.partial(_scaled, whole, scale))}
    else:
        alpha = None
    return {} if alpha is None else {"alpha": Entry.of(np.float32(alpha))}


def _scaled(entry: Entry, scale: float) -> np.ndarray:
    return (entry.read().astype(np.float32) * np.float32(scale)).astype(entry.dtype)


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


def _peft_alpha(settings: Mapping[str, Any], module: str, rank: int, key: str) -> float:
    """A layer's alpha; the rank where the settings tell none."""
    alpha = _by_pattern(settings, module, "alpha_pattern", key, rank)
    return float(alpha) * (math.sqrt(rank) if settings.get("use_rslora") else 1)


def _by_pattern(settings: Mapping[str, Any], module: str, patterns: str, key: str, otherwise: float) -> Any:
    """A layer's setting, after the first pattern that its name ends with."""
    for pattern, value in (settings.get(patterns) or {}).items():
        name = pattern.removeprefix("^").removesuffix("$").replace(r"\.", ".")
        if not re.fullmatch(r"[\w.]+", name):
            raise InputError(f"{patterns} {pattern!r} is a regular expression; names of layers are read here.")
        is_module = name in (module, module.removeprefix(INNER_MODEL))
        if is_module or (not pattern.startswith("^") and module.endswith(f".{name}")):
            return value
    return settings.get(key, otherwise)


def merge_lora(parameters: Tensors, lora: Tensors, scale: float) -> Tensors:
    """Adds a LoRA to the weights it was trained for; nothing is read before it is asked for.

    Args:
        parameters: path -> array, of one component.
        lora: `<layer>/lora/{down,up,alpha,mid}` -> array: down [in, rank] or [height, width, in, rank], up [rank, out],
            mid [height, width, rank, rank], alpha a number; of other methods, see `weights.changes`.
        scale: how much of it; the negative scale of LoRA takes it out again.

    Returns:
        The parameters, those of changed layers computed in float32 and rounded to their own dtype.

    Raises:
        InputError: a layer is not there, half of its LoRA is missing, or shapes do not fit together.
    """
    entries = dict(parameters.entries)
    for layer, leaves in layers_of(lora).items():
        changes.check_layer(lora.source, layer, leaves)
        paths = changed_paths(layer, leaves, parameters)
        if lacking := [path for path in paths if path not in entries]:
            wanted = lacking[0].removesuffix("/kernel")
            ends = [path.removesuffix("/kernel") for path in entries if path.endswith("/kernel")]
            raise InputError(
                f"{lora.source} changes the layer {wanted!r}, which {parameters.source} does not have."
                f"{nearest(wanted, ends)}"
            )
        for path in paths:
            base = entries[path]
            if not _fits(path, leaves, base.shape):
                raise InputError(
                    f"{lora.source} changes {layer!r} by an array of shape {_shape(path, leaves)}; in "
                    f"{parameters.source} it has shape {list(base.shape)}. Is the LoRA for another model?"
                )
            entries[path] = dataclasses.replace(base, read=_Merged(base, leaves, scale, path.endswith("/bias")))
    return parameters.holding(entries)


def lacking_layers(parameters: Tensors, lora: Tensors) -> list[str]:
    """Returns the layers of a LoRA that the weights do not have."""
    layers = layers_of(lora).items()
    return [
        layer for layer, leaves in layers if any(p not in parameters for p in changed_paths(layer, leaves, parameters))
    ]


def changed_paths(layer: str, leaves: Mapping[str, Entry], parameters: Tensors) -> list[str]:
    """Returns the paths of a layer's parameters that its leaves change, whether they are there or not."""
    scale, bias = f"{layer}/scale", f"{layer}/bias"
    weight = scale if scale in parameters or "w_norm" in leaves else f"{layer}/kernel"
    held = parameters.entries.get(weight)
    paths = [weight] if any(map(changes.is_of_weight, leaves)) else []
    if changes.is_of_bias(leaves, held and held.shape) and (bias in parameters or "ia3_l" not in leaves):
        paths.append(bias)  # PEFT's (IA)^3 scales one where there is one
    return paths


def _fits(path: str, leaves: Mapping[str, Entry], shape: tuple[int, ...]) -> bool:
    if not path.endswith("/bias"):
        return changes.fits(leaves, shape)
    return all(leaves[leaf].shape == shape for leaf in changes.OF_BIASES if leaf in leaves)


def _shape(path: str, leaves: Mapping[str, Entry]) -> list[int]:
    """The shape of a change, for messages."""
    if not path.endswith("/bias") and (product := changes.kernel_shape(leaves)):
        return list(product)
    kept = [leaf for leaf in leaves if (leaf in changes.OF_BIASES) == path.endswith("/bias") and leaf != "on_input"]
    return list(leaves[kept[0]].shape)


@dataclasses.dataclass(frozen=True)
class _Merged:
    """Reads a parameter of a layer with its LoRA added."""

    base: Entry
    leaves: dict[str, Entry]
    scale: float
    is_bias: bool

    def __call__(self) -> np.ndarray:
        arrays = {leaf: entry.read().astype(np.float32) for leaf, entry in self.leaves.items()}
        merge = changes.merged_bias if self.is_bias else changes.merged_weight
        return merge(self.base.read().astype(np.float32), arrays, self.scale).astype(self.base.dtype)


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
        if not match or ("float" not in entry.dtype.name and match["leaf"] not in ("alpha", "on_input", BITS)):
            strange.append(f"{imported.names.get(path, path)} ({entry.dtype.name})")
    if strange:
        raise InputError(f"{lora.source}: {strange[0]!r} is no LoRA weight known here.")
    for layer, leaves in layers_of(lora).items():
        try:
            changes.check_layer(lora.source, layer, leaves)
        except InputError as error:
            matches = [imported.table.to_theirs(f"{layer}/lora/{leaf}") for leaf in ("down", "up", *leaves)]
            names = sorted({match.name for match in matches if match})
            raise InputError(f"{error} The file's names for these are {', '.join(names)}.") from error


def layers_of(lora: Tensors) -> dict[str, dict[str, Entry]]:
    """Returns layer -> leaf -> its tensor; InputError where one is no LoRA weight."""
    layers: dict[str, dict[str, Entry]] = defaultdict(dict)
    for path, entry in lora.entries.items():
        match = LORA.fullmatch(path)
        if not match:
            raise InputError(f"{lora.source}: {path!r} is no LoRA weight.")
        layers[match["layer"]][match["leaf"]] = entry
    return layers


def kernel_shapes(lora: Tensors) -> dict[str, tuple[int, ...]]:
    """Returns path -> shape of the kernels that LoRA weights change, where they tell it."""
    shapes = {f"{layer}/kernel": changes.kernel_shape(leaves) for layer, leaves in layers_of(lora).items()}
    return {path: shape for path, shape in shapes.items() if shape}


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
            _refuse_alphas_of_others(lora, table)
            settings |= {f"{component}.{key}": value for key, value in _settings(component, lora).items()}
    first = next(iter(components.values()))
    metadata = {"format": "pt"} | ({PEFT_METADATA: json.dumps(settings)} if settings else {})
    return dataclasses.replace(first, entries=entries, metadata=metadata)


def _refuse_alphas_of_others(lora: Tensors, table: Table) -> None:
    for layer, leaves in layers_of(lora).items():
        if "alpha" in leaves and "down" not in leaves:
            methods = ", ".join(method.title for method in changes.methods_of(leaves))
            raise InputError(
                f"{table.name} has no place for the alpha of {methods} on {layer!r}, from {lora.source}. Write another "
                "format, by --to kohya."
            )


def _settings(component: str, lora: Tensors) -> dict[str, Any]:
    """PEFT's LoraConfig of LoRA weights: the commonest rank and alpha, and the layers that differ.

    A text encoder's layers are named by what their names end with in transformers before 5.6 and since.
    """
    layers = {
        _module(component, layer).removeprefix(INNER_MODEL): leaves
        for layer, leaves in layers_of(lora).items()
        if "down" in leaves
    }
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
        **({"use_dora": True} if any("dora_scale" in leaves for leaves in layers.values()) else {}),
    }


def _module(component: str, layer: str) -> str:
    match = MODULES[component].to_theirs(f"{layer}/kernel")
    return match.name.removesuffix(".weight") if match else layer
