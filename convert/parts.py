"""The parts of a component, by path: what may come from another file, or stay behind in an export."""

import re

from i2v_jax.models.adapters import ADAPTER_PATH, ADAPTERS
from i2v_jax.models.adapters.miva import PATH

LORA = re.compile(r".*/lora/\w+")


def part_of(component: str, path: str) -> str:
    """Returns the part that a tensor belongs to: `unet: motion modules`, or the component where it has no parts."""
    if LORA.fullmatch(path):
        return f"{component}: LoRA"
    if PATH in path:
        return f"{component}: MIVA"
    if match := ADAPTER_PATH.fullmatch(path):
        return adapter_part(component, match["name"])
    return f"{component}: motion modules" if "/motion/" in path else component


def adapter_part(component: str, name: str) -> str:
    """Returns the part of an adapter's weights; of one that is not known, by its name."""
    if name not in ADAPTERS:
        return f"{component}: adapter {name}"
    return f"{component}: {ADAPTERS[name].weights or ADAPTERS[name].title}"
