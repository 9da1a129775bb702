"""Estimated against true optical flow: `python -m benchmarks.flow_estimators [CLIPS]` prints a table of the estimators.

Over held-out clips of the small world, 100 by default: endpoint error, correlations of FlowScore and WarpingError with
those by the true flow, share of motions told rightly, and milliseconds a pair of frames on one core.
"""

import sys
import time

import cv2
import numpy as np

from i2v_jax.data import small_world
from i2v_jax.evaluation import flow, metrics, motion


def main(count: int) -> None:
    cv2.setNumThreads(1)
    clips = [small_world.make(index, "held_out") for index in range(count)]
    true = [(metrics.flow_score(it.flow), metrics.warping_error(it.video, it.flow, it.visible)) for it in clips]
    right = np.mean([accuracy(it.flow, it) for it in clips])
    print("| flow | error (pixels) | FlowScore | WarpingError | motions right | ms |\n|---|---|---|---|---|---|")
    print(f"| true | 0 | 1 | 1 | {right:.3f} | |")
    for name, estimate in flow.ESTIMATORS.items():
        error, right, estimated, seconds = [], [], [], 0.0
        for it in clips:
            start = time.process_time()
            ahead, back = flow.forward(it.video, estimate), flow.backward(it.video, estimate)
            seconds += time.process_time() - start
            error.append(np.linalg.norm(ahead - it.flow, axis=-1).mean())
            warping = metrics.warping_error(it.video, ahead, flow.visible(ahead, back))
            estimated.append((metrics.flow_score(ahead), warping))
            right.append(accuracy(ahead, it))
        of_flow, of_warping = (np.corrcoef(a, b)[0, 1] for a, b in zip(np.transpose(estimated), np.transpose(true)))
        pair = 1000 * seconds / sum(2 * len(it.flow) for it in clips)
        print(
            f"| {name} | {np.mean(error):.3f} | {of_flow:.4f} | {of_warping:.4f} | {np.mean(right):.3f} | {pair:.1f} |",
            flush=True,
        )


def accuracy(flows: flow.Flows, clip: small_world.Clip) -> float:
    return motion.direction_accuracy(motion.told_and_seen(flows, clip.masks[:, 0], clip.motions))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
