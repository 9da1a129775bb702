"""The table of docs/pods.md: what the shipped configs need on TPU slices, planned by `i2v_jax.planning.plan`.

    python -m benchmarks.pods [--only v5e]

Prints Markdown. Two hours of compilation on two cores, minutes where `.cache/jax/plans` remembers the programs.
"""

import argparse
from pathlib import Path

import jax

from i2v_jax import commands
from i2v_jax.planning import plan

CACHE = Path(".cache/jax/plans")
CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "train"
SLICES = {"v5e:4x4": 16, "v5e:16x16": 256, "v5p:4x4x8": 128, "v6e:16x16": 256}
CLIPS = {"sd15_stage1": {"v5e": 2, "v5p": 8, "v6e": 4}, "sd15_stage2": {"v5e": 1, "v5p": 4, "v6e": 2}}  # a chip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="slices whose name holds this")
    only = parser.parse_args().only
    slices = {topology: chips for topology, chips in SLICES.items() if only in topology}
    if not slices:
        parser.error(f"--only={only}: no slice of {', '.join(SLICES)} holds this")
    jax.config.update("jax_platforms", "cpu")
    for title, columns, make in (
        ("training", TRAINING, plan.training_program),
        ("sampling", SAMPLING, plan.sampling_program),
    ):
        print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
        for name, clips in CLIPS.items():
            for topology, chips in slices.items():
                chip, devices = plan.slice_of(topology)
                batch = clips[topology[:3]] * chips
                config = commands.load_config(CONFIGS / f"{name}.py")
                config.batch = batch
                figures = plan.measure(make(config, devices, stored=True), topology, CACHE)
                known = {"config": name, "slice": topology} | cells(figures, chip, config.samples.steps)
                print(f"| {' | '.join(known.get(column, 'does not fit') for column in columns)} |", flush=True)


# columns of each table, from those of `cells`
COMMON = (
    "config",
    "slice",
    "clips at once",
    "memory of a chip",
    "work",
    "traffic",
    "sent",
    "a step, at least",
    "of peak",
)
TRAINING = (*COMMON, "a clip, on a chip", "clips/s", "10 million clips")
SAMPLING = (*COMMON, "videos/s")


def cells(figures: plan.Figures, chip: plan.Chip, sampling_steps: int) -> dict[str, str]:
    """What the tables show of a program; where it does not fit, only that."""
    memory = f"{figures.memory / 1e9:.1f} of {chip.memory / 1e9:.1f} GB"
    known = {"clips at once": f"{figures.clips:,}", "memory of a chip": memory}
    if not figures.fits(chip):
        return known
    times = figures.times(chip)
    step = max(times.values())
    return known | {
        "work": f"{figures.flops / 1e12:.1f} TFLOP",
        "traffic": plan.short(figures.bytes, "B"),
        "sent": plan.short(sum(put for put, _ in figures.sent.values()), "B"),
        "a step, at least": f"{step * 1e3:.0f} ms ({max(times, key=times.get)})",
        "of peak": f"{times['arithmetic'] / step:.0%}",
        "a clip, on a chip": f"{step * 1e3 * figures.devices / figures.clips:.0f} ms",
        "clips/s": f"{figures.clips / step:,.0f}",
        "10 million clips": f"{plan.CLIPS / figures.clips * step / 86400:.2f} days",
        "videos/s": f"{figures.clips / step / sampling_steps:.1f}",
    }


if __name__ == "__main__":
    main()
