"""Whether each file of a run is given for what it is: where not, what it is, where it belongs, and how to give it."""

import contextlib
from pathlib import Path

from i2v_jax.errors import InputError
from i2v_jax.families.identify import SD1, SDXL, kind_of, prompts_of
from i2v_jax.families.weights import Weights
from i2v_jax.weights.controls import FOLDER as CONTROL_FOLDER
from i2v_jax.weights.kinds.find import parts_held, titled, unread_kind, why_unread, wrong_slot
from i2v_jax.weights.kinds.table import SLOTS
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.translate import Imported, OwnTable, recognise

PLACES = {
    "base": "unet",
    "motion": "motion_adapter",
    "adapter": "unet",
    "image_adapter": "unet",
    "trained": "",
    "lora": "",
    "controls": CONTROL_FOLDER,
    "loras": "",
}
"""Where a slot's weights lie in a pipeline's folder, when not in one of the slot's name."""


def check_slots(weights: Weights) -> None:
    """Raises InputError for the first source of a run that holds nothing for the key it is given by.

    To be asked when a model cannot be put together; what cannot be opened is left out, for its own error to stand.
    """
    for slot in SLOTS:
        if slot in ("trained", "controls", "loras"):
            sources = getattr(weights, slot) if slot != "loras" else [source for source, _ in weights.styles()]
            for source in sources:
                check_slot(slot, source)
        elif source := getattr(weights, slot, None):
            if slot != "base" or not weights.unet:
                check_slot(slot, source)
    if weights.base:
        _check_base_is_whole(weights)


def check_slot(slot: str, source: str | Path) -> None:
    """Raises InputError for a source that holds nothing for its slot; what cannot be opened passes.

    Args:
      slot: a key of `kinds.table.SLOTS`.
      source: file, folder or hub id.
    """
    found = _opened(source, PLACES.get(slot, slot), f"weights.{slot}: " if slot != "lora" else "--lora ")
    if not found or (slot == "trained" and all(isinstance(one.table, OwnTable) for one in found.values())):
        return
    held = parts_held({component: _paths(imported) for component, imported in found.items()})
    if message := wrong_slot(slot, str(source), held):
        raise InputError(message)


def _check_base_is_whole(weights: Weights) -> None:
    """Raises InputError where the base lacks networks that nothing else gives; names all of them, and what to give."""
    unet = _opened(weights.of("unet"), "unet").get("unet")
    if unet is None:
        return
    width = prompts_of({path: entry.shape for path, entry in unet.parameters.entries.items()})
    kind = (width and kind_of(width)) or SD1
    wanted = ("vae", "text_encoder", *(("text_encoder_2",) if kind is SDXL else ()))
    lacking, held = [], {}
    for component in wanted:
        if not getattr(weights, component):
            found = _opened(weights.base, component)
            held |= found
            if found and component not in found and not (component == "text_encoder_2" and "text_encoder" in found):
                lacking.append(component)
    if lacking:
        what = titled(parts_held({component: _paths(imported) for component, imported in held.items()}))
        advice = ", ".join(f"weights.{slot}={kind.examples.get(slot, SLOTS[slot][1])}" for slot in lacking)
        raise InputError(
            f"weights.base: {weights.base} holds {what}, and no {', no '.join(SLOTS[slot][0] for slot in lacking)}. "
            f"Give what it lacks: {advice}."
        )


def _opened(source: str | Path, folder: str, refused_as: str | None = None) -> dict[str, Imported]:
    """What a source holds, {} where it cannot be opened; InputError for a kind that is not read, where it is named."""
    try:
        tensors = open_tensors(source, folder)
    except InputError:
        return {}
    found = unread_kind(tensors)
    if found and refused_as is not None:
        raise InputError(refused_as + why_unread(tensors.source, *found))
    with contextlib.suppress(InputError):
        return recognise(tensors)
    return {}


def _paths(imported: Imported) -> list[str]:
    return [*imported.parameters, *imported.buffers]
