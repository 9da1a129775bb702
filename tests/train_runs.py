"""Runs of `train.py` on the small model of tests/data and a few small clips."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tensorboardX.proto import event_pb2

from i2v_jax.data import stored
from tests import clips
from tests.processes import ROOT


def write_clips(folder, count) -> Path:
    """Writes videos of 8 frames of 32x32 with captions into a folder, and returns it."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    for number in range(count):
        tint = np.random.default_rng(number).integers(-60, 60, (1, clips.SIZE, clips.SIZE, 3))
        frames = np.clip(clips.numbered(8) + tint, 0, 255).astype(np.uint8)
        (folder / f"{number}.mp4").write_bytes(clips.encode(frames))
        (folder / f"{number}.txt").write_text(f"thing number {number} moves")
    return folder


def write_stored(folder, count) -> Path:
    """Writes clips of 4 frames of 32x32, stored as random latents, prompts and image tokens, into a folder."""
    rng = np.random.default_rng(0)
    shapes = dict(mean=(4, 4, 4, 4), std=(4, 4, 4, 4), text=(77, 32), image_tokens=(16, 32))
    cut = dict(frames=4, stride=1, height=clips.SIZE, width=clips.SIZE)
    writer = stored.Writer(Path(folder), 0, dict(cut=cut, image_tokens=True, hosts=1))
    writer.write_empty(text=np.zeros((77, 32), np.float32), image_tokens=np.zeros((16, 32), np.float32))
    records = [
        (str(number), {name: rng.normal(size=shape).astype(np.float16) for name, shape in shapes.items()})
        for number in range(count)
    ]
    writer.write(records, {}, True)
    return Path(folder)


def train(source, folder, config="tests/configs/train.py", **changes) -> list[str]:
    """The command of a run, saved at its end: arguments of Python. Keys of `changes` have __ for dots."""
    settings = dict(
        data__source=source,
        data__frames=4,
        data__height=clips.SIZE,
        data__width=clips.SIZE,
        samples__every_steps=0,
        checkpoints__every_steps=100,
        compilation_cache=ROOT / ".cache" / "jax",
        folder=folder,
    )
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in (settings | changes).items()]
    return ["train.py", f"--config={config}", *flags]


def trained(folder) -> dict[str, np.ndarray]:
    """The weights that a run has left."""
    return load_file(Path(folder) / "trained.safetensors")


def losses(folder) -> dict[int, float]:
    """The curve of the loss that a run has drawn: step -> value."""
    return curves(folder)["training/loss"]


def curves(folder) -> dict[str, dict[int, float]]:
    """All curves that a run has drawn, by tag; a video's values are 0."""
    found = {}
    for file in sorted((Path(folder) / "curves").iterdir()):
        content = file.read_bytes()
        while content:  # TFRecord: length, its checksum, the record, its checksum
            size = int.from_bytes(content[:8], "little")
            event = event_pb2.Event.FromString(content[12 : 12 + size])
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
            content = content[16 + size :]
    return found
