"""Whether motion goes on in long videos of the small world: `python -m benchmarks.long_videos [--clips 20]`.

The bundled model, which knows 8 frames at a time, makes 64 of held-out scenes: in windows, in a loop, by FreeNoise, and
in pieces that go on from each other's last frame. Of each quarter: the share of motions that go as the prompt says, by
the renderings that its change is most like. Of the last quarter: how like the first frame's objects the most alike
places are. Of a loop: its last step, from the last frame to the first, over the mean of all others. Writes a picture of
some clips, `OUTPUT.png`.
"""

import argparse
import dataclasses
from pathlib import Path

import cv2
import numpy as np

from benchmarks import sheet
from i2v_jax import commands
from i2v_jax.data.small_world import STILL, RenderedClip, Scene, draw, render, render_clip
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.diffusion.windows import Windows
from i2v_jax.evaluation import report
from i2v_jax.families.model import Model
from i2v_jax.media import Frames
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.presets import preset
from i2v_jax.sampling.settings import Settings

SIZE, LENGTH, FRAMES, BATCH = 48, 8, 64, 4
FIRST = 500  # held-out clips from here on, as evaluate.py takes
SPANS = [(begin, share) for begin in (0.0, 0.25, 0.5, 0.75) for share in (0.25, 0.5, 1.0) if begin + share <= 1]
"""Where in its motion a scene may be at the beginning of a quarter, and how much of it a quarter may show."""
LEAST = 0.1  # cosine of the change of a quarter with that of a rendering; less counts as standing still


def ways(batch: int) -> dict[str, Windows]:
    """How 64 frames are made, by name."""
    return {
        "windows": Windows(LENGTH, 4, batch=batch),
        "windows, shifted": Windows(LENGTH, 4, "shifted", batch=batch),
        "windows, shuffled noise": Windows(LENGTH, 4, noise="shuffle", batch=batch),
        "loop": Windows(LENGTH, 4, "looped", batch=batch),
        "FreeNoise": Windows(LENGTH, 4, average="attention", noise="shuffle"),
    }


def in_pieces(pipeline: Pipeline, pictures: list, prompts: list[str], seeds: list[int], settings: Settings) -> Frames:
    """Videos whose pieces of 8 frames each begin with the last frame of the one before."""
    pieces = [np.stack(pictures)[:, None]]
    while sum(piece.shape[1] for piece in pieces) < FRAMES:
        made = pipeline(list(pieces[-1][:, -1]), prompts, seeds, settings=settings)
        pieces.append(made[:, 1:])
    return np.concatenate(pieces, 1)[:, :FRAMES]


def shown_motions(quarter: Frames, scene: Scene) -> list[tuple[str, str]]:
    """The name of each motion of a caption, and of the one whose rendering's change a quarter's is most like."""
    change = (quarter.astype(np.float32) - quarter[:1]).ravel()
    named = []
    for number, prompted in enumerate(scene.motions):
        likeness = {STILL: LEAST}
        for name, other in scene.alternatives(number).items():
            if name != STILL:
                likeness[name] = max(alike(change, changes(other, len(quarter), span)) for span in SPANS)
        named.append((prompted.name, max(likeness, key=likeness.get)))
    return named


def changes(scene: Scene, frames: int, span: tuple[float, float]) -> np.ndarray:
    """How a scene changes over a share of its motion."""
    begin, share = span
    made = render(scene, np.linspace(begin, begin + share, frames), SIZE).astype(np.float32)
    return (made - made[:1]).ravel()


def alike(one: np.ndarray, other: np.ndarray) -> float:
    """The cosine between two changes."""
    return float(np.vdot(one, other) / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-6))


def identity(clip: RenderedClip, frames: Frames) -> float:
    """How like the first frame's objects the most alike places of some frames are: correlation, at most 1, means."""
    found = []
    for mask in clip.masks[:, 0]:
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        if not len(rows):
            continue
        part = clip.video[0][rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        for frame in frames:
            scores = []
            for scale in (0.6, 0.75, 0.9, 1.0, 1.15, 1.3):
                sides = [max(4, min(SIZE, round(side * scale))) for side in part.shape[1::-1]]
                scores.append(cv2.matchTemplate(frame, cv2.resize(part, sides), cv2.TM_CCOEFF_NORMED).max())
            found.append(max(scores))
    return float(np.mean(found)) if found else np.nan


def seam(video: Frames) -> float:
    """The change from the last frame to the first, over the mean change from frame to frame."""
    steps = np.abs(np.diff(video.astype(np.float32), axis=0)).mean((1, 2, 3))
    return float(np.abs(video[-1].astype(np.float32) - video[0]).mean() / max(steps.mean(), 1e-6))


def row(name: str, videos: Frames, clips: list[RenderedClip]) -> str:
    """A row of the table, with 95 % intervals over clips."""
    quarters, cells = np.split(videos, 4, axis=1), []
    for quarter in quarters:
        shares = []
        for video, clip in zip(quarter, clips):
            named = shown_motions(video, clip.scene)
            shares.append(float(np.mean([prompted == shown for prompted, shown in named])))
        cells.append(shares)
    cells += [[identity(clip, part[number, ::4]) for number, clip in enumerate(clips)] for part in quarters[::3]]
    cells.append([seam(video) for video in videos])
    written = []
    for values in cells:
        mean, low, high, _ = report.summarise([value for value in values if np.isfinite(value)])
        written.append(f"{mean:.2f} [{low:.2f}, {high:.2f}]")
    return f"| {name} | {' | '.join(written)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--windows-at-a-time", type=int, default=4)
    parser.add_argument("--only", nargs="+", help="of the ways, such as: loop, pieces")
    parser.add_argument("--output", default="output/long_videos", type=Path)
    args = parser.parse_args()
    clips = [render_clip(draw(FIRST + number, "held_out"), LENGTH, SIZE) for number in range(args.clips)]
    small = preset("default")
    mesh = make_mesh({"data": 1})
    pipeline = Pipeline(Model.load(small.weights, schedule=small.schedule, mesh=mesh), mesh)
    every = {name: windows for name, windows in ways(args.windows_at_a_time).items()} | {"pieces": None}
    print(f"{args.clips} held-out scenes, {FRAMES} frames of {SIZE}x{SIZE}, {small.settings.steps} steps")
    print("| how | direction, quarter 1 | 2 | 3 | 4 | identity, quarter 1 | 4 | last step over others |")
    print("|---|---|---|---|---|---|---|---|")
    videos = {}
    for name in args.only or every:
        windows, made = every[name], []
        for first in range(0, len(clips), BATCH):
            some = clips[first : first + BATCH]
            given = (
                [clip.video[0] for clip in some],
                [clip.caption for clip in some],
                list(range(first, first + len(some))),
            )
            if windows is None:
                made.append(in_pieces(pipeline, *given, small.settings))
            else:
                settings = dataclasses.replace(small.settings, frames=FRAMES, windows=windows)
                made.append(pipeline(*given, settings=settings))
        videos[name] = np.concatenate(made)
        print(row(name, videos[name], clips), flush=True)
    times = [0, 16, 32, 48, 63]
    rows = [
        [video[number][time][None] for video in videos.values() for time in times]
        for number in range(min(4, len(clips)))
    ]
    titles = [f"{name}, frame {time + 1}" for name in videos for time in times]
    sheet.write(args.output, rows, titles, [clip.caption for clip in clips[:4]])


if __name__ == "__main__":
    commands.run(main)
