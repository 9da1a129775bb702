"""Whether held-out pictures move as a MIVA was shown, on the small world, beside what else ten clips can be used for.

    python train.py --config configs/train/miva.py --config.data.source=small_world:swing --config.folder=runs/swing
    python -m benchmarks.novel_motions --motion swing [--miva FILE] [--lora FILE] [--lamp FILE] [--clips 50]

The configs `miva.py:lora` and `miva.py:lamp` train what it is compared with, into runs/swing_lora and runs/swing_lamp.

First frames of the held-out split are animated by each: without a prompt where ten clips were trained on, by the best
of all prompts with the model as it is, with and without its I2V-Adapter (chosen on other clips). Told are the share of
motions that are the one shown, by flow and by rendering; PSNR where the subject truly is; CLIPTemp. Files that are
not there are left out. With two motions ("swing+sway") `--miva` takes two files; a clip counts where both are right.
Writes a picture of some clips, `OUTPUT.png`.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from benchmarks import sheet
from i2v_jax import commands
from i2v_jax.data.small_world import RenderedClip, draw, render_clip
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.errors import InputError
from i2v_jax.evaluation import direction, flow, metrics, report
from i2v_jax.families.model import Model
from i2v_jax.families.weights import Weights
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.presets import preset

SIZE, FRAMES, BATCH = 48, 8, 10
COLUMNS = ("direction", "rendered_direction", "psnr", "clip_temp")  # PSNR: where the subject truly is


def load(weights: Weights) -> Pipeline:
    mesh = make_mesh({"data": 1})
    return Pipeline(Model.load(weights, schedule=preset("default").schedule, mesh=mesh), mesh)


def animate(pipeline: Pipeline, clips: list[RenderedClip], prompts: list[str], **changes: float) -> list[flow.Video]:
    """Videos of the clips' first frames; clip n has the seed n. `changes` are of the preset's settings."""
    videos, settings = [], dataclasses.replace(preset("default").settings, **changes)
    for first in range(0, len(clips), BATCH):
        some = slice(first, first + BATCH)
        pictures, seeds = [clip.video[0] for clip in clips[some]], list(range(first, first + len(clips[some])))
        videos += list(pipeline(pictures, prompts[some], seeds, settings=settings))
    return videos


def measure(videos: list[flow.Video], clips: list[RenderedClip], embed) -> dict[str, list[float]]:
    """{column of `COLUMNS`: value of each video}; a motion is right where all of a clip's are."""
    found = {column: [] for column in COLUMNS}
    for video, clip in zip(videos, clips):
        ahead, _ = flow.estimated(video, flow.dis)
        by_flow = direction.motions_by_flow(ahead, clip.masks[:, 0], clip.motions, clip.scene)
        by_rendering = direction.motions_by_rendering(video, clip.scene)
        of_picture, *of_frames = embed(np.concatenate([clip.video[:1], video]))
        subject = clip.masks[:, 1:].any(0)
        values = (
            float(all(told == shown for told, shown in by_flow)),
            float(all(told == shown for told, shown in by_rendering)),
            metrics.psnr(video[1:][subject][None, None], clip.video[1:][subject][None, None]),
            metrics.clip_temp(of_picture, np.stack(of_frames)),
        )
        for column, value in zip(COLUMNS, values):
            found[column].append(value)
    return found


