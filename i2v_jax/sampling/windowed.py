"""A denoiser of videos of any length, which runs on windows of their frames; see `diffusion.windows`.

Windows of a chunk run together, as further rows of the batch, window by window; chunks run one after the other, so that
a network's memory does not grow with the video.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from i2v_jax.diffusion.windows import Windows, chunked, count, cut
from i2v_jax.models.adapters.windows import Window
from i2v_jax.models.conditions import Conditions


class Chunks(NamedTuple):
    """The windows of a step, in chunks that run together; arrays, so that one program serves all steps.

    Attributes:
      frames: of each window, counted from 0.
      weights: of each frame in each window; those of a frame sum to 1.
      first: where frame 1 stands in the first window.
    """

    frames: Int32[np.ndarray, "c k l"]
    weights: Float32[np.ndarray, "c k l"]
    first: Int32[np.ndarray, ""]


def chunks(settings: Windows, frames: int, videos: int, devices: int, step: int) -> Chunks | None:
    """Returns the windows of a step; None where the network sees whole videos.

    Args:
      settings: of windows.
      frames: of the video.
      videos: that are sampled together.
      devices: that rows of a batch are spread over; where videos do not come out even, windows are.
      step: of the run, counted from 0.
    """
    if not settings.averages_predictions:
        return None
    size = min(settings.batch, count(settings, frames))
    if videos % devices:
        size = devices * settings.batch
    windows = cut(settings, frames, step)
    return Chunks(*chunked(windows, size), np.int32(windows.first))


def windowed(
    denoise: Callable[..., Any], windows: Chunks | None, weights: Float[Array, "n f"] | None = None
) -> Callable[..., Float[Array, "v f h w c"]]:
    """Returns a denoiser that averages what another predicts of windows. First-frame branches see frame 1 in all.

    Args:
      denoise: `(parameters, x, t, conditions, window=, kept=, [weights=]) -> (prediction, kept)`.
      windows: of the step; None: `denoise` itself, which sees whole videos.
      weights: strength of each control network on each frame, which `denoise` sees cut to windows; None: there is none.
    """
    if windows is None:
        return denoise

    def averaged(parameters, x, t, conditions):
        videos, frames = x.shape[:2]

        def predict(kept, chosen, is_first):
            window = Window(windows.first, jnp.broadcast_to(is_first, (videos,)))
            strengths = {} if weights is None else dict(weights=jnp.repeat(weights[:, chosen], videos, axis=1))
            cut = in_windows(conditions, frames, chosen)
            return denoise(parameters, in_rows(x, chosen), t, cut, window=window, kept=kept, **strengths)

        def add(carry, chunk):
            (total, kept), (chosen, shares, is_first) = carry, chunk
            prediction, kept = predict(kept, chosen, is_first)
            rows = prediction.reshape(-1, videos, *prediction.shape[1:]) * shares[:, None, :, None, None, None]
            rows = jnp.moveaxis(rows, 0, 1).reshape(videos, -1, *x.shape[2:])
            return (total.at[:, chosen.reshape(-1)].add(rows), kept), None

        total = jnp.zeros(x.shape, jnp.float32)
        of_chunks = windows.frames, windows.weights, jnp.arange(windows.frames.shape[0]) == 0
        if windows.frames.shape[0] == 1:
            return add((total, {}), jax.tree.map(lambda table: table[0], of_chunks))[0][0]
        kept = jax.eval_shape(predict, {}, windows.frames[0], of_chunks[-1][0])[1]
        kept = jax.tree.map(lambda found: jnp.zeros(found.shape, found.dtype), kept)
        return jax.lax.scan(add, (total, kept), of_chunks)[0][0]

    return averaged


def in_rows(x: Float[Array, "v f ..."], frames: Int[Array, "k l"]) -> Float[Array, "k*v l ..."]:
    """Returns the windows of videos as rows of a batch, window by window."""
    return jnp.moveaxis(jnp.asarray(x)[:, frames], 1, 0).reshape(-1, frames.shape[1], *x.shape[2:])


def in_windows(conditions: Conditions, count: int, frames: Int[Array, "k l"]) -> Conditions:
    """Returns what windows of videos are conditioned on: what is of each frame cut to them, all else as it is.

    Args:
      conditions: of the videos.
      count: frames of a video.
      frames: of each window. A pooled prompt, of which a network takes one, is the mean of its frames'.
    """

    def cut(x):
        return in_rows(x, frames) if x.shape[1] == count else jnp.tile(x, (frames.shape[0], *[1] * (x.ndim - 1)))

    found = jax.tree.map(cut, conditions)
    return found if found.pooled is None else found._replace(pooled=found.pooled.mean(1, keepdims=True))
