"""WarpingError by RAFT: EvalCrafter's, and the same with RAFT given the pixels that it was trained on."""

import numpy as np

from i2v_jax.evaluation.metric import Case, Metric, Networks
from i2v_jax.evaluation.raft_pairs import halved, padded, warping_errors

SOURCE = (
    "EvalCrafter: halved frames of 0 to 1, RAFT forward and backward, 20 iterations, occluded pixels and edges of "
    "motion left out, squares summed over the channels. The I2V-Adapter paper gives no unit (7 to 25)."
)


def of_scale(scale: float):
    """Returns what measures with RAFT given pixels of 0 to `scale`."""

    def measure(case: Case, networks: Networks) -> float:
        halves = [halved(frame[None].astype(np.float32) / 255) for frame in case.video]  # one at a time, for memory
        frames = padded(np.concatenate(halves))
        return float(np.mean(warping_errors(frames, networks, scale)))

    return measure


METRIC = Metric(
    "raft_warping_error",
    "WarpingError",
    "squares of 0 to 1",
    "lower",
    4,
    f"{SOURCE} RAFT is given 0 to 255, as it was trained.",
    of_scale(255),
    networks=("raft",),
    frames=2,
)
EVALCRAFTER = Metric(
    "evalcrafter_warping_error",
    "WarpingError of EvalCrafter",
    "squares of 0 to 1",
    "lower",
    4,
    f"{SOURCE} As in its code, RAFT is given 0 to 1 where it wants 0 to 255, so that it sees next to nothing.",
    of_scale(1),
    networks=("raft",),
    frames=2,
)