def best_prompts(pipeline: Pipeline, clips: list[RenderedClip], others: list[RenderedClip]) -> tuple[str, list[str]]:
    """The prompts of clips with which other clips do best by rendering: own captions, or another motion in them."""
    kinds = [draw(number, "held_out", alone=True) for number in range(18)]
    words = ["", *dict.fromkeys(scene.motion_caption for scene in kinds)]

    def prompts(of: list[RenderedClip], word: str) -> list[str]:
        if not word:
            return [clip.caption for clip in of]
        join = ", " if word.startswith("the camera") else " "
        return [clip.scene.still_caption + join + word for clip in of]

    def score(word: str) -> float:
        videos = animate(pipeline, others, prompts(others, word))
        named = [direction.motions_by_rendering(video, clip.scene) for video, clip in zip(videos, others)]
        return float(np.mean([direction.direction_accuracy(one) for one in named]))

    best = max(words, key=score)
    return best or "its caption", prompts(clips, best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--motion", default="swing", help="of i2v_jax.data.small_world.NOVEL, or two of them: swing+sway"
    )
    parser.add_argument("--miva", nargs="+", help="default: runs/MOTION/trained.safetensors, of each motion")
    parser.add_argument("--lora", help="default: runs/MOTION_lora/trained.safetensors")
    parser.add_argument("--lamp", help="default: runs/MOTION_lamp/trained.safetensors")
    parser.add_argument("--clips", type=int, default=50)
    parser.add_argument("--choose", type=int, default=10, help="other clips on which prompts are chosen; 0: captions")
    parser.add_argument("--only", nargs="+", help="the rows that are wanted: miva, lora, lamp, adapter, base")
    parser.add_argument("--output", default="output/novel_motions", type=Path)
    parser.add_argument("--show", type=int, nargs="+", default=[0, 1, 2, 3], help="numbers of clips in the picture")
    args = parser.parse_args()
    split = f"held_out:{args.motion}"
    clips = [render_clip(draw(number, split), FRAMES, SIZE) for number in range(args.clips)]
    others = [render_clip(draw(1000 + number, split), FRAMES, SIZE) for number in range(args.choose)]
    base = preset("default").weights
    files = args.miva or [f"runs/{motion}/trained.safetensors" for motion in args.motion.split("+")]
    lora, lamp = (
        given or f"runs/{args.motion}_{way}/trained.safetensors"
        for given, way in ((args.lora, "lora"), (args.lamp, "lamp"))
    )
    trained = {
        "miva": ("MIVA", dataclasses.replace(base, mivas=tuple(files)), files),
        "lora": ("LoRA alone", dataclasses.replace(base, loras=(lora,)), [lora]),
        "lamp": ("LAMP-like", dataclasses.replace(base, adapter=None, trained=(lamp,)), [lamp]),
    }
    as_it_is = {"adapter": ("I2V-Adapter", base), "base": ("base", dataclasses.replace(base, adapter=None))}
    wanted = args.only or [*trained, *as_it_is]
    given = {name: row for name, row in trained.items() if name in wanted and all(Path(it).is_file() for it in row[2])}
    if "miva" in wanted and "miva" not in given:
        raise InputError(f"{' and '.join(files)}: wanted files that are there; train them as --help says.")

    columns, rows, embed = {}, [], None
    for name in [name for name in wanted if name in given or name in as_it_is]:
        title, weights = (given[name] if name in given else as_it_is[name])[:2]
        pipeline = load(weights)
        model = pipeline.model
        embed = embed or metrics.clip_embedding(model.configs["image_encoder"], model.parameters["image_encoder"])
        if name in given:
            prompts = [""] * len(clips)
        else:
            prompt, prompts = "its caption", [clip.caption for clip in clips]
            if others:
                prompt, prompts = best_prompts(pipeline, clips, others)
            title += f", best prompt ({prompt})"
        columns[title] = videos = animate(pipeline, clips, prompts)
        rows.append(report.Run({args.motion: title}, measure(videos, clips, embed), {}))
        print(report.as_markdown(rows[-1:], COLUMNS), flush=True)
    print(report.as_markdown(rows, COLUMNS))
    shown, times = [number for number in args.show if number < len(clips)], [2, 4, 7]
    pictures = [
        [
            clips[n].video[:1],
            *(video[t][None] for video in [clips[n].video, *(it[n] for it in columns.values())] for t in times),
        ]
        for n in shown
    ]
    titles = ["picture", *(f"{title}, frame {t + 1}" for title in ("true clip", *columns) for t in times)]
    sheet.write(args.output, pictures, titles, [clips[n].caption for n in shown], tile=72)


if __name__ == "__main__":
    commands.run(main)
