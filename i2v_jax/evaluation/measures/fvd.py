"""FVD (Unterthiner et al. 2018): how far videos are from true ones as a set, by I3D's features, over 16 frames."""

import numpy as np
from jaxtyping import Float, Float32

from i2v_jax.errors import InputError
from i2v_jax.evaluation.dover_views import bilinear, resampled
from i2v_jax.evaluation.metric import Case, Networks, SetMetric, Video
from i2v_jax.models.i3d import SIDE

FRAMES = 16
"""Of each video, the first ones: what most publish."""


def shown_to_i3d(video: Video) -> Float32[np.ndarray, "f 224 224 3"]:
    """Returns frames of -1 to 1 squeezed to 224x224, bilinear without anti-aliasing, as FVD's codes give them."""
    rows, columns = (bilinear(side, SIDE, side / SIDE) for side in video.shape[1:3])
    return resampled(video, rows, columns) * np.float32(2 / 255) - 1


def features(case: Case, networks: Networks) -> Float32[np.ndarray, "2 d"]:
    """Returns I3D's logits of a video and of its true one."""
    if len(case.truth) < FRAMES:
        raise InputError(f"{case.name}: {len(case.truth)} frames in the true video; FVD wants {FRAMES} or more.")
    return networks.action_logits(np.stack([shown_to_i3d(video[:FRAMES]) for video in (case.video, case.truth)]))


def frechet(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]) -> float:
    """Returns the squared Fréchet distance of two sets' normal distributions; covariances are divided by n - 1.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). With S1 = A'A and S2 = B'B, the trace of the root is the sum of the
    singular values of A B', which needs neither roots of matrices nor more videos than features.
    """
    apart = np.sum((first.mean(0) - second.mean(0)) ** 2)
    spreads = [(each - each.mean(0)) / (len(each) - 1) ** 0.5 for each in (first, second)]
    one, other = (np.linalg.qr(spread, mode="r") if len(spread) > spread.shape[1] else spread for spread in spreads)
    roots = np.linalg.svd(one @ other.T, compute_uv=False).sum()
    return max(0.0, float(apart + sum((spread**2).sum() for spread in spreads) - 2 * roots))  # rounding may be below


def distance(pairs: Float[np.ndarray, "n 2 d"]) -> float:
    """Returns the distance of videos from the true ones."""
    return frechet(pairs[:, 0], pairs[:, 1])


METRIC = SetMetric(
    "fvd",
    "FVD",
    "squared distance of features, from 0",
    "lower",
    1,
    "Unterthiner et al. 2018 over the first 16 frames, squeezed to 224x224: Fréchet distance of I3D's logits to those "
    "of the true videos, covariances divided by n - 1",
    features,
    networks=("i3d",),
    wants=("truth",),
    frames=FRAMES,
    of_set=distance,
    advised=2048,
)
