"""The metrics that any video can be measured by, a file each."""

from collections.abc import Mapping, Sequence

from i2v_jax.errors import InputError, nearest
from i2v_jax.evaluation.measures import (
    against_truth,
    clip_score,
    clip_temp,
    clip_temp_neighbours,
    consistency,
    dover,
    dynamic_degree,
    fvd,
    raft_flow_score,
    raft_warping_error,
    temporal_flickering,
)
from i2v_jax.evaluation.metric import Metric

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        dover.TECHNICAL,
        clip_temp.METRIC,
        raft_flow_score.METRIC,
        raft_warping_error.METRIC,
        dover.AESTHETIC,
        dover.OVERALL,
        dover.VQA_A,
        dover.VQA_T,
        clip_temp_neighbours.METRIC,
        clip_score.METRIC,
        raft_warping_error.EVALCRAFTER,
        temporal_flickering.METRIC,
        dynamic_degree.METRIC,
        consistency.SUBJECT,
        consistency.BACKGROUND,
        against_truth.PSNR,
        against_truth.SSIM,
        against_truth.LPIPS,
        fvd.METRIC,
    )
}
"""Name -> metric; the paper's four first."""

PAPERS = ("dover_technical", "clip_temp", "raft_flow_score", "raft_warping_error")
"""Columns of the I2V-Adapter paper's tables."""


def chosen(names: Sequence[str]) -> list[Metric]:
    """Returns metrics by their names, "all" being all of them.

    Raises:
      InputError: none, one that there is not, or one twice.
    """
    if tuple(names) == ("all",):
        return list(METRICS.values())
    for name in names:
        if name not in METRICS:
            raise InputError(f"metrics: no metric {name!r}; known: {', '.join(METRICS)}.{nearest(str(name), METRICS)}")
    if not names or len(set(names)) < len(names):
        raise InputError(f"metrics={tuple(names)}: wanted one or more, each once.")
    return [METRICS[name] for name in names]
