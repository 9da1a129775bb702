"""Estimated against true optical flow: `python -m benchmarks.flow_estimators [CLIPS] [--raft FILE]` prints two tables.

Over held-out clips as `evaluate.py` takes them, 200 by default. First: endpoint error, of all pixels and of those that
move, correlation of FlowScore with that by the true flow, mean WarpingError, share of motions named rightly, and
milliseconds a pair of frames on one core, of these clips and of one enlarged to 512x512. Second: correlations of
WarpingError with that by the true flow, over the true clips and over the same ones damaged, each in one of four ways at
a strength of its own: noise, flicker, blur, JPEG, drawn for each frame, so that the true flow stays true. Pearson's and
Spearman's, with 95 % intervals by the bootstrap over clips.
"""

import argparse
import io
import time

import cv2
import numpy as np
from PIL import Image
from scipy.stats import rankdata
from tqdm import tqdm

from i2v_jax import commands, media
from i2v_jax.cli.evaluate import DEFAULT
from i2v_jax.data.small_world.drawing import RenderedClip
from i2v_jax.errors import InputError
from i2v_jax.evaluation import direction, flow, metrics, sets
from i2v_jax.evaluation.networks import Networks

LARGE = 512  # pixels
LEAST = 10  # clips, for a correlation with an interval
MOVING = 0.25  # pixels per frame, above which a pixel moves
DAMAGES = {  # what is done to frames -> its least and its greatest strength
    "noise": (2, 16),  # deviation, of 255
    "flicker": (0.01, 0.15),  # deviation of a frame's brightness
    "blur": (0.3, 2),  # the most, of a Gaussian, pixels
    "jpeg": (10, 80),  # quality
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="?", type=int, default=200)
    parser.add_argument("--raft", default="", help="weights of a RAFT, to be measured too")
    parser.add_argument("--only", nargs="+", default=[], help="estimators; default: all")
    args = parser.parse_args()
    if args.clips < LEAST:
        raise InputError(f"{args.clips} clips: wanted {LEAST} or more, for a correlation with an interval.")
    cv2.setNumThreads(1)
    config = commands.load_config(DEFAULT)
    networks = Networks(dict(raft=args.raft))
    names = args.only or [*flow.ESTIMATORS, *(["raft"] if args.raft else [])]
    estimators = {name: flow.estimator(name, networks) for name in names}
    numbers = range(config.first_clip, config.first_clip + args.clips)
    examples = sets.small_world(config.split, numbers, config.frames, config.height)
    clips = [example.truth for example in examples]
    spoilt = [damaged(clip.video, number) for number, clip in zip(numbers, clips)]
    of_truth = [(clip.flow, clip.visible) for clip in clips]
    true = scores([clip.video for clip in clips], of_truth)
    true_spoilt = scores(spoilt, of_truth)[1]
    right = np.mean([accuracy(clip.flow, clip) for clip in clips])
    size = f"{config.height}x{config.width}"
    print(f"{args.clips} clips ({config.split}, from number {config.first_clip}) of {config.frames} frames of {size}")
    print(
        "| flow | error (pixels) | of moving pixels | FlowScore | mean WarpingError | motions right "
        f"| ms at {size} | ms at {LARGE}x{LARGE} |\n|---|---|---|---|---|---|---|---|"
    )
    print(f"| true | 0 | 0 | 1 | {true[1].mean():.3f} | {right:.3f} | | |", flush=True)
    rows = []
    for name, estimate in estimators.items():
        estimate(clips[0].video)  # compiled
        start = time.process_time()
        flows = [flow.estimated(clip.video, estimate) for clip in tqdm(clips, desc=name, unit="clip")]
        pair = (time.process_time() - start) / sum(2 * len(clip.flow) for clip in clips)
        found = scores([clip.video for clip in clips], flows)
        right = np.mean([accuracy(ahead, clip) for (ahead, _), clip in zip(flows, clips)])
        print(
            f"| {name} | {' | '.join(f'{error:.3f}' for error in errors(flows, clips))} "
            f"| {correlation(found[0], true[0])} | {found[1].mean():.3f} | {right:.3f} "
            f"| {1000 * pair:.0f} | {of_large(clips[0].video[:2], estimate):.0f} |",
            flush=True,
        )
        bar = tqdm(spoilt, desc=f"{name}, damaged", unit="clip")
        of_spoilt = scores(spoilt, [flow.estimated(video, estimate) for video in bar])[1]
        pairs = (found[1], true[1]), (of_spoilt, true_spoilt)
        rows.append([name, *(kind(*pair) for pair in pairs for kind in (correlation, rank_correlation))])
        rows[-1].append(f"{of_spoilt.mean():.2f}")
    print("\n| WarpingError by | true clips, r | rho | damaged clips, r | rho | mean |\n|---|---|---|---|---|---|")
    print(f"| true | 1 | 1 | 1 | 1 | {true_spoilt.mean():.2f} |")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


