"""What it takes to train the bundled model, stage by stage, and the first-frame adapter's share of it.

    python -m benchmarks.small_world_cost [RUNS]

Runs 20 steps of each stage, from the bundled model on, and multiplies the time of the last 10 by the stage's steps.
With RUNS, where `make small-world` has left its runs (runs/small_world), minutes are what they took, by their curves:
what a stopped run did again counts once. Loading and compiling do not count. First, what it takes to draw a clip.
"""

import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors import safe_open

from assets.make_small_world import STAGES
from i2v_jax import commands
from i2v_jax.data.small_world.drawing import render
from i2v_jax.data.small_world.scene import KINDS, draw
from i2v_jax.errors import InputError
from tests import train_runs
from tests.processes import ROOT

CONFIG = ROOT / "configs" / "train" / "small_world.py"


def run(stage: str, folder: Path) -> None:
    """Runs a few steps of a stage."""
    changes = dict(folder=folder, steps=20, compilation_cache=ROOT / ".cache" / "jax")
    changes |= {"log.every_steps": 10, "optimizer.warmup_steps": 10, "checkpoints.every_steps": 20}
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    command = [sys.executable, "train.py", f"--config={CONFIG}:bundled_{stage}", *flags]
    if code := subprocess.run(command, cwd=ROOT).returncode:
        sys.exit(code)


def report(runs: Path, measured: bool) -> None:
    """Prints the table of the runs in a folder; of measured ones, for as many steps as the config says."""
    unet, minutes = {}, {}
    print("| stage | parameters trained | steps | minutes |\n|---|---:|---:|---:|")
    for stage in STAGES:
        folder = runs / stage
        with safe_open(folder / "trained.safetensors", "np") as file:
            sizes = {path: math.prod(file.get_slice(path).get_shape()) for path in file.keys()}
        unet |= {path: size for path, size in sizes.items() if path.startswith("unet/")}
        seconds = train_runs.curves(folder)["training/step_seconds"]
        if measured:
            seconds = {commands.load_config(f"{CONFIG}:{stage}").steps: seconds[max(seconds)]}
        ends = sorted(seconds)
        minutes[stage] = sum((end - start) * seconds[end] for start, end in zip([0, *ends], ends)) / 60
        print(f"| {stage} | {sum(sizes.values()):,} | {ends[-1]:,} | {minutes[stage]:.1f} |")
    adapter = sum(size for path, size in unet.items() if "/first_frame/" in path)
    base = sum(unet.values()) - adapter
    print(f"adapter: {adapter:,} parameters, {adapter / base:.2%} of the UNet's {base:,};")
    print(f"{minutes['adapter'] / sum(minutes.values()):.1%} of {sum(minutes.values()):.0f} minutes of training")


def report_rendering(frames: int = 16, size: int = 64) -> None:
    """Prints what it takes to draw a clip, of one processor: the best of three, as others may be at work on it."""
    scenes, times, seconds = [draw(index) for index in range(len(KINDS))], np.linspace(0, 1, frames), []
    for _ in range(3):
        start = time.process_time()
        for scene in scenes:
            render(scene, times, size)
        seconds.append((time.process_time() - start) / len(scenes))
    print(f"drawing a clip of {frames}x{size}x{size}: {1000 * min(seconds):.0f} ms")


def main() -> None:
    report_rendering()
    if sys.argv[1:]:
        runs = Path(sys.argv[1])
        missing = [stage for stage in STAGES if not (runs / stage / "trained.safetensors").exists()]
        if missing:
            raise InputError(f"{runs}: no trained weights of {', '.join(missing)}; `make small-world` trains them.")
        return report(runs, measured=False)
    with tempfile.TemporaryDirectory() as folder:
        for stage in STAGES:
            run(stage, Path(folder) / stage)
        report(Path(folder), measured=True)


if __name__ == "__main__":
    commands.run(main)
