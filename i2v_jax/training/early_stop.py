"""Ends a training when clips that are held out no longer gain, and keeps the weights that were best for them."""

import json
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from i2v_jax.errors import InputError

HISTORY = "held_out.json"
BEST = "best.safetensors"


def of_config(config: ConfigDict, folder: Path, step: int) -> "EarlyStop | None":
    """Returns what ends a run that goes on from a step; None where `held_out.patience` says that it goes to its end."""
    return EarlyStop(folder, config.held_out.patience, step) if config.held_out.patience else None


class EarlyStop:
    """What held-out losses a run has measured, kept in its folder, so that a run that goes on knows them.

    Args:
      folder: of the run.
      patience: measurements in a row without a lower loss after which it ends.
      step: that the run goes on from, 0 for a new one: what was measured later is forgotten.
    """

    def __init__(self, folder: Path, patience: int, step: int = 0):
        self.folder, self.patience = folder, patience
        self.losses = {number: loss for number, loss in _read(folder / HISTORY) if number <= step}
        if not (folder / BEST).is_file():
            self.losses = {}

    @property
    def best(self) -> int | None:
        """The step of the lowest loss, the first of several; None before any is measured."""
        return min(self.losses, key=self.losses.get) if self.losses else None

    @property
    def is_over(self) -> bool:
        """Whether so many measurements have passed since the best one."""
        return bool(self.losses) and sum(step > self.best for step in self.losses) >= self.patience

    def measured(self, step: int, loss: float, save: Callable[[Path], None], writes: bool) -> bool:
        """Takes a measurement, and has the weights saved where it is the best; returns whether the run ends.

        Args:
          step: whose weights were measured.
          loss: of the held-out clips.
          save: writes the weights to a file.
          writes: whether this process is the one that writes.
        """
        self.losses[step] = loss
        if self.best == step:
            save(self.folder / BEST)
        if writes:
            text = json.dumps(sorted(self.losses.items()))
            (self.folder / HISTORY).write_text(text + "\n", encoding="utf-8")
        return self.is_over


def _read(path: Path) -> list[tuple[int, float]]:
    if not path.is_file():
        return []
    try:
        return [(int(step), float(loss)) for step, loss in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}). Take it away, and held-out clips are measured anew.") from error
