"""What a run that goes on may have changed: keys of a config that decide what it comes to, and those that do not."""

import json
from collections.abc import Mapping
from typing import Any

from i2v_jax.tree import flatten

SILENT = (
    *("folder", "mesh", "rules", "frozen", "distributed", "compilation_cache", "checkpoints", "log", "samples"),
    "held_out",  # whose share stays what it was
    *("accumulate", "attention", "convolution", "remat", "objective/vae_slice"),
    *("data/workers", "data/buffer", "data/bad_list", "data/max_bad"),
)
"""Keys of a config, or groups of them, that change where and how a run computes, but not what, rounding apart."""


SWITCHES = {"lora": "lora/rank", "control": "control/process"}
"""Groups of keys that do nothing where one of them is off."""


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns a line for each key that changes what a run comes to: which, from which value to which.

    Keys that a run of an earlier version had not, and that switch nothing on, are passed over.

    Args:
      before, now: configs, as JSON can hold them: a tuple is the list that it is read back as.
    """
    before, now = (flatten(json.loads(json.dumps(config))) for config in (before, now))
    changed = [key for key in dict.fromkeys((*now, *before)) if before.get(key) != now.get(key)]
    off = [f"{group}/" for group, switch in SWITCHES.items() if not (before.get(switch) or now.get(switch))]
    changed = [key for key in changed if (key in before or now[key]) and not _is_silent(key)]
    changed = [key for key in changed if not key.startswith(tuple(off))]
    return [f"{key.replace('/', '.')} {before.get(key)} -> {now.get(key)}" for key in changed]


def _is_silent(key: str) -> bool:
    return any(f"{key}/".startswith(f"{group}/") for group in SILENT)
