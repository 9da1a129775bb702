"""Styles: LoRA files and their kin, each at a scale, merged into a model's components as they are read.

`convert import --lora` and `config.weights.loras` both come here, so that the weights are the same, bit for bit.
"""

import contextlib
import dataclasses
import math
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from i2v_jax.errors import InputError, nearest
from i2v_jax.hub import local
from i2v_jax.weights.assemble import Assembled
from i2v_jax.weights.low_rank import lacking_layers, load_lora, merge_lora
from i2v_jax.weights.storage.open import WEIGHT_SUFFIXES, open_tensors
from i2v_jax.weights.tensors import Tensors
from i2v_jax.weights.translate import Imported

SHOWN = 5  # names of layers in a message
BUNDLED = "bundle_emb."
"""Before the embeddings that OneTrainer puts beside a LoRA: `bundle_emb.TOKEN.ENCODER`."""
ENCODERS = {"clip_l": "clip_l", "clip_g": "clip_g", "string_to_param.*": "clip_l"}
"""What a bundle calls text encoders; the last is of Stable Diffusion 1.x, which has one."""
GO_ON = "weights.skip_unknown=True, or --skip-unknown of `python -m convert`."
END = re.compile(
    r"[._]lora(_[AB]|_linear_layer|_magnitude_vector|_down|_up|_mid|\.down|\.up)\b.*"
    r"|\.(alpha|dora_scale|hada_\w+|lokr_\w+|diff|diff_b|w_norm|b_norm|weight|on_input|ia3_l)"
)
"""What follows a layer's name in that of a tensor."""


def style(text: str) -> tuple[str, float]:
    """Reads `FILE` or `FILE=SCALE`; a file may have `=` in its name: one that is there is a file.

    Raises:
        InputError: the scale is no finite number.
    """
    source, equals, scale = text.rpartition("=")
    if not equals or local(text):
        return text, 1.0
    with contextlib.suppress(ValueError):
        if math.isfinite(float(scale)) and source:
            return source, float(scale)
    if source and text.endswith(WEIGHT_SUFFIXES):
        return text, 1.0
    raise InputError(f"{text!r}: wanted FILE or FILE=SCALE, the scale a finite number, such as style.safetensors=0.8.")


def merge_styles(
    components: Mapping[str, Assembled],
    loras: Sequence[tuple[str | Path | Tensors, float]],
    skip_unknown: bool = False,
) -> dict[str, Assembled]:
    """Returns a model's components with LoRA files merged, in their order; nothing is read before it is asked for.

    Args:
        components: name -> what is assembled, unread.
        loras: files, each with its scale. Weights for a component that is not there are left out, with a warning.
        skip_unknown: leave out layers that the model lacks, with a warning, rather than refuse the file.

    Raises:
        InputError: a file is no LoRA, or has layers that the model lacks, or is for another model.
    """
    _warn_of_repeats(loras)
    components = dict(components)
    for source, scale in loras:
        components |= _merged(components, source, scale, skip_unknown)
    return components


def embeddings_of(source: str | Path | Tensors) -> dict[str, dict[str, np.ndarray]]:
    """Returns the embeddings that OneTrainer bundled with a LoRA.

    Args:
        source: as in `open_tensors`.

    Returns:
        Token -> text encoder ("clip_l"; "clip_g", SDXL's second) -> vectors [number, width], as stored; {} where a file
        has none. Warns of vectors for the encoders' output, which are left out.
    """
    tensors = open_tensors(source)
    found: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    strange = []
    for name in tensors:
        for end, encoder in ENCODERS.items():
            if name.startswith(BUNDLED) and name.endswith(f".{end}"):
                array = tensors[name]
                found[name[len(BUNDLED) : -len(end) - 1]][encoder] = array.reshape(-1, array.shape[-1])
                break
        else:
            strange += [name] if name.startswith(BUNDLED) else []
    if strange:
        warnings.warn(
            f"{tensors.source}: {', '.join(strange[:SHOWN])} {'are' if strange[1:] else 'is'} left out: of bundled "
            f"embeddings, those of the inputs of CLIP are read ({', '.join(ENCODERS)}).",
            stacklevel=2,
        )
    return dict(found)


def _warn_of_repeats(loras: Sequence[tuple[str | Path | Tensors, float]]) -> None:
    scales: dict[str, list[float]] = defaultdict(list)
    for source, scale in loras:
        if not isinstance(source, Tensors):
            path = local(source)
            scales[str(path.resolve()) if path else str(source)].append(scale)
    for source, several in scales.items():
        if len(several) > 1:
            warnings.warn(
                f"The LoRA {source} is given {len(several)} times, at scales {', '.join(map(str, several))}: it is "
                "merged as often.",
                stacklevel=3,
            )


def _merged(
    components: Mapping[str, Assembled], source: str | Path | Tensors, scale: float, skip_unknown: bool
) -> dict[str, Assembled]:
    """The components that a LoRA file changes, changed."""
    changed, lacking, count = {}, {}, 0
    found = load_lora(source, skip_unknown)
    for component, imported in found.items():
        base, lora = components.get(component), imported.parameters
        if base is None or not base.parameters:
            message = f"{source}: its weights for the {component} are left out, as there is none to change."
            warnings.warn(message, stacklevel=4)
            continue
        absent = {layer: f"{layer}/lora/" for layer in lacking_layers(base.parameters, lora)}
        layers = {path.rpartition("/lora/")[0] for path in lora}
        strangers = {END.sub("", name) for name in imported.unknown}
        lacking |= {_name(imported, start): layer for layer, start in absent.items()} | dict.fromkeys(strangers)
        count += len(layers | strangers)
        kept = {path: entry for path, entry in lora.entries.items() if path.rpartition("/lora/")[0] not in absent}
        changed[component] = (base, lora.holding(kept))
    if not changed:
        raise InputError(f"{source} changes none of {', '.join(components)}. Give the base that it was trained on.")
    if lacking:
        _tell_lacking(source, lacking, count, changed, skip_unknown)
    return {
        component: dataclasses.replace(base, parameters=merge_lora(base.parameters, lora, scale))
        for component, (base, lora) in changed.items()
    }


def _name(imported: Imported, start: str) -> str:
    """The file's name of the layer whose LoRA weights' paths start so."""
    name = next(name for path, name in imported.names.items() if path.startswith(start))
    return END.sub("", name)


def _tell_lacking(
    source: str | Path | Tensors,
    lacking: Mapping[str, str | None],
    count: int,
    changed: Mapping[str, tuple[Assembled, Tensors]],
    skip_unknown: bool,
) -> None:
    """Refuses, or warns of, layers that the model lacks: which, how many, and how many are used."""
    base = " + ".join(dict.fromkeys(component.parameters.source for component, _ in changed.values()))
    known: Iterable[str] = (
        path.removesuffix("/kernel") for component, _ in changed.values() for path in component.parameters
    )
    used = count - len(lacking)
    names = ", ".join(map(repr, list(lacking)[:SHOWN])) + (", ..." if len(lacking) > SHOWN else "")
    what = f"{source} changes {count} layers, {len(lacking)} of which {base} does not have: {names}."
    if skip_unknown and used:
        warnings.warn(f"{what} These are left out; the other {used} are used.", stacklevel=5)
        return
    first = next((layer for layer in lacking.values() if layer), None)
    hint = nearest(first, known) if first and len(lacking) == 1 else ""
    mend = f" To use the other {used} alone: {GO_ON}" if used else ""
    raise InputError(f"{what}{hint} Is the LoRA for another model?{mend}")
