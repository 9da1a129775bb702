"""The parts of a component, by path: what may come from another file, or stay behind in an export."""

import re

PARTS = {
    "LoRA": r".*/lora/\w+",
    "motion modules": r".*/motion/.*",
    "first-frame adapter": r".*/attn1/first_frame/.*",
    "image tokens": r".*/attn2/image_tokens/.*",
    "base": r".*",
}
"""Part -> paths within the component; the first that matches counts."""


def part_of(component: str, path: str) -> str:
    """Returns the part that a tensor belongs to: `unet: motion modules`, or the component where it has no parts."""
    part = next(part for part, pattern in PARTS.items() if re.fullmatch(pattern, path))
    return component if part == "base" else f"{component}: {part}"
