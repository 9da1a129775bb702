"""Optical flow behind one interface, and where it can be trusted.

What is at (x, y) in a frame is at (x, y) + flow[y, x] in the next one. The paper takes RAFT's flow; here it is that of
dense inverse search by default, and RAFT's where its weights are given. An estimator is a function from a video to the
flow from each frame to the next.
"""

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from skimage.color import rgb2gray
from skimage.registration import optical_flow_ilk, optical_flow_tvl1

from i2v_jax.data.optical_flow import Flow, Picture, dense_inverse_search, warp
from i2v_jax.errors import InputError, nearest
from i2v_jax.evaluation.metric import Networks
from i2v_jax.evaluation.raft_pairs import raft

Video = UInt8[np.ndarray, "f h w 3"]
Flows = Float32[np.ndarray, "f-1 h w 2"]
Estimator = Callable[[Video], Flows]

REFERENCE = 512  # pixels of the shorter side at which the rules of `visible` and `edges` are read


def pair_by_pair(estimate: Callable[[Picture, Picture], Flow]) -> Estimator:
    """Makes an estimator of one that takes a frame and the next one."""

    @functools.wraps(estimate)
    def of_video(video):
        return np.stack([estimate(frame, following) for frame, following in zip(video[:-1], video[1:])])

    return of_video


dis = pair_by_pair(dense_inverse_search)


@pair_by_pair
def tv_l1(frame: Picture, following: Picture) -> Flow:
    """Total variation with an L1 norm (Zach et al. 2007), by scikit-image."""
    return _right_down(optical_flow_tvl1(rgb2gray(frame), rgb2gray(following), attachment=60))


@pair_by_pair
def ilk(frame: Picture, following: Picture) -> Flow:
    """Iterative Lucas-Kanade (Le Besnerais and Champagnat 2005), by scikit-image."""
    return _right_down(optical_flow_ilk(rgb2gray(frame), rgb2gray(following), radius=5))


def _right_down(rows_columns: Float[np.ndarray, "2 h w"]) -> Flow:
    return np.moveaxis(rows_columns[::-1], 0, -1).astype(np.float32)


ESTIMATORS: dict[str, Estimator] = {"dis": dis, "tv_l1": tv_l1, "ilk": ilk}


def estimator(name: str, networks: Networks | None = None) -> Estimator:
    """Returns an estimator by its name in `ESTIMATORS`, or "raft".

    Args:
      networks: of which "raft" takes RAFT.

    Raises:
      InputError: there is none of that name, or there are no weights of RAFT, or they cannot be read.
    """
    if name == "raft" and networks:
        networks.load("raft")
        return raft(networks)
    if name not in ESTIMATORS:
        known = (*ESTIMATORS, "raft")
        raise InputError(f"No optical flow {name!r}; known: {', '.join(known)}.{nearest(name, known)}")
    return ESTIMATORS[name]


def backward(video: Video, estimate: Estimator = dis) -> Flows:
    """Estimates the flow from each frame but the first to the one before it."""
    return estimate(video[::-1])[::-1]


def visible(ahead: Flows, back: Flows) -> Bool[np.ndarray, "f-1 h w"]:
    """Whether the next frame shows what a pixel shows, as far as two flows say.

    Not so where the flow leaves the picture, nor where the flow back does not undo it: |a + b|^2 > 0.01 (|a|^2 + |b|^2)
    + 0.5, the rule of Sundaram et al. 2010 with EvalCrafter's numbers, those of Ruder et al. 2016. (EvalCrafter takes
    the nearest pixel for one outside, which makes every pan an error.) Its 0.5 is of pixels of a large video: flows are
    read as if the shorter side had `REFERENCE` pixels, so that the rule is the same at any size.

    Args:
      ahead: from each frame to the next, pixels.
      back: from each next frame to the one before.
    """
    height, width = ahead.shape[1:3]
    end = ahead + np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
    inside = ((end >= 0) & (end <= (width - 1, height - 1))).all(-1)
    returned = np.stack([warp(b, a) for a, b in zip(ahead, back)])
    ahead, returned = (flows * (REFERENCE / min(height, width)) for flows in (ahead, returned))
    return inside & (_square(ahead + returned) <= 0.01 * (_square(ahead) + _square(returned)) + 0.5)


def estimated(video: Video, estimate: Estimator = dis) -> tuple[Flows, Bool[np.ndarray, "f-1 h w"]]:
    """Estimates the flow from each frame to the next, and what the next frame shows too."""
    ahead = estimate(video)
    return ahead, visible(ahead, backward(video, estimate))


def edges(flows: Flows) -> Bool[np.ndarray, "f-1 h w"]:
    """Where motions meet, and no flow can be trusted: |grad a|^2 > 0.01 |a|^2 + 0.002, of the same sources.

    Read at `REFERENCE` pixels, as in `visible`; a gradient, pixels over pixels, is the same at any size.
    """
    steepness = sum(_square(np.diff(flows, axis=axis, append=flows.take([-1], axis))) for axis in (1, 2))
    return steepness > 0.01 * _square(flows * (REFERENCE / min(flows.shape[1:3]))) + 0.002


def _square(flow: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n"]:
    return (flow**2).sum(-1)
