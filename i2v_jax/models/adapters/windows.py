"""Frame 1 of a video in a network that runs on windows of it: its keys and values are kept for the other windows."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

KEPT = "first_frame"
"""The collection of keys and values that are kept."""


class Window(NamedTuple):
    """Where frame 1 is, of a network whose batch is `[windows of a chunk, videos]`.

    Attributes:
      place: of frame 1 among the frames of the chunk's first window, where it is there.
      is_first: of each video, whether it is there; else what is kept in the collection `KEPT` stands for it.
    """

    place: Int[Array, ""]
    is_first: Bool[Array, " v"]


def first_frame(
    module: nn.Module, key: Float[Array, "b f s h d"], value: Float[Array, "b f s h d"], window: Window | None
) -> tuple[Float[Array, "b 1 s h d"], Float[Array, "b 1 s h d"]]:
    """Returns keys and values of frame 1 of each video, for each of its windows.

    Args:
      module: the branch that looks at them, which keeps them.
      key, value: of a spatial self-attention.
      window: None where the network sees whole videos.
    """
    if window is None:
        return key[:, :1], value[:, :1]
    return tuple(_of_videos(module, name, x, window) for name, x in (("key", key), ("value", value)))


def _of_videos(module: Any, name: str, x: Array, window: Window) -> Array:
    videos = window.is_first.shape[0]
    own = lax.dynamic_slice_in_dim(x[:videos], window.place, 1, axis=1)
    kept = module.variable(KEPT, name, jnp.zeros_like, own)
    kept.value = jnp.where(window.is_first[:, None, None, None, None], own, kept.value)
    return jnp.tile(kept.value, (x.shape[0] // videos, 1, 1, 1, 1))
