"""Trains the first-frame adapter, and nothing else, on four clips until it knows them: does the loss fall by half?

    python -m benchmarks.overfit [FOLDER] [--steps 1200]

Four made-up clips, as mp4 files, are stored by `i2v_jax.training.store`, and `train.py` trains a new adapter on the
small model of `tests/data` without its own. Before and after: the training's loss on the same draws at a hundred
timesteps, evenly spread; and how far videos sampled from the first frames with the same seeds are from the clips, from
pure noise and with the Frame Similarity Prior of `tests/configs/sample.py`. Writes `samples.png` (clips, both kinds
before, both after) and `curve.png` to FOLDER. Fails where the loss does not fall by half or the samples come no nearer.
Takes a few minutes on two free cores.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

from i2v_jax import commands
from i2v_jax.data import loader, stored
from i2v_jax.devices.compile_cache import use_compile_cache
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.families.model import Model
from i2v_jax.families.weights import Weights
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.settings import Settings
from i2v_jax.training.objective import Loss, Objective
from tests import clips, processes, train_runs

CONFIG = "tests/configs/train.py"
FRAMES, SIZE = 4, 64
RATE = 2e-2  # of learning, falling to 0: high, since all there is to learn is four clips
TIMESTEPS = range(5, 1000, 10)
SEEDS = 4  # videos of each clip
STARTS = {"pure noise": dict(t0=1.0), "the prior": dict(t0=0.5, p=1.0)}
CAPTIONS = ("a red disc moves right", "a black square moves down", "a brown ring moves left", "a blue bar moves up")
# What its VAE, which was trained on five photographs, can show.
COLOURS = np.array([(200, 40, 40), (30, 30, 30), (110, 60, 30), (60, 80, 130)])
BACKGROUNDS = np.array([(150, 90, 60), (90, 110, 130), (210, 190, 160), (60, 50, 50)])
DIRECTIONS = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])  # down, right

Videos = UInt8[np.ndarray, "n f h w 3"]


def make_clips() -> Videos:
    """Returns a clip for each caption: a shape moves over half of the picture, before a background that darkens."""
    rows, columns = (np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE
    pictures = []
    for number, (down, right) in enumerate(DIRECTIONS):
        background = BACKGROUNDS[number] * (1.1 - 0.3 * (rows if number % 2 else columns)[..., None])
        for along in np.linspace(-0.25, 0.25, FRAMES):
            y, x = rows - 0.5 - along * down, columns - 0.5 - along * right
            radius = np.hypot(y, x)
            square, bar = np.maximum(abs(y), abs(x)), np.maximum(2 * abs(y), abs(x))
            inside = (radius < 0.22, square < 0.19, abs(radius - 0.19) < 0.08, bar < 0.28)[number]
            pictures.append(np.where(inside[..., None], COLOURS[number], background))
    return np.array(pictures).astype(np.uint8).reshape(len(CAPTIONS), FRAMES, SIZE, SIZE, 3)


def train(folder: Path, made: Videos, steps: int) -> ConfigDict:
    """Stores clips and trains on them, by the two commands; the run is left in `folder/run`. Returns its config."""
    (folder / "clips").mkdir()
    for number, (frames, caption) in enumerate(zip(made, CAPTIONS)):
        (folder / "clips" / f"{number}.mp4").write_bytes(clips.encode(frames))
        (folder / "clips" / f"{number}.txt").write_text(caption)
    _, *flags = train_runs.train(
        folder / "clips",
        folder / "run",
        data__frames=FRAMES,
        data__height=SIZE,
        data__width=SIZE,
        optimizer__learning_rate=RATE,
        optimizer__schedule="cosine",
        steps=steps,
        checkpoints__every_steps=steps,
        log__every_steps=1,
    )
    processes.finish(processes.start(["-m", "i2v_jax.training.store", f"--output={folder / 'stored'}", *flags]))
    flags.append(f"--config.data.source={folder / 'stored'}")
    processes.finish(processes.start(["train.py", *flags]), seconds=3600)
    return commands.read_config(CONFIG, ["overfit", *flags])


def judge(config: ConfigDict, adapter: Path | None, made: Videos) -> tuple[float, list[Videos]]:
    """Returns what the model does with an adapter; None: a new one.

    The loss on fixed draws, and for each start SEEDS videos of each clip, next to each other.
    """
    schedule = NoiseSchedule(**config.noise_schedule)
    weights = dataclasses.replace(Weights.of_config(config.weights), adapter=adapter)
    model = Model.load(weights, schedule=schedule, self_attention_branches=tuple(config.branches))
    objective, empty = Objective(**config.objective), stored.read_empty(config.data.source)
    loss = Loss({"unet": model.configs["unet"]}, schedule, objective, empty)
    batch, _ = next(loader.make(config.data.to_dict(), len(made), seed=0, wanted=("text", "image_tokens")))

    @jax.jit
    def at(parameters, timestep):
        draws = loss.draw(jax.random.key(timestep), batch)
        return loss({"unet": parameters}, batch, draws._replace(timesteps=jnp.full_like(draws.timesteps, timestep)))[0]

    losses = [float(at(model.parameters["unet"], timestep)) for timestep in TIMESTEPS]
    pictures, prompts = made[:, 0].repeat(SEEDS, 0), np.repeat(CAPTIONS, SEEDS).tolist()
    pipeline, settings = Pipeline(model), Settings(SIZE, SIZE, FRAMES, steps=20, guidance_scale=1.0)
    starts = [dataclasses.replace(settings, **start) for start in STARTS.values()]
    videos = [pipeline(list(pictures), prompts, range(len(prompts)), settings=start) for start in starts]
    return float(np.mean(losses)), videos


def distances(videos: Videos, made: Videos) -> np.ndarray:
    """Mean squared difference of frames 2..l of each video from its clip, of pictures in [0, 1]."""
    clip = made.repeat(len(videos) // len(made), 0)
    return np.square((videos[:, 1:].astype(float) - clip[:, 1:]) / 255).mean((1, 2, 3, 4))


def draw_rows(rows: list[Videos], gap: int = 8) -> Image.Image:
    """A row for each kind of videos: all of them side by side, frame after frame."""
    margin = ((0, gap), (0, gap), (0, 0))
    lines = [np.hstack([np.pad(np.hstack(video), margin, constant_values=255) for video in row]) for row in rows]
    return Image.fromarray(np.vstack(lines)[:-gap, :-gap])


def draw_curve(losses: dict[int, float], width: int = 640, height: int = 320, margin: int = 40) -> Image.Image:
    """The loss of each step in grey, and its mean over so many steps in black, upwards from 0."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    window = min(100, len(losses))
    steps, values = np.array(list(losses)), np.array(list(losses.values()))
    means = np.convolve(values, np.ones(window) / window, "valid")
    top = 2 * means.max()
    for steps_shown, shown, colour in ((steps, values, "lightgrey"), (steps[window - 1 :], means, "black")):
        x = margin + (width - 2 * margin) * steps_shown / steps[-1]
        y = height - margin - (height - 2 * margin) * np.minimum(shown / top, 1)
        draw.line(list(zip(x, y)), fill=colour)
    draw.line([(margin, margin), (margin, height - margin), (width - margin, height - margin)], fill="black")
    draw.text((4, margin), f"{top:.2f}", fill="black")
    draw.text((4, height - margin - 6), "0", fill="black")
    draw.text((width - margin - 60, height - margin + 8), f"step {steps[-1]}", fill="black")
    draw.text((margin, 12), f"loss of each step, and its mean over {window}", fill="black")
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/overfit"))
    parser.add_argument("--steps", type=int, default=1200)
    arguments = parser.parse_args()
    made = make_clips()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        config = train(Path(folder), made, arguments.steps)
        print(f"stored and trained {arguments.steps} steps in {time.perf_counter() - began:.0f} s", flush=True)
        use_compile_cache(config.compilation_cache, least_seconds=None)
        adapters = None, Path(folder) / "run" / "trained.safetensors"
        (before, first), (after, last) = (judge(config, adapter, made) for adapter in adapters)
        curve = draw_curve(train_runs.losses(Path(folder) / "run"))
    print(f"loss on the same draws: {before:.4f} before, {after:.4f} after: {after / before:.2f}   (wanted 0.5)")
    print("samples from the clips, mean squared:")
    nearer = True
    for start, far, near in zip(STARTS, *([distances(video, made) for video in videos] for videos in (first, last))):
        count = f"{(near < far).sum()} of {far.size} nearer"
        print(f"  from {start}: {far.mean():.4f} before, {near.mean():.4f} after; {count}")
        nearer &= near.mean() < far.mean()
    print(f"  first frame repeated: {distances(made[:, :1].repeat(FRAMES, 1), made).mean():.4f}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    samples = draw_rows([made, *(videos[::SEEDS] for videos in first + last)])
    for name, picture in (("samples", samples), ("curve", curve)):
        picture.save(arguments.folder / f"{name}.png")
        print(arguments.folder / f"{name}.png")
    sys.exit(after > before / 2 or not nearer)


if __name__ == "__main__":
    main()
