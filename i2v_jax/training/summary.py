"""What a run says of itself in words, how much there is to do and how long it takes, and the config that it leaves."""

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from i2v_jax.models.adapters.miva import PATH
from i2v_jax.tree import count

CONFIG = "config.json"  # in a run's folder; `--config` takes it


def describe_weights(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> str:
    """Returns how many parameters are trained; of a MIVA also how large it is beside its UNet, and as a file."""
    text = f"{count(trained):,} parameters are trained, {count(frozen):,} are frozen"
    if not any(PATH in path for path in trained):
        return text
    unet = count({path: leaf for path, leaf in frozen.items() if path.startswith("unet/")})
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in trained.values())
    return f"{text}; the MIVA is {count(trained) / unet:.2%} of its UNet, a file of {size / 1e6:.1f} MB"


def describe_clips(clips: int, held_out: int, steps: int, batch: int, done: int) -> list[str]:
    """Returns lines on what a run trains on.

    Args:
      clips: that are trained on; stored ones count once for each time they are stored.
      held_out: clips that are held back.
      steps, batch: of the whole run; clips in a step.
      done: steps done before.
    """
    if held_out:
        aside = f", {held_out:,} more are held out"
    else:
        aside = "; none are held out (--config.held_out.share=0.05 draws the loss of clips that are not trained on)"
    lines = [f"{clips:,} clips to train on{aside}"]
    left = f", {steps - done:,} steps left" if done else ""
    return [*lines, f"{steps:,} steps of {batch:,} clips are {steps * batch / clips:,.2f} epochs{left}"]


def describe_curves(folder: Path) -> str:
    """Returns how the curves in a folder are looked at."""
    missing = "" if importlib.util.find_spec("tensorboard") else "pip install tensorboard, then "
    return f"curves: {missing}tensorboard --logdir {folder}"


def duration(seconds: float) -> str:
    """Returns a duration in words, in two units: "45 s", "3 min 20 s", "2 h 5 min", "1 d 3 h"."""
    whole, parts = round(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, whole = divmod(whole, size)
        if parts or count or unit == "s":
            parts.append((count, unit))
    return " ".join(f"{count} {unit}" for count, unit in parts[:2] if count or len(parts) == 1)


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes a run's config, as JSON holds it, into its folder."""
    temporary = folder / f"{CONFIG}.tmp"
    temporary.write_text(json.dumps({"config": config}, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / CONFIG)


def held_out_share(folder: Path, share: float, has_checkpoints: bool) -> float:
    """Returns the share of clips that a run in a folder holds back: what it began with, whatever is asked for now.

    Args:
      folder: of the run.
      share: that is asked for.
      has_checkpoints: whether there is anything to go on from; else the run is new.
    """
    if not has_checkpoints:
        return share
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8"))["config"]["held_out"]["share"]
    except (OSError, ValueError, KeyError, TypeError):  # of an earlier version, which held none back
        return 0.0
