"""What it took to train the bundled model, stage by stage, and the first-frame adapter's share of it.

    python -m benchmarks.small_world_cost [RUNS]

Reads what `make small-world` has left in RUNS (runs/small_world). Minutes are those of the steps, by the curves: what a
stopped run did again counts once, and loading and compiling do not count.
"""

import math
import sys
from pathlib import Path

from safetensors import safe_open

from assets.make_small_world import RUNS, STAGES
from i2v_jax import commands
from i2v_jax.errors import InputError
from tests import train_runs


def main() -> None:
    runs = Path(sys.argv[1] if sys.argv[1:] else RUNS)
    missing = [stage for stage in STAGES if not (runs / stage / "trained.safetensors").exists()]
    if missing:
        raise InputError(f"{runs}: no trained weights of {', '.join(missing)}; `make small-world` trains them.")
    unet, minutes = {}, {}
    print("| stage | parameters trained | steps | minutes |\n|---|---:|---:|---:|")
    for stage in STAGES:
        folder = runs / stage
        with safe_open(folder / "trained.safetensors", "np") as held:
            sizes = {path: math.prod(held.get_slice(path).get_shape()) for path in held.keys()}
        unet |= {path: size for path, size in sizes.items() if path.startswith("unet/")}
        seconds = train_runs.curves(folder)["training/step_seconds"]
        ends = sorted(seconds)
        minutes[stage] = sum((end - start) * seconds[end] for start, end in zip([0, *ends], ends)) / 60
        print(f"| {stage} | {sum(sizes.values()):,} | {ends[-1]:,} | {minutes[stage]:.1f} |")
    adapter = sum(size for path, size in unet.items() if "/first_frame/" in path)
    base = sum(unet.values()) - adapter
    print(f"adapter: {adapter:,} parameters, {adapter / base:.2%} of the UNet's {base:,};")
    print(f"{minutes['adapter'] / sum(minutes.values()):.1%} of {sum(minutes.values()):.0f} minutes of training")


if __name__ == "__main__":
    commands.run(main)
