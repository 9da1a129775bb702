"""Memory of measuring long videos: `python -m benchmarks.measure_memory [--frames 16 64] [--size 512] [--raft small]`.

For each number of frames, `evaluate.py` measures a folder with one video of SIZE x SIZE in a process of its own, with
random weights of the published sizes of RAFT, DOVER and CLIP ViT-B/32; peak resident memory of each, and the most over
the least. Default metrics: RAFT's FlowScore and WarpingError, DOVER's technical and aesthetic score, CLIP's likeness of
neighbouring frames, and flickering.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from i2v_jax import commands, media
from i2v_jax.errors import InputError
from i2v_jax.models.clip import SD15_TEXT, CLIPVisionConfig
from i2v_jax.models.dover import DOVERConfig
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.raft import LARGE, SMALL
from i2v_jax.weights.save import save_own
from i2v_jax.weights.tensors import Entry, Tensors

BAR = 1.2
RAFTS = {"large": LARGE, "small": SMALL}
TEXT = dataclasses.replace(SD15_TEXT, width=512, mlp_width=2048, num_heads=8, projection_dim=512)
VISION = CLIPVisionConfig(width=768, mlp_width=3072, num_layers=12, num_heads=12, projection_dim=512, patch_size=32)
METRICS = (
    "raft_flow_score",
    "raft_warping_error",
    "dover_technical",
    "dover_aesthetic",
    "clip_temp_neighbours",
    "temporal_flickering",
)


def random_weights(config) -> Tensors:
    """Weights small enough that no number overflows."""

    def entry(leaf) -> Entry:
        return Entry(
            leaf.shape, np.dtype("f4"), lambda: np.random.default_rng(0).normal(0, 0.02, leaf.shape).astype("f4")
        )

    return Tensors({path: entry(leaf) for path, leaf in parameter_shapes(config).items()}, "random weights")


def write_weights(folder: Path, raft: str) -> list[str]:
    """Writes files of weights; returns the flags that name them."""
    files = {
        "raft": {"raft": RAFTS[raft]},
        "dover": {"dover": DOVERConfig()},
        "clip": {"text_encoder": TEXT, "image_encoder": VISION},
    }
    for name, configs in files.items():
        tensors = {component: random_weights(config) for component, config in configs.items()}
        save_own(folder / f"{name}.safetensors", tensors, configs)
    return [f"--config.metric_weights.{name}={folder}/{name}.safetensors" for name in files]


def write_video(folder: Path, frames: int, size: int) -> None:
    """Writes a texture that drifts."""
    grid = np.random.default_rng(0).integers(0, 256, (size // 16 + 1, size // 16 + 1, 3), np.uint8)
    texture = media.fit_picture(grid, 2 * size, 2 * size, "stretch")
    video = np.stack([texture[t : t + size, 2 * t : 2 * t + size] for t in range(frames)])
    media.write_video(folder / "drift.mp4", video, 8)


def measured(command: list[str]) -> tuple[int, float]:
    """Runs a command; returns the most resident bytes it had, and its seconds."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{said}")
    return usage.ru_maxrss * 1024, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--size", type=int, default=512, help="height and width, pixels")
    parser.add_argument("--raft", choices=RAFTS, default="small")
    parser.add_argument("--metrics", nargs="+", default=METRICS)
    args = parser.parse_args()
    if min(args.frames) < 2 or args.size < 2 * max(args.frames):
        raise InputError(f"--frames={args.frames} --size={args.size}: wanted 2 frames or more, and pixels for each.")
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(Path(folder), args.raft)
        for frames in args.frames:
            videos = Path(folder, f"of_{frames}")
            videos.mkdir()
            write_video(videos, frames, args.size)
            command = [
                sys.executable,
                "evaluate.py",
                "--config.set=videos",
                f"--config.runs=('drift: videos={videos}',)",
            ]
            command += [f"--config.metrics={tuple(args.metrics)}", f"--config.output={folder}/out_{frames}", *weights]
            peaks[frames], seconds = measured(command)
            size = f"{frames}x{args.size}x{args.size}"
            print(f"{size}: {peaks[frames] / 1e9:.3f} GB at the peak, {seconds:.0f} s", flush=True)
    ratio = max(peaks.values()) / min(peaks.values())
    print(f"most over least: {ratio:.3f} (bar {BAR}); RAFT {args.raft}; {', '.join(args.metrics)}")
    sys.exit(ratio > BAR)


if __name__ == "__main__":
    commands.run(main)
