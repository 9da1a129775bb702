"""CLIPTemp as the I2V-Adapter paper words it: likeness of each frame to the input picture, by CLIP ViT-B/32."""

import numpy as np

from i2v_jax.evaluation.metric import Case, Metric, Networks
from i2v_jax.evaluation.metrics import clip_temp
from i2v_jax.media import clip_pixels


def measure(case: Case, networks: Networks) -> float:
    def compute(pictures):
        return networks.picture_embeddings(np.stack([clip_pixels(one, networks.clip_size) for one in pictures]))

    frames = case.once("clip frames", lambda: compute(case.video))
    return clip_temp(compute([case.picture])[0], frames)


METRIC = Metric(
    "clip_temp",
    "CLIPTemp",
    "cosine similarity",
    "higher",
    4,
    "I2V-Adapter, section 4.1; pictures prepared as CLIP was trained (cropped, normalised)",
    measure,
    networks=("clip",),
    wants=("picture",),
)
