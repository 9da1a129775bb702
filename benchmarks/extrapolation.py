"""EDG's three stages on the small world: how much moves, whether as told, and how true pictures stay.

    python train.py --config configs/train/text_in_time.py --config.batch=4 --config.steps=450
    python train.py --config configs/train/half_speed.py
    python -m benchmarks.extrapolation [--stage1 FILE] [--tuned FILE] [--strength S] [--switch T ...]

Stage 1 is the text-in-time adapter. `tuned` are motion modules after a fine-tuning that slows things; stage 2 goes from
the bundled ones away from these (`convert merge edg`), by `--strength`, the recipe's dyn_alpha times dyn_beta; stage 3
samples with that model above timestep `--switch`, and with the recipe's consistent one below; or the model's own.

Held-out first frames are animated by captions that tell every motion the other way, which the bundled model heeds
least. Prints a table and what each row has more than those above it, then sweeps strength (through the whole run) and
switching time on other clips, without stage 1; writes `OUTPUT.png` with both sweeps. Flow is by DIS.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.novel_motions import FRAMES, SIZE, animate, load
from convert.__main__ import main as convert
from i2v_jax import commands, media
from i2v_jax.cli.evaluate import measure
from i2v_jax.evaluation import flow, metrics, report, sets
from i2v_jax.families import over_time
from i2v_jax.families.weights import Weights
from i2v_jax.sampling.presets import preset
from i2v_jax.weights.storage.open import open_tensors

COLUMNS = ("flow_score", "direction", "rendered_direction", "psnr", "clip_temp")
ROWS = "Model"
CHOICE = 0  # held-out clips from here on for sweeps, on which choices may be made


class Stages:
    """Weights of each stage; merges are made as they are wanted, into a folder."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.base, self.args, self.folder = preset("default").weights, args, folder
        self.stage1 = dataclasses.replace(self.base, trained=(args.stage1,))
        self.tuned = dataclasses.replace(self.base, trained=(args.tuned,))

    def over(self, model: Weights, strength: float, switch: int, own: bool = False) -> Weights:
        """A model with the dynamic motion modules above timestep `switch`; below the consistent ones, or its own."""
        dyn, con = (str(self.folder / f"{name}_{strength}.safetensors") for name in ("dyn", "con"))
        if not Path(dyn).is_file():
            numbers = dict(dyn_alpha=strength, dyn_beta=1.0, rate=self.args.rate, con_beta=self.args.con_beta)
            numbers = [word for name, value in numbers.items() for word in ("--number", f"{name}={value}")]
            files = [f"pre={self.base.motion}", f"tuned={self.args.tuned}", f"dyn={dyn}", f"con={con}"]
            with contextlib.redirect_stdout(io.StringIO()):
                convert(["merge", "edg", *files, *numbers])
        spans = ((switch, dyn), (0, "" if own else con)) if switch else ((0, dyn),)
        return dataclasses.replace(model, over_time=over_time.parse(spans))


class Measure:
    """Values of a model's videos of some clips."""

    def __init__(self, first: int, count: int, scale: float):
        self.scale = scale  # of stage 1, where a model has it
        examples = sets.small_world("held_out", range(first, first + count), FRAMES, SIZE, opposite=True)
        self.clips = [example.truth for example in examples]

    def __call__(self, labels: dict, weights: Weights | None) -> report.Run:
        """Measures; without weights, the true clips."""
        pipeline, videos = load(weights or preset("default").weights), [clip.video for clip in self.clips]
        if weights:
            scale = self.scale if weights.trained else 1.0
            videos = animate(pipeline, self.clips, [clip.caption for clip in self.clips], text_in_time_scale=scale)
        model, flows = pipeline.model, [flow.estimated(video, flow.dis) for video in videos]
        embed = metrics.clip_embedding(model.configs["image_encoder"], model.parameters["image_encoder"])
        run = report.Run(labels, *measure(videos, flows, self.clips, embed))
        print(report.as_markdown([run], COLUMNS, compete=False).splitlines()[-1], flush=True)
        return run


def table(stages: Stages, args: argparse.Namespace) -> None:
    """Prints the rows in the paper's order, and how they differ."""
    decoupled = functools.partial(stages.over, stages.stage1, args.strength)
    models = {
        "base": stages.base,
        "+ stage 1": stages.stage1,
        "+ extrapolation": decoupled(0),
        **{f"decoupled, T = {switch}": decoupled(switch) for switch in args.switch},
        f"own below T = {args.switch[0]}": decoupled(args.switch[0], own=True),
        "tuned alone": stages.tuned,
    }
    measured = Measure(args.first, args.clips, args.stage1_scale)
    wanted = args.only or models
    runs = [measured({ROWS: name}, weights) for name, weights in models.items() if name in wanted]
    truth = measured({ROWS: "true clips"}, None)
    print("\n" + report.as_markdown(runs, COLUMNS, references=[truth]))
    print(report.as_markdown(report.differences(runs), COLUMNS, compete=False))


def sweep(stages: Stages, args: argparse.Namespace) -> None:
    """Prints both sweeps, without stage 1, and writes their plots one above the other."""
    measured, base = Measure(CHOICE, args.sweep_clips, 1.0), stages.base
    strengths = [measured({"strength": 0.0}, base)]
    strengths += [measured({"strength": s}, stages.over(base, s, 0)) for s in args.strengths]
    switches = [measured({"switching time": t}, stages.over(base, args.strength, t)) for t in args.switches]
    for runs in (strengths, switches):
        print("\n" + report.as_markdown(runs, COLUMNS))
    plots = [
        Image.open(io.BytesIO(report.lines(runs, next(iter(runs[0].labels)), COLUMNS[:4])))
        for runs in (strengths, switches)
    ]
    path = args.output.with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    media.write_png(path, np.concatenate([np.asarray(plot.convert("RGB")) for plot in plots]), overwrite=True)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage1", default="runs/text_in_time/trained.safetensors")
    parser.add_argument("--tuned", default="runs/half_speed/trained.safetensors")
    parser.add_argument("--stage1-scale", type=float, default=1.0, help="strength of the text-in-time adapter")
    parser.add_argument("--only", nargs="+", help="rows of the table by their names; default: all")
    parser.add_argument("--strength", type=float, default=0.4, help="published: 0.25 * 0.75")
    parser.add_argument("--switch", type=int, nargs="+", default=[500, 200], help="timesteps T")
    parser.add_argument("--rate", type=float, default=0.7, help="share of each change that is dropped")
    parser.add_argument("--con-beta", type=float, default=0.25, help="how far the consistent model goes beyond tuned")
    parser.add_argument("--first", type=int, default=500, help="number of the table's first clip")
    parser.add_argument("--clips", type=int, default=50, help="of the table; 0: none")
    parser.add_argument("--sweep-clips", type=int, default=20, help="0: no sweeps")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.1875, 0.4, 0.8, 1.6])
    parser.add_argument("--switches", type=int, nargs="+", default=[100, 300, 500, 700, 900])
    parser.add_argument("--output", default="output/extrapolation", type=Path)
    args = parser.parse_args()
    for file in (args.tuned, *([args.stage1] if args.clips else [])):
        open_tensors(file)  # before anything costly begins
    with tempfile.TemporaryDirectory() as folder:
        stages = Stages(args, Path(folder))
        if args.clips:
            table(stages, args)
        if args.sweep_clips:
            sweep(stages, args)


if __name__ == "__main__":
    commands.run(main)
