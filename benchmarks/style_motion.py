"""Whether a style learned from a few pictures leaves the motion as it was: a LoRA and a fine-tuned UNet, small world.

    python -m i2v_jax.data.small_world data/blueprint --look=blueprint --clips=10 --size=96
    python train.py --config configs/train/style.py:small_world_lora --config.folder=runs/style_lora
    python train.py --config configs/train/style.py:small_world_whole --config.folder=runs/style_whole
    python -m benchmarks.style_motion [--lora runs/style_lora/trained.safetensors] [--whole FILE] [--clips 100]

Held-out first frames of one shape, as they are with the plain base, and in the other look with each model, are animated
by their captions. Told are the share of motions that go as the caption says, by optical flow; the PSNR against the true
clip in that look; and how far colours are from the look's, of 255. Writes a picture of some clips, `OUTPUT.png`.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import sheet
from i2v_jax import commands
from i2v_jax.data.small_world import RenderedClip, draw, render_clip
from i2v_jax.data.small_world.looks import BLUEPRINT, LOOKS
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.evaluation import direction, flow, metrics, report
from i2v_jax.families.model import Model
from i2v_jax.families.weights import Weights
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.presets import preset
from i2v_jax.weights.storage.open import open_tensors

SIZE, FRAMES, BATCH = 48, 8, 10
FIRST = 500  # held-out clips from here on, as evaluate.py takes
LOOK = "blueprint"


def animate(weights: Weights, clips: list[RenderedClip], look: bool, adapter_scale: float) -> list:
    """Videos of the clips' first frames, in the look where that is asked for; clip n has the seed n."""
    bundled, mesh = preset("default"), make_mesh({"data": 1})
    pipeline = Pipeline(Model.load(weights, schedule=bundled.schedule, mesh=mesh), mesh)
    settings = dataclasses.replace(bundled.settings, adapter_scale=adapter_scale)
    change, end = (LOOKS[LOOK], f", {LOOK}") if look else (lambda pictures: pictures, "")
    videos = []
    for first in range(0, len(clips), BATCH):
        some = clips[first : first + BATCH]
        pictures, prompts = [change(clip.video[0]) for clip in some], [clip.caption + end for clip in some]
        videos += list(pipeline(pictures, prompts, list(range(first, first + len(some))), settings=settings))
    return videos


def single_shapes() -> Iterator[RenderedClip]:
    """Held-out clips of one shape: captions of two leave no room for the look's word among the model's tokens."""
    for scene in (draw(number, "held_out") for number in itertools.count(FIRST)):
        if len(scene.objects) == 1:
            yield render_clip(scene, FRAMES, SIZE)


def off_look(video: np.ndarray) -> float:
    """Mean distance, of 255, of colours from the line between the look's darkest and lightest."""
    dark, light = np.asarray(BLUEPRINT, float)
    along = (light - dark) / np.linalg.norm(light - dark)
    away = video - dark
    away -= (away @ along)[..., None] * along
    return float(np.linalg.norm(away, axis=-1).mean())


def draw_sheet(output: Path, clips: list[RenderedClip], made: dict[str, list], shown: list[int]) -> None:
    """Writes some clips' videos side by side: the plain base's, then those in the look; `made` is in that order."""
    half, last = FRAMES // 2, FRAMES - 1
    (_, plain), (_, unstyled), *styled = made.items()
    columns = [("plain base", plain, half), ("plain base", plain, last), ("plain base", unstyled, last)]
    columns += [(name, videos, time) for name, videos in styled for time in (half, last)]
    rows = []
    for number in shown:
        picture, *videos = clips[number].video[:1], *(videos[number][time][None] for _, videos, time in columns)
        rows.append([picture, *videos[:2], LOOKS[LOOK](picture), *videos[2:]])
    titles = [f"{name}, frame {time + 1}" for name, _, time in columns]
    titles = ["picture", *titles[:2], f"picture as {LOOK}", *titles[2:]]
    sheet.write(output, rows, titles, [clips[number].caption for number in shown])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lora", default="runs/style_lora/trained.safetensors", help="'' leaves it out, as of --whole")
    parser.add_argument("--whole", default="runs/style_whole/trained.safetensors")
    parser.add_argument("--scale", type=float, default=1.0, help="of the LoRA")
    parser.add_argument("--adapter-scale", type=float, default=1.0, help="of the first-frame adapter")
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--output", default="output/style_motion", type=Path)
    parser.add_argument("--show", type=int, nargs="+", default=[18, 20, 14, 6], help="numbers of clips in the picture")
    args = parser.parse_args()
    clips = list(itertools.islice(single_shapes(), args.clips))
    base = preset("default").weights
    models = {"plain base, plain pictures": (base, False), "plain base": (base, True)}
    if args.lora:
        models["LoRA"] = dataclasses.replace(base, loras=(f"{args.lora}={args.scale}",)), True
    if args.whole:
        models["whole UNet"] = dataclasses.replace(base, trained=(args.whole,)), True
    for file in filter(None, (args.lora, args.whole)):
        open_tensors(file)  # before anything costly begins
    print("| model | direction by flow | PSNR, dB | off the look |\n|---|---|---|---|")
    made = {}
    for name, (weights, look) in models.items():
        made[name] = videos = animate(weights, clips, look, args.adapter_scale)
        truths = [LOOKS[LOOK](clip.video) if look else clip.video for clip in clips]
        named = [
            direction.motions_by_flow(flow.estimated(video, flow.dis)[0], clip.masks[:, 0], clip.motions)
            for video, clip in zip(videos, clips)
        ]
        mean, low, high, _ = report.summarise([direction.direction_accuracy(one) for one in named])
        psnr = np.mean([metrics.psnr(video[1:], truth[1:]) for video, truth in zip(videos, truths)])
        colour = f"{np.mean([off_look(video[1:]) for video in videos]):.1f}" if look else "-"
        print(f"| {name} | {mean:.3f} [{low:.3f}, {high:.3f}] | {psnr:.2f} | {colour} |", flush=True)
    draw_sheet(args.output, clips, made, [number for number in args.show if number < args.clips])


if __name__ == "__main__":
    commands.run(main)
