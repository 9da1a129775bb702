"""VBench's subject and background consistency (Huang et al. 2023): frames are like the first and the one before."""

import numpy as np
from jaxtyping import Float

from i2v_jax.evaluation.dover_views import bilinear, resampled
from i2v_jax.evaluation.metric import Case, Metric, Networks, Video
from i2v_jax.media import clip_pixels
from i2v_jax.models.dino import MEAN, STD

SIDE = 224  # pixels of the shorter side that DINO is given


def likeness(embeddings: Float[np.ndarray, "f d"]) -> float:
    """Returns the mean over frames from the second on of the cosines to the first and to the one before, from 0."""
    found = np.float64(embeddings)
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    to_first, to_last = found[1:] @ found[0], (found[1:] * found[:-1]).sum(1)
    return float((np.maximum(to_first, 0) + np.maximum(to_last, 0)).mean() / 2)


def shown_to_dino(video: Video) -> Float[np.ndarray, "f h w 3"]:
    """Returns normalised frames, the shorter side of 224 pixels, bilinear without anti-aliasing, not cropped."""
    height, width = video.shape[1:3]
    short = min(height, width)
    rows, columns = (bilinear(side, new, side / new) for side in (height, width) for new in [int(SIDE * side / short)])
    return (resampled(video, rows, columns) / 255 - MEAN) / STD


def subject(case: Case, networks: Networks) -> float:
    return likeness(networks.subject_embeddings(shown_to_dino(case.video)))


def background(case: Case, networks: Networks) -> float:
    def compute():
        return networks.picture_embeddings(np.stack([clip_pixels(one, networks.clip_size) for one in case.video]))

    return likeness(case.once("clip frames", compute))


SUBJECT = Metric(
    "subject_consistency",
    "Subject consistency",
    "cosine similarity, 0 to 1",
    "higher",
    4,
    "VBench: DINO ViT-B/16's cosine of each frame with the first and with the one before, mean of both",
    subject,
    networks=("dino",),
    frames=2,
)
BACKGROUND = Metric(
    "background_consistency",
    "Background consistency",
    "cosine similarity, 0 to 1",
    "higher",
    4,
    "VBench: the same by CLIP ViT-B/32; pictures are resized as CLIP's are, with anti-aliasing",
    background,
    networks=("clip",),
    frames=2,
)
