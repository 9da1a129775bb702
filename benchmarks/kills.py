"""Kills `train.py` at random, again and again, and compares the weights at the end with those of an unbroken run.

    python -m benchmarks.kills [KILLS] [SEED]

A seventh of the kills fall into the start of the program, the others a moment after a step, while a checkpoint is
written. Takes about ten seconds a kill on two free cores.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests import processes, train_runs


def main(kills=25, seed=0):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        source = train_runs.write_clips(folder / "clips", 10)
        steps = 8 * kills
        unbroken, broken = (train_runs.train(source, folder / name, steps=steps) for name in ("unbroken", "broken"))
        began = time.perf_counter()
        processes.finish(processes.start(unbroken))
        print(f"unbroken: {steps} steps in {time.perf_counter() - began:.0f} s", flush=True)
        counts = processes.kill_at_random(
            broken, kills, "training:", np.random.default_rng(seed), most=6, startup=20.0, step=0.4
        )
        output = processes.finish(processes.start(broken))
        (begin,) = [line for line in output.splitlines() if line.startswith("going on")]
        print(
            f"killed {kills} times, {sum(count == 0 for count in counts)} of them at the start; the last part: {begin}"
        )
        ours, theirs = (train_runs.trained(folder / name) for name in ("broken", "unbroken"))
        assert ours.keys() == theirs.keys()
        differ = [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()]
        print(f"{len(ours)} arrays of trained weights: {len(differ)} differ from the unbroken run's in some bit")
        sys.exit(bool(differ))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
