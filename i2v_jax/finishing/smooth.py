"""More frames a second: by an IFNet of the community (RIFE), or by flow-warped blending where that is asked for."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from skimage.metrics import structural_similarity

from i2v_jax.data.optical_flow import SMALLEST, dense_inverse_search, warp
from i2v_jax.errors import InputError
from i2v_jax.finishing import tiles
from i2v_jax.media import Picture
from i2v_jax.models import ifnet
from i2v_jax.models.kernels.choice import choose
from i2v_jax.weights.whole import load_network

FLOW = "flow"
FACTORS = range(2, 9)
SIDE = 32  # of the frames in which cuts are sought

Between = Callable[[Picture, Picture, Sequence[float]], Iterable[Picture]]
"""Makes frames at moments in (0, 1) between a frame and the next."""


def of_name(by: str, scale: float, tile: int, overlap: int, dtype: Any = jnp.float32) -> Between:
    """Returns what makes frames between two frames.

    Args:
      by: "flow", or weights of an IFNet: a file or a hub id.
      scale: at which an IFNet seeks motion; less than 1 for large frames, whose motion is then sought in smaller ones.
      tile: side of the pieces of a frame that an IFNet sees at a time, in pixels; bounds memory.
      overlap: pixels of a piece that its neighbour has too; there they are blended.
      dtype: of an IFNet's weights and activations.

    Raises:
      InputError: a number out of range, weights that are not there, or no IFNet's.
    """
    if by == FLOW:
        return by_flow
    if scale not in ifnet.SPEEDS:
        raise InputError(f"interpolate.scale={scale}: wanted one of {', '.join(f'{one:g}' for one in ifnet.SPEEDS)}.")
    tiles.check("interpolate", tile, overlap)
    chosen = choose(jax.devices()[0], dtype)
    config, parameters = load_network("ifnet", by, dtype=dtype, convolution=chosen["convolution"])
    return functools.partial(by_network, config, parameters, float(scale), tile, overlap)


def by_network(
    config: ifnet.IFNetConfig,
    parameters: Any,
    scale: float,
    tile: int,
    overlap: int,
    first: Picture,
    second: Picture,
    times: Sequence[float],
) -> Iterator[Picture]:
    """Makes frames by an IFNet, one at a time on each device."""
    pair = np.concatenate([first, second], -1).astype(np.float32) / 255
    planes = (np.concatenate([pair, np.full_like(pair[..., :1], time)], -1) for time in times)

    def run(x):
        return ifnet.between(config, parameters, x[..., :3], x[..., 3:6], x[:, 0, 0, 6], scale)

    return tiles.in_tiles(run, planes, 1, tile, overlap)


def by_flow(first: Picture, second: Picture, times: Sequence[float]) -> Iterator[Picture]:
    """Makes frames by blending both frames, each moved by what optical flow says (Super SloMo, Jiang et al. 2018).

    With F the flow from the first frame to the second and B that back, the flow from moment t to the first is
    -(1 - t) t F + t^2 B and that to the second (1 - t)^2 F - t (1 - t) B (their equation 4).

    Raises:
      InputError: frames too small for optical flow.
    """
    if min(first.shape[:2]) < SMALLEST:
        raise InputError(
            f"interpolate.by='flow': frames of {first.shape[0]}x{first.shape[1]} are too small for optical flow, from "
            f"{SMALLEST} on. Enlarge them, or give weights of an IFNet."
        )
    ahead, back = dense_inverse_search(first, second), dense_inverse_search(second, first)
    for t in times:
        to_first = t**2 * back - t * (1 - t) * ahead
        to_second = (1 - t) ** 2 * ahead - t * (1 - t) * back
        made = (1 - t) * warp(first, to_first) + t * warp(second, to_second)
        yield np.round(np.clip(made, 0, 255)).astype(np.uint8)


def smoothed(
    frames: Iterable[Picture], between: Between, factor: int, least: float, loop: bool = False
) -> Iterator[tuple[Picture, bool]]:
    """Returns `factor` frames for each, and whether one stands before a cut; the video lasts as long as before.

    Over a cut, and at the end of a video that is no loop, the frame is shown again.

    Args:
      frames: of a video.
      between: makes frames.
      factor: of the frame rate.
      least: see `is_cut`.
      loop: whether the last frame goes on to the first.
    """
    frames, times = iter(frames), [number / factor for number in range(1, factor)]
    first = before = next(frames)

    def with_following(frame):
        is_end = is_cut(before, frame, least)
        yield before, is_end
        yield from ((made, False) for made in ([before] * len(times) if is_end else between(before, frame, times)))

    for frame in frames:
        yield from with_following(frame)
        before = frame
    if loop:
        yield from with_following(first)
    else:
        yield from [(before, False)] * factor


def is_cut(first: Picture, second: Picture, least: float) -> bool:
    """Whether a scene ends between two frames: they are less alike than `least`, by SSIM at 32x32; 0: never."""
    if not least:
        return False
    pair = [cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in (first, second)]
    likeness = structural_similarity(*pair, channel_axis=-1, gaussian_weights=True, use_sample_covariance=False)
    return likeness < least