def damaged(video: flow.Video, number: int) -> flow.Video:
    """A video with each frame damaged anew, in the way and at the strength of its number."""
    rng, kind = np.random.default_rng(number), list(DAMAGES)[number % len(DAMAGES)]
    strength = np.exp(rng.uniform(*np.log(DAMAGES[kind])))
    return np.stack([damaged_frame(frame, kind, strength, rng) for frame in video])


def damaged_frame(frame: media.Picture, kind: str, strength: float, rng: np.random.Generator) -> media.Picture:
    if kind == "jpeg":
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=round(strength))
        return np.asarray(Image.open(file))
    if kind == "blur":
        return cv2.GaussianBlur(frame, (0, 0), rng.uniform(0.1, strength))
    if kind == "noise":
        changed = frame + rng.normal(0, strength, frame.shape)
    else:
        changed = frame * (1 + rng.normal(0, strength))
    return np.clip(np.round(changed), 0, 255).astype(np.uint8)


def errors(flows, clips) -> tuple[float, float]:
    """Mean endpoint error of all pixels and of those that move, pixels; means over clips."""
    of_clips = []
    for (ahead, _), clip in zip(flows, clips):
        error, moving = (np.linalg.norm(field, axis=-1) for field in (ahead - clip.flow, clip.flow))
        of_clips.append((error.mean(), error[moving > MOVING].mean()))
    return tuple(np.mean(of_clips, 0))


def of_large(pair: flow.Video, estimate: flow.Estimator) -> float:
    """Milliseconds of one pair of frames, enlarged."""
    large = np.stack([media.fit_picture(frame, LARGE, LARGE, "stretch") for frame in pair])
    estimate(large)
    start = time.process_time()
    estimate(large)
    return 1000 * (time.process_time() - start)


def scores(videos, flows) -> np.ndarray:
    """FlowScore and WarpingError of each video, [2 videos]."""
    of_videos = [
        (metrics.flow_score(ahead), metrics.warping_error(video, ahead, visible))
        for video, (ahead, visible) in zip(videos, flows)
    ]
    return np.transpose(of_videos)


def correlation(one: np.ndarray, other: np.ndarray, resamples: int = 10_000) -> str:
    """Pearson's, with its interval."""
    drawn = np.random.default_rng(0).integers(len(one), size=(resamples, len(one)))
    both = np.stack([one, other])
    low, high = np.percentile([np.corrcoef(both[:, some])[0, 1] for some in drawn], (2.5, 97.5))
    return f"{np.corrcoef(both)[0, 1]:.3f} [{low:.3f}, {high:.3f}]"


def rank_correlation(one: np.ndarray, other: np.ndarray) -> str:
    """Spearman's, with its interval; ranks are those within all clips."""
    return correlation(rankdata(one), rankdata(other))


def accuracy(flows: flow.Flows, clip: RenderedClip) -> float:
    return direction.direction_accuracy(direction.motions_by_flow(flows, clip.masks[:, 0], clip.motions))


if __name__ == "__main__":
    commands.run(main)
