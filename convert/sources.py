"""Opens the sources of a command line; where they do not go together, their families say why."""

import argparse
import contextlib
from collections.abc import Sequence

from i2v_jax.errors import InputError
from i2v_jax.families.downloads import Part, telling_all
from i2v_jax.families.identify import explain
from i2v_jax.families.slots import check_slot
from i2v_jax.hub import NotHere
from i2v_jax.weights.checkpoint import Checkpoint, open_checkpoint, open_files, recognise_in
from i2v_jax.weights.unet_parts import parts_of

SLOTS = {"base": "unet", "motion": "motion", "first_frame": "adapter", "image_tokens": "image_adapter"}
"""What a UNet's part is called by `families.identify`."""


def open_sources(arguments: argparse.Namespace) -> Checkpoint:
    """Opens the sources of a command line as one checkpoint, its LoRAs merged when read.

    Raises:
        InputError: a source cannot be read, or does not fit together with the others.
    """
    loras = [source for source, _ in arguments.lora]
    parts = [Part("SOURCE", source, variant=arguments.variant) for source in arguments.sources]
    parts += [Part("--lora", source) for source in loras]
    try:
        with telling_all(lambda: parts):
            return open_checkpoint(
                arguments.sources,
                loras=arguments.lora,
                configs=dict(arguments.config),
                variant=arguments.variant,
                skip_unknown=arguments.skip_unknown,
                motion_frames=arguments.motion_frames,
            )
    except NotHere:
        raise
    except InputError:
        explain_sources(arguments.sources, loras, arguments.variant)
        raise


def explain_sources(sources: Sequence[str], loras: Sequence[str], variant: str | None = None) -> None:
    """Raises InputError where a source or a LoRA is of another family than the base; to be asked when opening failed.

    Args:
        sources: files, folders, hub ids; of a part that several hold, the last one's counts.
        loras: files to merge.
        variant: which precision of several.
    """
    for lora in loras:
        check_slot("lora", lora)
    slots = {}
    for source in sources:
        for part in unet_parts(source, variant):
            if part in SLOTS:
                slots[SLOTS[part]] = source
    if "unet" in slots:
        parts = {slot: source for slot, source in slots.items() if slot == "unet" or source != slots["unet"]}
        for lora in loras or [None]:
            explain(parts | ({"lora": lora} if lora else {}))


def unet_parts(source: str, variant: str | None) -> set[str]:
    """Returns which parts of a UNet a source holds; none where it cannot be opened."""
    with contextlib.suppress(InputError):
        held = [recognise_in(tensors, folder).get("unet") for tensors, folder in open_files(source, variant)]
        return set().union(*(parts_of(imported.parameters) for imported in held if imported))
    return set()
