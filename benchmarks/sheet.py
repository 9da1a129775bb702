"""The picture that a benchmark of the small world leaves: rows of clips, columns of what was made of them."""

from collections.abc import Sequence
from pathlib import Path

from i2v_jax import media
from i2v_jax.evaluation import report


def write(
    output: Path, rows: Sequence[Sequence[media.Frames]], titles: Sequence[str], captions: Sequence[str], tile: int = 96
) -> None:
    """Writes `OUTPUT.png` and prints where it is; see `evaluation.report.side_by_side`."""
    path = output.with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    media.write_png(path, report.side_by_side(rows, titles, captions, tile=tile)[0], overwrite=True)
    print(path)
