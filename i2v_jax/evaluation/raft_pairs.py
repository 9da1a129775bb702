"""RAFT's flow between neighbouring frames, a few pairs at a time, and what EvalCrafter's warping error does with it."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Float32

from i2v_jax.evaluation.metric import Networks, Video
from i2v_jax.models.raft import padding_of

Frames = Float[np.ndarray, "f h w 3"]
Flow = Float32[np.ndarray, "h w 2"]


def padded(frames: Frames) -> Frames:
    """Returns frames whose sides are multiples of 8: edge pixels repeated, as many before as after."""
    return np.pad(frames, ((0, 0), *padding_of(*frames.shape[1:3]), (0, 0)), mode="edge")


def flows_of(frames: Frames, networks: Networks, backward: bool = False) -> Iterator[Float32[np.ndarray, "n h w 2"]]:
    """Yields the flow from each frame to the next (`backward`: the other way), some pairs at a time.

    Args:
      frames: pixels of 0 to 255, sides multiples of 8.
    """
    size = networks.flow_batch(*frames.shape[1:3])
    for first in range(0, len(frames) - 1, size):
        some = frames[first : first + size + 1]
        pair = (some[1:], some[:-1]) if backward else (some[:-1], some[1:])
        yield networks.flow(*pair)


def raft(networks: Networks) -> Callable[[Video], Float32[np.ndarray, "f-1 h w 2"]]:
    """Returns RAFT as an estimator of `evaluation.flow`: from a video of any size to the flow between its frames."""

    def estimate(video):
        (top, _), (left, _) = padding_of(*video.shape[1:3])
        flows = np.concatenate([*flows_of(padded(video), networks)])
        return flows[:, top : top + video.shape[1], left : left + video.shape[2]]

    return estimate


def halved(frames: Frames) -> Frames:
    """Returns frames at half their size, bilinear; an odd last row or column is left out."""
    count, height, width, channels = frames.shape
    even = frames[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(count, height // 2, 2, width // 2, 2, channels).mean((2, 4), dtype=np.float32)


def warped(image: Float[np.ndarray, "h w c"], flow: Flow) -> Float32[np.ndarray, "h w c"]:
    """Fetches what each pixel moves to, bilinear: corners clamped to the picture, weights as if they were not."""
    height, width = image.shape[:2]
    x, y = (np.float32(axis) + flow[..., i] for i, axis in enumerate(np.meshgrid(range(width), range(height))))
    left, top = np.floor(x), np.floor(y)
    right, down = (x - left)[..., None], (y - top)[..., None]
    columns = [np.clip(left + i, 0, width - 1).astype(int) for i in (0, 1)]
    rows = [np.clip(top + i, 0, height - 1).astype(int) for i in (0, 1)]
    upper = image[rows[0], columns[0]] * (1 - right) + image[rows[0], columns[1]] * right
    lower = image[rows[1], columns[0]] * (1 - right) + image[rows[1], columns[1]] * right
    return upper * (1 - down) + lower * down


def occluded(forward: Flow, backward: Flow) -> Bool[np.ndarray, "h w"]:
    """Where the two flows do not undo each other, or motions meet (Ruder et al. 2016), in pixels as they are."""
    back = warped(backward, forward)
    undone = square(back + forward) > 0.01 * (square(back) + square(forward)) + 0.5
    down = np.diff(forward, axis=0, append=forward[-1:])
    right = np.diff(forward, axis=1, append=forward[:, -1:])
    return undone | (square(down) + square(right) > 0.01 * square(forward) + 0.002)


def square(flow: Float[np.ndarray, "h w 2"]) -> Float[np.ndarray, "h w"]:
    return (flow**2).sum(-1)


def warping_errors(frames: Frames, networks: Networks, scale: float) -> list[float]:
    """Returns EvalCrafter's warping error of each pair of frames.

    Squared differences of the first frame and the second fetched along the flow, summed over channels, mean over the
    pixels that are not occluded; 0 where all are.

    Args:
      frames: of 0 to 1, halved and padded.
      scale: what RAFT is given is the frames times this; it should be 255.
    """
    errors, shown = [], np.float32(scale) * frames
    forward, backward = (flows_of(shown, networks, back) for back in (False, True))
    for ahead, back in zip(forward, backward):
        for flow, other in zip(ahead, back):
            first, second = frames[len(errors)], frames[len(errors) + 1]
            kept = ~occluded(flow, other)
            apart = ((warped(second, flow) - first) ** 2).sum(-1)
            errors.append(float(apart[kept].mean()) if kept.any() else 0.0)
    return errors
