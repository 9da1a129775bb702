"""CLIP score: likeness of each frame to the prompt (Hessel et al. 2021, without its factor of 2.5)."""

import numpy as np

from i2v_jax.evaluation.metric import Case, Metric, Networks
from i2v_jax.media import clip_pixels


def measure(case: Case, networks: Networks) -> float:
    def compute():
        pixels = np.stack([clip_pixels(frame, networks.clip_size) for frame in case.video])
        return networks.picture_embeddings(pixels)

    frames = np.float64(case.once("clip frames", compute))
    prompt = np.float64(networks.text_embedding(case.prompt))
    return float(np.mean(frames @ prompt / (np.linalg.norm(frames, axis=1) * np.linalg.norm(prompt))))


METRIC = Metric(
    "clip_score",
    "CLIP score",
    "cosine similarity",
    "higher",
    4,
    "mean over frames of the cosine with the prompt; EvalCrafter's gives CLIP raw pixels, this one as it was trained",
    measure,
    networks=("clip",),
    wants=("prompt",),
)
