"""What networks beside a UNet (ControlNet, SparseCtrl, T2I-Adapter) add to its features."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jaxtyping import Array, Float


class Residuals(NamedTuple):
    """A pytree of what is added to a UNet's features; None adds nothing.

    Attributes:
      skips: to every output of the down blocks, `conv_in`'s first (ControlNet).
      middle: to the middle block's output.
      levels: to the features of each level, after its last layer where the level has attention, otherwise at the end
        of its block; a fourth of a UNet of three levels to the middle's (T2I-Adapter).
    """

    skips: Sequence[Float[Array, "b f _h _w _c"]] | None = None
    middle: Float[Array, "b f _h _w _c"] | None = None
    levels: Sequence[Float[Array, "b f _h _w _c"]] | None = None


def total(residuals: Sequence[Residuals]) -> Residuals | None:
    """Returns the sum of what several networks add; None of none."""
    if not residuals:
        return None
    return Residuals(*(_sum([found for found in part if found is not None]) for part in zip(*residuals)))


def _sum(parts):
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *parts) if parts else None
