"""VBench's temporal flickering (Huang et al. 2023): how alike neighbouring frames are, pixel by pixel."""

import numpy as np

from i2v_jax.evaluation.metric import Case, Metric, Networks


def measure(case: Case, networks: Networks) -> float:
    apart = [np.abs(a.astype(np.int16) - b).mean() for a, b in zip(case.video[:-1], case.video[1:])]
    return float((255 - np.mean(apart)) / 255)


METRIC = Metric(
    "temporal_flickering",
    "Temporal flickering",
    "0 to 1",
    "higher",
    4,
    "VBench: 1 - mean absolute difference of neighbouring frames / 255. VBench leaves out what moves; not so here.",
    measure,
    frames=2,
)
