"""Whether objects go where a control shows, against what the prompt says: a ControlNet on the small world.

    python train.py --config configs/train/controlnet.py:small_world
    python -m benchmarks.control_following [--controlnet runs/controlnet/trained.safetensors] [--clips 100]

Each held-out clip's first frame is animated four times: with the outlines of the same clip in which every motion
goes the other way, which its prompt denies; with the same and no prompt; with those of the clip itself; with none.
Motions are named by the renderings that videos are most like, and by their optical flow. Writes a picture of some
clips, `OUTPUT.png`.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from benchmarks import sheet
from i2v_jax import commands
from i2v_jax.data.small_world import RenderedClip, Scene, draw, render_clip
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.evaluation import direction, flow, report
from i2v_jax.families.model import Model
from i2v_jax.sampling.controls.preprocess import find
from i2v_jax.sampling.controls.settings import ControlSettings
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.presets import preset
from i2v_jax.sampling.settings import Settings

SIZE, FRAMES, BATCH = 48, 8, 10
FIRST = 500  # held-out clips from here on, as evaluate.py takes
OUTLINES = "soft_edge"  # as configs/train/controlnet.py trains on


def animate(
    pipeline: Pipeline, clips: list[RenderedClip], prompts: list[str], outlines: list[np.ndarray], settings: Settings
) -> list:
    """Videos of the clips' first frames, with these prompts and outlines as control; clip n has the seed n."""
    videos = []
    for first in range(0, len(clips), BATCH):
        some = slice(first, first + BATCH)
        made = pipeline(
            [clip.video[0] for clip in clips[some]],
            prompts[some],
            list(range(first, first + len(clips[some]))),
            settings=settings,
            controls=[tuple(list(pictures) for pictures in outlines[some])],
        )
        videos += list(made)
    return videos


def shares(videos: list, scenes: list[Scene], clips: list[RenderedClip]) -> dict[str, list[float]]:
    """{method: of each video, the share of its scene's motions that it shows}."""
    found = {"by rendering": [], "by flow": []}
    for video, scene, clip in zip(videos, scenes, clips):
        ahead, _ = flow.estimated(video, flow.dis)
        found["by rendering"].append(direction.direction_accuracy(direction.motions_by_rendering(video, scene)))
        named = direction.motions_by_flow(ahead, clip.masks[:, 0], scene.motions)
        found["by flow"].append(direction.direction_accuracy(named))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--controlnet", default="runs/controlnet/trained.safetensors")
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--scale", type=float, default=1.0, help="of the control")
    parser.add_argument("--output", default="output/control_following", type=Path)
    parser.add_argument("--show", type=int, nargs="+", default=[0, 2, 8, 13], help="numbers of clips in the picture")
    args = parser.parse_args()
    scenes = [draw(FIRST + number, "held_out") for number in range(args.clips)]
    others = [scene.opposite() for scene in scenes]
    clips, contrary = ([render_clip(scene, FRAMES, SIZE) for scene in of] for of in (scenes, others))
    outline = find(OUTLINES)
    agreeing, denying = ([outline(clip.video) for clip in of] for of in (clips, contrary))

    bundled = preset("default")
    weights = dataclasses.replace(bundled.weights, controls=(args.controlnet,))
    mesh = make_mesh({"data": 1})
    pipeline = Pipeline(Model.load(weights, schedule=bundled.schedule, mesh=mesh), mesh)
    videos, rows = {}, []
    told, untold = [clip.caption for clip in clips], [""] * len(clips)
    for name, prompts, pictures, scale, truth in (
        ("denied", told, denying, args.scale, others),
        ("untold", untold, denying, args.scale, others),
        ("agreed", told, agreeing, args.scale, scenes),
        ("none", told, agreeing, 0.0, scenes),
    ):
        settings = dataclasses.replace(bundled.settings, controls=ControlSettings(scales=scale))
        videos[name] = animate(pipeline, clips, prompts, pictures, settings)
        rows.append((name, shares(videos[name], truth, clips)))
    print("| prompt and control | motions that go | by rendering | by flow |\n|---|---|---|---|")
    what = {
        "denied": ("disagree", "by the control"),
        "untold": ("no prompt", "by the control"),
        "agreed": ("agree", "by both"),
        "none": ("no control", "by the prompt"),
    }
    for name, found in rows:
        cells = []
        for values in found.values():
            mean, low, high, _ = report.summarise(values)
            cells.append(f"{mean:.3f} [{low:.3f}, {high:.3f}]")
        print(f"| {' | '.join((*what[name], *cells))} |")
    shown, times = [number for number in args.show if number < args.clips], [FRAMES // 2, FRAMES - 1]
    columns = {"control": denying, "control and prompt": videos["denied"], "control alone": videos["untold"]}
    columns["prompt alone"] = videos["none"]
    pictures = [
        [clips[number].video[:1], *(column[number][time][None] for column in columns.values() for time in times)]
        for number in shown
    ]
    titles = ["picture", *(f"{title}, frame {time + 1}" for title in columns for time in times)]
    sheet.write(args.output, pictures, titles, [clips[number].caption for number in shown])


if __name__ == "__main__":
    commands.run(main)
