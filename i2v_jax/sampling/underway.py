"""Contact sheets of videos that are under way: what a few of their frames would be if sampling ended now."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from i2v_jax import media
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.settings import Settings

SHOWN = 4  # frames


def sheet_path(stem: Path) -> Path:
    """Returns where a video's sheet lies while it is under way."""
    return Path(f"{stem}-preview.png")


def show(
    pipeline: Pipeline,
    pictures: Sequence[media.Picture],
    stems: Sequence[Path],
    settings: Settings,
    done: int,
    total: int,
    latents: Float[np.ndarray, "n f h w c"],
) -> None:
    """Decodes a few frames of each video, and puts them beside its picture in a PNG, in place of the one before.

    Args:
      pictures, stems: of each video, its picture and the path of its files.
      settings: of the run.
      done, total, latents: as `on_latents` is called, see `watch.Watch`.
    """
    chosen = np.unique(np.linspace(0, latents.shape[1] - 1, min(SHOWN, latents.shape[1])).round().astype(int))
    for video, picture, stem in zip(pipeline.decode(latents[:, chosen], settings), pictures, stems):
        media.write_png(sheet_path(stem), media.contact_sheet(picture, video), overwrite=True)


def remove(stems: Sequence[Path]) -> None:
    """Removes the sheets of videos that are made, or given up."""
    for stem in stems:
        sheet_path(stem).unlink(missing_ok=True)
