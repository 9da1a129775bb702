"""The table of docs/pods.md: what the shipped configs need on TPU slices, planned by `i2v_jax.plan`.

    python -m benchmarks.pods [--only v5e]

Prints Markdown. Two hours of compilation on two cores, minutes where `.cache/jax/plans` remembers the programs.
"""

import argparse
from pathlib import Path

import jax

from i2v_jax import commands, plan

CACHE = Path(".cache/jax/plans")
CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "train"
SLICES = {"v5e:4x4": 16, "v5e:16x16": 256, "v5p:4x4x8": 128, "v6e:16x16": 256}
CLIPS = {"sd15_stage1": {"v5e": 2, "v5p": 8, "v6e": 4}, "sd15_stage2": {"v5e": 1, "v5p": 4, "v6e": 2}}  # a chip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="slices whose name holds this")
    only = parser.parse_args().only
    jax.config.update("jax_platforms", "cpu")
    for title, columns, make, row in (
        ("training", TRAINING, plan.training_program, training_row),
        ("sampling", SAMPLING, plan.sampling_program, sampling_row),
    ):
        print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
        for name, clips in CLIPS.items():
            for topology, chips in SLICES.items():
                if only not in topology:
                    continue
                chip, devices = plan.slice_of(topology)
                batch = clips[topology[:3]] * chips
                config = commands.load_config(CONFIGS / f"{name}.py")
                config.batch = batch
                figures = plan.measure(make(config, devices, stored=True), topology, CACHE)
                print(f"| {' | '.join((name, topology, *row(figures, chip, config)))} |", flush=True)


TRAINING = (
    *("config", "slice", "clips a step", "memory of a chip", "work", "traffic", "sent", "a step, at least"),
    *("of peak", "a clip, on a chip", "clips/s", "10 million clips"),
)
SAMPLING = ("config", "slice", "videos at once", "memory of a chip", "work", "traffic", "a step, at least", "videos/s")


def training_row(figures: plan.Figures, chip: plan.Chip, config) -> tuple[str, ...]:
    memory = f"{figures.memory / 1e9:.1f} of {chip.memory / 1e9:.1f} GB"
    if not figures.fits(chip):
        return f"{figures.clips:,}", memory, *["does not fit"] * 8
    times = figures.times(chip)
    step = max(times.values())
    return (
        f"{figures.clips:,}",
        memory,
        f"{figures.flops / 1e12:.1f} TFLOP",
        plan.short(figures.bytes, "B"),
        plan.short(sum(put for put, _ in figures.sent.values()), "B"),
        f"{step * 1e3:.0f} ms ({max(times, key=times.get)})",
        f"{times['arithmetic'] / step:.0%}",
        f"{step * 1e3 * figures.devices / figures.clips:.0f} ms",
        f"{figures.clips / step:,.0f}",
        f"{plan.CLIPS / figures.clips * step / 86400:.2f} days",
    )


def sampling_row(figures: plan.Figures, chip: plan.Chip, config) -> tuple[str, ...]:
    memory = f"{figures.memory / 1e9:.1f} of {chip.memory / 1e9:.1f} GB"
    if not figures.fits(chip):
        return f"{figures.clips:,}", memory, *["does not fit"] * 4
    times = figures.times(chip)
    step = max(times.values())
    return (
        f"{figures.clips:,}",
        memory,
        f"{figures.flops / 1e12:.1f} TFLOP",
        plan.short(figures.bytes, "B"),
        f"{step * 1e3:.0f} ms ({max(times, key=times.get)})",
        f"{figures.clips / step / config.samples.steps:.1f}",
    )


if __name__ == "__main__":
    main()
