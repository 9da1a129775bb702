"""The table of docs/pods.md: what the shipped configs need on TPU slices, planned by `i2v_jax.planning.plan`.

    python -m benchmarks.pods [--only v5e] [--config sdxl]

Prints Markdown. Some minutes of two cores a row, none where `~/.cache/i2v-jax/plans` remembers the programs.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import jax

from i2v_jax import commands
from i2v_jax.devices.compile_cache import cache_folder
from i2v_jax.planning import plan
from i2v_jax.planning.compiling import in_a_process

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "train"
SLICES = {"v5e:4x4": 16, "v5e:16x16": 256, "v5p:4x4x8": 128, "v6e:16x16": 256}
CLIPS = {  # a chip
    "sd15_stage1": {"v5e": 2, "v5p": 8, "v6e": 4},
    "sd15_stage2": {"v5e": 1, "v5p": 4, "v6e": 2},
    "sdxl": {"v5e": 1, "v5p": 4, "v6e": 2},
    "dynamicrafter": {"v5e": 1, "v5p": 2, "v6e": 1},
}
OF_VIDEOS = ("dynamicrafter",)  # trains its image projection too, so that no clips are stored
SAMPLED = {"sd15_stage2": (512,), "sdxl": (512, 1024), "dynamicrafter": (None,)}  # sides; None: as in the config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="slices whose name holds this")
    parser.add_argument("--config", default="", help="configs whose name holds this")
    arguments = parser.parse_args()
    slices = {topology: chips for topology, chips in SLICES.items() if arguments.only in topology}
    names = [name for name in CLIPS if arguments.config in name]
    if not slices or not names:
        parser.error(f"known slices: {', '.join(SLICES)}; known configs: {', '.join(CLIPS)}")
    jax.config.update("jax_platforms", "cpu")
    trained = [(name, None) for name in names]
    sampled = [(name, side) for name in names for side in SAMPLED.get(name, ())]
    for title, columns, make, rows in (
        ("training", TRAINING, plan.training_program, trained),
        ("sampling", SAMPLING, plan.sampling_program, sampled),
    ):
        print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
        for name, side in rows:
            for topology, chips in slices.items():
                known = row(name, side, topology, chips, make)
                print(f"| {' | '.join(known.get(column, 'does not fit') for column in columns)} |", flush=True)


def row(name: str, side: int | None, topology: str, chips: int, make: Callable) -> dict[str, str]:
    """The cells of a config's program on a slice, by column; `side` of the videos where that is not the config's."""
    chip, _ = plan.slice_of(topology)
    config = commands.load_config(CONFIGS / f"{name}.py")
    config.batch = CLIPS[name][topology[:3]] * chips
    if side:
        config.data.height = config.data.width = side
    cache = cache_folder()
    stored = name not in OF_VIDEOS
    figures = in_a_process(plan.figures_of, make, config, topology, stored, cache and cache / "plans")
    label = f"{name}, {side}x{side}" if side else name
    return {"config": label, "slice": topology} | cells(figures, chip, config.samples.steps)


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
