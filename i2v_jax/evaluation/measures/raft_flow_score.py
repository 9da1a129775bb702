"""FlowScore as EvalCrafter computes it: mean length of RAFT's flow, in pixels per frame at the video's own size."""

import numpy as np

from i2v_jax.evaluation.metric import Case, Metric, Networks
from i2v_jax.evaluation.raft_pairs import flows_of, padded


def measure(case: Case, networks: Networks) -> float:
    means = [np.linalg.norm(flows, axis=-1).mean((1, 2)) for flows in flows_of(padded(case.video), networks)]
    return float(np.concatenate(means).mean())


METRIC = Metric(
    "raft_flow_score",
    "FlowScore",
    "pixels per frame",
    "higher",
    4,
    "EvalCrafter: RAFT, 20 iterations, all pairs, padding to multiples of 8 counted too; videos below 128 pixels, for "
    "which it has no number, are enlarged for RAFT. Neither size nor frame rate is divided out.",
    measure,
    networks=("raft",),
    frames=2,
)
