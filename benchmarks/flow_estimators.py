"""Estimated against true optical flow: `python -m benchmarks.flow_estimators [CLIPS]` prints a table of the estimators.

Over held-out clips as `evaluate.py` takes them, 200 by default: endpoint error, correlations of FlowScore and
WarpingError with those by the true flow (95 % intervals by the bootstrap over clips), mean WarpingError, share of
motions named rightly, and milliseconds a pair of frames on one core, of these clips and of one enlarged to 512x512.
"""

import argparse
import time

import cv2
import numpy as np
from tqdm import tqdm

from i2v_jax import commands, media
from i2v_jax.cli.evaluate import DEFAULT
from i2v_jax.data.small_world.drawing import RenderedClip
from i2v_jax.errors import InputError
from i2v_jax.evaluation import direction, flow, metrics, sets

LARGE = 512  # pixels
LEAST = 10  # clips, for a correlation with an interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="?", type=int, default=200)
    count = parser.parse_args().clips
    if count < LEAST:
        raise InputError(f"{count} clips: wanted {LEAST} or more, for a correlation with an interval.")
    cv2.setNumThreads(1)
    config = commands.load_config(DEFAULT)
    numbers = range(config.first_clip, config.first_clip + count)
    examples = sets.small_world(config.split, numbers, config.frames, config.height)
    clips = [example.truth for example in examples]
    true = scores(clips, [(clip.flow, clip.visible) for clip in clips])
    right = np.mean([accuracy(clip.flow, clip) for clip in clips])
    size = f"{config.height}x{config.width}"
    print(f"{count} clips ({config.split}, from number {config.first_clip}) of {config.frames} frames of {size}")
    print(
        "| flow | error (pixels) | FlowScore | WarpingError | its mean | motions right "
        f"| ms at {size} | ms at {LARGE}x{LARGE} |\n|---|---|---|---|---|---|---|---|"
    )
    print(f"| true | 0 | 1 | 1 | {true[1].mean():.3f} | {right:.3f} | | |", flush=True)
    for name, estimate in flow.ESTIMATORS.items():
        start = time.process_time()
        flows = [flow.estimated(clip.video, estimate) for clip in tqdm(clips, desc=name, unit="clip")]
        pair = (time.process_time() - start) / sum(2 * len(clip.flow) for clip in clips)
        large = np.stack([media.fit_picture(frame, LARGE, LARGE, "stretch") for frame in clips[0].video[:2]])
        start = time.process_time()
        estimate(large)
        of_large = time.process_time() - start
        errors = [np.linalg.norm(ahead - clip.flow, axis=-1).mean() for (ahead, _), clip in zip(flows, clips)]
        error, found = np.mean(errors), scores(clips, flows)
        of_flow, of_warping = (correlation(a, b) for a, b in zip(found, true))
        right = np.mean([accuracy(ahead, clip) for (ahead, _), clip in zip(flows, clips)])
        print(
            f"| {name} | {error:.3f} | {of_flow} | {of_warping} | {found[1].mean():.3f} | {right:.3f} "
            f"| {1000 * pair:.0f} | {1000 * of_large:.0f} |",
            flush=True,
        )


def scores(clips, flows) -> np.ndarray:
    """FlowScore and WarpingError of each clip, [2 clips]."""
    of_clips = [
        (metrics.flow_score(ahead), metrics.warping_error(clip.video, ahead, visible))
        for clip, (ahead, visible) in zip(clips, flows)
    ]
    return np.transpose(of_clips)


def correlation(one: np.ndarray, other: np.ndarray, resamples: int = 10_000) -> str:
    drawn = np.random.default_rng(0).integers(len(one), size=(resamples, len(one)))
    both = np.stack([one, other])
    low, high = np.percentile([np.corrcoef(both[:, some])[0, 1] for some in drawn], (2.5, 97.5))
    return f"{np.corrcoef(both)[0, 1]:.3f} [{low:.3f}, {high:.3f}]"


def accuracy(flows: flow.Flows, clip: RenderedClip) -> float:
    return direction.direction_accuracy(direction.motions_by_flow(flows, clip.masks[:, 0], clip.motions))


if __name__ == "__main__":
    commands.run(main)
