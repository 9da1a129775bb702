"""VBench's dynamic degree (Huang et al. 2023): whether a video moves, by the fastest pixels of RAFT's flow."""

import numpy as np

from i2v_jax.evaluation.metric import Case, Metric, Networks
from i2v_jax.evaluation.raft_pairs import flows_of, padded

FASTEST = 0.05  # share of the pixels whose mean length is taken
PIXELS = 6.0  # of a picture whose shorter side has 256
PAIRS = 4.0  # of 16 frames


def measure(case: Case, networks: Networks) -> float:
    lengths = []
    for flows in flows_of(padded(case.video), networks):
        length = np.sort(np.linalg.norm(flows, axis=-1).reshape(len(flows), -1), 1)
        lengths += list(length[:, -max(1, int(length.shape[1] * FASTEST)) :].mean(1))
    least = PIXELS * min(case.video.shape[1:3]) / 256
    return float(np.sum(np.array(lengths) > least) >= max(1, round(PAIRS * len(case.video) / 16)))


METRIC = Metric(
    "dynamic_degree",
    "Dynamic degree",
    "share of videos that move",
    "higher",
    3,
    "VBench: 1 where enough pairs have a fast flow, by RAFT. VBench takes 8 frames a second; here all count.",
    measure,
    networks=("raft",),
    frames=2,
)
