"""CLIPTemp as EvalCrafter's code computes it: likeness of each frame to the next one, pixels not normalised."""

import numpy as np
from jaxtyping import Float

from i2v_jax.evaluation.dover_views import bilinear, resampled
from i2v_jax.evaluation.metric import Case, Metric, Networks, Video


def raw(video: Video, side: int) -> Float[np.ndarray, "f s s 3"]:
    """Returns frames of 0 to 255 resized to a square, bilinear without anti-aliasing, as torchvision 0.15 does."""
    rows, columns = (bilinear(length, side, length / side) for length in video.shape[1:3])
    return resampled(video, rows, columns)


def embeddings(case: Case, networks: Networks) -> Float[np.ndarray, "f d"]:
    """Returns embeddings of unit length; CLIP is given 0 to 255 where it was trained on about -2 to 2: a quirk."""

    def compute():
        found = np.float64(networks.picture_embeddings(raw(case.video, networks.clip_size)))
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    return case.once("clip frames, raw", compute)


def measure(case: Case, networks: Networks) -> float:
    frames = embeddings(case, networks)
    return float(100 * (frames[1:] * frames[:-1]).sum(1).mean())


METRIC = Metric(
    "clip_temp_neighbours",
    "CLIP-Temp of EvalCrafter",
    "percent of cosine",
    "higher",
    2,
    "EvalCrafter's code: neighbouring frames, raw pixels of 0 to 255",
    measure,
    networks=("clip",),
    frames=2,
)
